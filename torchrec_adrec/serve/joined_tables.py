"""The tables of the user's side as one, because a request reads one row of each.

Shape letters: B rows, F features, D width of a vector.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec.modules.embedding_configs import PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from torchrec_adrec.models.rankers.ranker import Ranker
from torchrec_adrec.models.two_tower import TwoTower


class JoinedTables(nn.Module):
    """A collection whose features have one id in every row, looked up at once.

    An operation for each of some thirty tables, once for each of the three collections
    of the user's side, was a tenth of a request.

    Args:
        tables: ids alone, no list. Their weights become views of one tensor, below one
            another.
    """

    first: Tensor
    joined: Tensor

    def __init__(self, tables: EmbeddingBagCollection) -> None:
        super().__init__()
        self.tables = tables
        configs = tables.embedding_bag_configs()
        self.keys = [name for config in configs for name in config.feature_names]
        bags = [*tables.embedding_bags.values()]
        sizes = [len(bag.weight) for bag in bags]
        like = bags[0].weight.detach()
        joined = torch.empty(sum(sizes), like.shape[1], dtype=like.dtype)
        # One by one: all of them twice would be more memory than was planned for.
        for bag, rows in zip(bags, joined.split(sizes), strict=True):
            bag.weight.data = rows.copy_(bag.weight.detach())
        starts = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        self.register_buffer("joined", joined, persistent=False)
        self.register_buffer("first", starts[:, None], persistent=False)

    def forward(self, ids: KeyedJaggedTensor) -> KeyedTensor:
        """Look up B rows, (B, D) by feature.

        `TowerInput` has refused ids out of range, which would be rows of other tables.
        """
        count = len(self.keys)
        assert ids.keys()[:count] == self.keys, f"{ids.keys()}, not {self.keys}"
        # Lists, which other modules read, stand behind the single ids.
        single = ids.values()[: count * ids.stride()].view(count, ids.stride())
        vectors = F.embedding((single + self.first).T, self.joined).float()
        return KeyedTensor(self.keys, [vectors.shape[2]] * count, vectors.flatten(1))


def join_user_tables(towers: TwoTower, ranker: Ranker) -> None:
    """Join the tables that a request looks its user up in, where that can be done."""
    towers.user_tower.tables = _joined(towers.user_tower.tables)
    if towers.user_bias is not None:
        towers.user_bias.tables = _joined(towers.user_bias.tables)
    ranker.user_tables = _joined(ranker.user_tables)


def _joined(tables: Any) -> Any:
    # Rounded tables are of another type, and are looked up at once already.
    if type(tables) is not EmbeddingBagCollection:
        return tables
    is_single = [c.pooling == PoolingType.SUM for c in tables.embedding_bag_configs()]
    return JoinedTables(tables) if all(is_single) else tables
