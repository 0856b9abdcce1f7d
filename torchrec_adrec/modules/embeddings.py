"""The tables of one side: one `EmbeddingBagCollection`, one table per feature."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import (
    DataType,
    EmbeddingBagConfig,
    PoolingType,
)
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from torchrec_adrec.schema import Schema, SequenceFeature, Side

DATA_TYPES = {"float32": DataType.FP32, "float16": DataType.FP16}
BIAS_SUFFIX = "+bias"  # of a side's second collection; no feature's name can have it
WIDTH_STEP = 4  # FBGEMM's kernels take tables whose width is a multiple of this

Init = Callable[[Tensor], Tensor]  # fills a new table in place


def embedding_tables(
    schema: Schema,
    side: Side,
    embedding_dim: int,
    device: torch.device | None = None,
    suffix: str = "",
    init: Init | None = None,
    data_type: DataType = DataType.FP32,
) -> "EmbeddingBagCollection | NoTables":
    """Make the tables of one side, in key order: ids summed, histories averaged.

    A side of numbers alone has none. That is decided here, and nowhere else.

    Args:
        schema: names the features and says how many ids each has.
        side: whose features.
        embedding_dim: D, the width of every vector.
        device: `torch.device("meta")` for tables that are going to be sharded: then no
            rank ever holds more than its own rows.
        suffix: of the tables' names, where a side has a second collection.
        init: fills a new table; by default TorchRec draws from +-sqrt(1 / ids).
        data_type: of the tables' numbers; what is looked up is float32 either way.
    """
    if not schema.bags_of(side):
        return NoTables()
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=f"{side}_{feature.name}{suffix}",
                embedding_dim=embedding_dim,
                num_embeddings=feature.num_embeddings,
                feature_names=[feature.name],
                pooling=(
                    PoolingType.MEAN
                    if isinstance(feature, SequenceFeature)
                    else PoolingType.SUM
                ),
                # A sharded table is made anew on its rank: only what stands in its
                # config reaches it there.
                init_fn=init,
                data_type=data_type,
            )
            for feature in schema.bags_of(side)
        ],
        device=device,
    )


class NoTables(nn.Module):
    """The tables of a side without ids: they give every row no numbers at all."""

    def forward(self, ids: KeyedJaggedTensor) -> KeyedTensor:
        """Look up B rows of no key, (B, 0)."""
        nothing = torch.empty(ids.stride(), 0, device=ids.device())
        return KeyedTensor([], [], nothing)


def regroup(vectors: KeyedTensor, names: list[str]) -> Tensor:
    """Concatenate the looked-up vectors in the order of `names`, (B, F * D).

    Never read `vectors.values()` by position: a sharded collection returns the keys in
    an order of its own. Where that is the order asked for, nothing is copied.
    """
    joined: list[Tensor] = (
        [vectors.values()]
        if vectors.keys() == names
        else KeyedTensor.regroup([vectors], [names])
    )
    return joined[0]
