"""The tables of one side: one `EmbeddingBagCollection`, one table per feature."""

import torch
from torch import Tensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedTensor

from torchrec_adrec.schema import Schema, SequenceFeature, Side

BIAS_SUFFIX = "+bias"  # of a side's second collection; no feature's name can have it


def embedding_tables(
    schema: Schema,
    side: Side,
    embedding_dim: int,
    device: torch.device | None = None,
    suffix: str = "",
) -> EmbeddingBagCollection:
    """The tables of one side, in key order: ids summed, histories averaged.

    Args:
        embedding_dim: D, the width of every vector.
        device: `torch.device("meta")` for tables that are going to be sharded: then no
            rank ever holds more than its own rows.
        suffix: of the tables' names, where a side has a second collection.
    """
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
            )
            for feature in schema.bags_of(side)
        ],
        device=device,
    )


def regroup(vectors: KeyedTensor, names: list[str]) -> Tensor:
    """The looked-up vectors side by side in the order of `names`, (B, F * D).

    Never read `vectors.values()` by position: a sharded collection returns the keys in
    an order of its own. Where it is the one asked for, nothing is copied.
    """
    joined: list[Tensor] = (
        [vectors.values()]
        if vectors.keys() == names
        else KeyedTensor.regroup([vectors], [names])
    )
    return joined[0]
