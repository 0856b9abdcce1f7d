"""The tables of one side: one `EmbeddingBagCollection`, one table per feature.

Where a history is read in its order, the table of its ids is not among them: it stands
in an `EmbeddingCollection` of the ad's side, and gives the vectors of both.
"""

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import (
    DataType,
    EmbeddingBagConfig,
    EmbeddingConfig,
    PoolingType,
)
from torchrec.modules.embedding_modules import (
    EmbeddingBagCollection,
    EmbeddingCollection,
)
from torchrec.sparse.jagged_tensor import (
    JaggedTensor,
    KeyedJaggedTensor,
    KeyedTensor,
)

from torchrec_adrec.batch import ITEMS
from torchrec_adrec.schema import Bag, Schema, SequenceFeature, Side

DATA_TYPES = {"float32": DataType.FP32, "float16": DataType.FP16}
BIAS_SUFFIX = "+bias"  # of a side's second collection; no feature's name can have it
WIDTH_STEP = 4  # FBGEMM's kernels take tables whose width is a multiple of this

Init = Callable[[Tensor], Tensor]  # fills a new table in place
# What a parameter of a table is called: its table stands between the two.
_TABLE = re.compile(r"\.(?:embedding_bags|embeddings)\.(.+?)\.weight")


def table_of(parameter: str) -> str:
    """Return the table of a parameter's name, as user_C1; empty for all others."""
    match = _TABLE.search(parameter)
    return match[1] if match else ""


def embedding_tables(
    schema: Schema,
    side: Side,
    embedding_dim: int,
    device: torch.device | None = None,
    suffix: str = "",
    init: Init | None = None,
    data_type: DataType = DataType.FP32,
    without: str | None = None,
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
        without: the key of `TowerInput.items`, where `item_table` has its vectors.
    """
    bags = bags_without(schema, side, without)
    if not bags:
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
            for feature in bags
        ],
        device=device,
    )


def bags_without(schema: Schema, side: Side, without: str | None) -> list[Bag]:
    """Return the features of one side that have a table among its bags."""
    return [f for f in schema.bags_of(side) if f.name != without]


def item_table(
    schema: Schema,
    embedding_dim: int,
    device: torch.device | None = None,
    init: Init | None = None,
    data_type: DataType = DataType.FP32,
) -> EmbeddingCollection:
    """Make the one table of the ads' item and of the histories, looked up id by id.

    Args:
        schema: with a history that shares its ids with a feature of the ads.
        embedding_dim, device, init, data_type: as of `embedding_tables`.
    """
    name = schema.items_of(Side.AD)
    (item,) = (f for f in schema.sparse_of(Side.AD) if f.name == name)
    table = EmbeddingConfig(
        name=f"{Side.AD}_{item.name}",
        embedding_dim=embedding_dim,
        num_embeddings=item.num_embeddings,
        feature_names=[ITEMS],
        init_fn=init,
        data_type=data_type,
    )
    return EmbeddingCollection(tables=[table], device=device)


def keyed(name: str, vectors: Tensor) -> KeyedTensor:
    """Give vectors (B, width) the name of their feature."""
    return KeyedTensor([name], [vectors.shape[1]], vectors)


def split_items(
    vectors: JaggedTensor, rows: int, ads: int, length: int
) -> tuple[Tensor, Tensor]:
    """Split the vectors of `batch.items_of` into histories and ads' items.

    Behind the end of a history stand zeros, which no id's vector is: that is how its
    encoder knows where it ends.

    Args:
        vectors: of `rows` histories, then of `ads` single ids.
        rows: B, or 0.
        ads: N, or 0.
        length: L, the most ids of a history.

    Returns:
        (B, L * D) and (N, D).
    """
    # Known without reading a number from the device: an ad has one id.
    ids = vectors.values()
    first = len(ids) - ads
    offsets = vectors.offsets()[: rows + 1].long()
    histories: Tensor = torch.ops.fbgemm.jagged_to_padded_dense(
        ids[:first], [offsets], [length], 0.0
    )
    return histories.flatten(1), ids[first:]


class NoTables(nn.Module):
    """The tables of a side without ids: they give every row no numbers at all."""

    def forward(self, ids: KeyedJaggedTensor) -> KeyedTensor:
        """Look up B rows of no key, (B, 0)."""
        return _no_vectors(ids)


def _no_vectors(ids: KeyedJaggedTensor) -> KeyedTensor:
    nothing = torch.empty(ids.stride(), 0, device=ids.device())
    return KeyedTensor([], [], nothing)


# TorchRec's pipeline looks for sharded tables by tracing what stands beside them, and
# the number of rows of a traced batch is no number.
torch.fx.wrap("_no_vectors")


def regroup(
    vectors: KeyedTensor, names: list[str], items: KeyedTensor | None = None
) -> Tensor:
    """Concatenate the looked-up vectors in the order of `names`, (B, F * D).

    Never read `vectors.values()` by position: a sharded collection returns the keys in
    an order of its own. Where that is the order asked for, nothing is copied.

    Args:
        vectors: of a side's bags.
        names: of all features.
        items: the vectors of one more feature, from `item_table`.
    """
    if items is None and vectors.keys() == names:
        values: Tensor = vectors.values()
        return values
    parts = [part for part in (vectors, items) if part is not None and part.keys()]
    joined: list[Tensor] = KeyedTensor.regroup(parts, [names])
    return joined[0]
