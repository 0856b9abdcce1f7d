"""The user's tables as one give the very vectors that the separate ones give."""

from typing import Any

import pytest
import torch
from ranking_rows import SCHEMA, columns_of
from torch import Tensor
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from torchrec_adrec.batch import TowerInput
from torchrec_adrec.config.train import RankingConfig, RetrievalConfig
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.models.rankers.ranker import Ranker
from torchrec_adrec.models.rankers.registry import build_ranker
from torchrec_adrec.models.two_tower import TwoTower
from torchrec_adrec.schema import Schema, Side
from torchrec_adrec.serve.joined_tables import JoinedTables, join_user_tables

IDS = SCHEMA.model_copy(update={"sequences": ()})


def models(schema: Schema, **towers: Any) -> tuple[TwoTower, Ranker]:
    torch.manual_seed(0)
    ranking = RankingConfig.model_validate({"model": "dcnv2"})
    retrieval = RetrievalConfig.model_validate({"click_bias": True, **towers})
    return TwoTower(schema, retrieval).eval(), build_ranker(schema, ranking, 8).eval()


def users(count: int, schema: Schema) -> TowerInput:
    return tower_input(columns_of(Side.USER, count), schema, Side.USER)


@torch.inference_mode()
def vectors(towers: TwoTower, ranker: Ranker, rows: TowerInput) -> list[Tensor]:
    return [
        towers.encode_users(rows),
        *towers.biases_of(Side.USER, rows),
        ranker.vectors_of(Side.USER, rows),
    ]


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_vectors_are_the_same(precision: str) -> None:
    towers, ranker = models(IDS, tables_precision=precision)
    several = [users(count, IDS) for count in (1, 5)]
    before = [vectors(towers, ranker, rows) for rows in several]
    join_user_tables(towers, ranker)
    assert isinstance(towers.user_tower.tables, JoinedTables)
    assert towers.user_bias is not None
    assert isinstance(towers.user_bias.tables, JoinedTables)
    assert isinstance(ranker.user_tables, JoinedTables)
    after = [vectors(towers, ranker, rows) for rows in several]
    for rows, expected in zip(after, before, strict=True):
        assert all(map(torch.equal, rows, expected)) and len(rows) == 3


def test_no_table_is_held_twice() -> None:
    towers, ranker = models(IDS)
    join_user_tables(towers, ranker)
    tables: Any = ranker.user_tables
    parts = [bag.weight for bag in tables.tables.embedding_bags.values()]
    assert torch.equal(torch.cat(parts), tables.joined)
    storages = {part.untyped_storage().data_ptr() for part in (*parts, tables.joined)}
    assert len(storages) == 1
    assert "joined" not in "".join(ranker.state_dict())


def test_lists_are_averaged_by_their_own_table() -> None:
    towers, ranker = models(SCHEMA)
    join_user_tables(towers, ranker)
    assert type(ranker.user_tables) is EmbeddingBagCollection


def test_other_keys_are_refused() -> None:
    """An id would be looked up in the table of another feature."""
    towers, ranker = models(IDS)
    join_user_tables(towers, ranker)
    turned = IDS.model_copy(update={"sparse": IDS.sparse[::-1]})
    with pytest.raises(AssertionError, match="country"):
        ranker.vectors_of(Side.USER, users(1, turned))
