"""TorchRec's sharders with our choices: which types a table may be sharded by."""

from typing import Any

from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import (
    EmbeddingBagCollectionSharder,
    ShardedEmbeddingBagCollection,
)
from torchrec.distributed.types import (
    ModuleSharder,
    ParameterSharding,
    QuantizedCommCodecs,
    ShardingType,
)
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from torchrec_adrec.distributed.torchrec_internals import never_divide

TYPES = (
    *("table_wise", "row_wise", "table_row_wise"),
    *("column_wise", "table_column_wise"),
)
BY_ROWS = ("row_wise", "table_row_wise")


class Sharder(EmbeddingBagCollectionSharder):  # type: ignore[misc]
    """Offers the row-wise types on CPUs too, and takes no mean twice.

    TorchRec's own sharder offers these types to GPUs alone, but its CPU kernels do them
    exactly (tests/distributed/test_sharding_types.py).

    Where one averaged table of a collection is cut by rows, TorchRec 1.8.0 divides the
    vectors of *all* its tables by their number of ids. Those whose kernel has already
    averaged them are divided twice, and nothing says so. It spares summed tables that
    are cut by rows alone, so the tables that are not cut by rows are added to these.
    """

    def shard(
        self,
        module: EmbeddingBagCollection,
        params: dict[str, ParameterSharding],
        *args: Any,
        **kwargs: Any,
    ) -> ShardedEmbeddingBagCollection:
        """Shard one collection, as TorchRec's sharder does."""
        sharded = super().shard(module, params, *args, **kwargs)
        for table in module.embedding_bag_configs():
            if params[table.name].sharding_type not in BY_ROWS:
                never_divide(sharded, table.feature_names)
        return sharded

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Name all types but data_parallel, which never trains here."""
        return list(TYPES)


class ItemSharder(EmbeddingCollectionSharder):  # type: ignore[misc]
    """Offers all types but data_parallel to tables that are looked up id by id."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Name the types."""
        types: list[str] = super().sharding_types(compute_device_type)
        return [name for name in types if name != ShardingType.DATA_PARALLEL.value]


def sharders(
    codecs: dict[str, QuantizedCommCodecs] | None = None,
) -> list[ModuleSharder[Any]]:
    """Make what shards the collections of a model, with the codecs of `qcomm`."""
    return [
        Sharder(qcomm_codecs_registry=codecs),
        ItemSharder(qcomm_codecs_registry=codecs),
    ]
