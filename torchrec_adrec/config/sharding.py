"""Settings of sharding: what the planner may choose from."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from torchrec_adrec.config.base import Settings

ShardingName = Literal[
    "table_wise", "row_wise", "table_row_wise", "column_wise", "table_column_wise"
]


# TorchRec accepts `data_parallel` and then leaves such tables untrained, unannounced.
def _no_data_parallel(types: Any) -> Any:
    if isinstance(types, (list, tuple)) and "data_parallel" in types:
        raise ValueError(
            "data_parallel is refused: a table that every rank holds whole never trains"
            " under an optimizer inside backward, and nothing says so; name table_wise"
            " for small tables"
        )
    return types


ShardingTypes = Annotated[
    tuple[ShardingName, ...],
    Field(min_length=1),
    BeforeValidator(_no_data_parallel),
]


class TableSharding(Settings):
    """The planner's choices for the tables that a pattern names."""

    types: ShardingTypes | None = None
    """Default: `sharding.types`."""
    kernel: Literal["fused", "fused_uvm", "fused_uvm_caching"] = "fused"
    """Where the rows are kept: GPU memory, or host memory that is read over the bus,
    without or with a cache on the GPU. Nothing moves to host memory unasked."""
    min_partition: Annotated[int, Field(ge=4, multiple_of=4)] | None = None
    """Narrowest slice of columns of column_wise and table_column_wise; a table whose
    width it does not divide takes the next one that does. Default: 128."""


class ShardingConfig(Settings):
    """The planner's choices (docs/sharding.md)."""

    types: ShardingTypes | None = None
    """Sharding types of every table for which `tables` gives no others. Default:
    table_wise, and on GPUs also row_wise. On CPUs the planner, which counts with the
    figures of GPUs, would cut a table of 18 rows over all ranks."""
    tables: dict[str, TableSharding] = Field(default_factory=dict)
    """Patterns of table names, as `user_C1` or `ad_*`, with the choices for them. The
    first pattern that fits a table counts; one that fits none is an error."""
    qcomm: Literal["fp32", "fp16"] = "fp32"
    """Precision in which looked-up vectors travel between ranks. Their gradients always
    travel in fp32: those of one row are about 1 / batch_size, which fp16 rounds to a
    few steps of 6e-8 or to nothing."""
