"""Towers and ranker that read a history item by item, from the ads' own table."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from ranking_rows import SCHEMA, columns_of

from torchrec_adrec.batch import TowerInput, items_of
from torchrec_adrec.config.train import RankingConfig, RetrievalConfig
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.models.rankers.registry import build_ranker
from torchrec_adrec.models.two_tower import TwoTower
from torchrec_adrec.modules.embeddings import table_of
from torchrec_adrec.schema import Schema, SequenceFeature, Side

ROWS, ADS = 4, 6
LENGTHS = (0, 1, 3, 2)
OTHER = SequenceFeature(
    name="liked", side=Side.USER, source="liked", max_length=2, num_embeddings=5
)
# A list behind the history, and the item between other columns: places must not matter.
LISTS = SCHEMA.model_copy(
    update={
        "sequences": (*SCHEMA.sequences, OTHER),
        "sparse": (SCHEMA.sparse[3], *SCHEMA.sparse[:3]),
    }
)
NOT_SHARED = SCHEMA.model_copy(
    update={
        "sequences": (SCHEMA.sequences[0].model_copy(update={"shares_ids_with": None}),)
    }
)


def rows(side: Side, count: int) -> TowerInput:
    """Rows with an empty, a short and a full history."""
    columns = columns_of(side, count)
    if side == Side.USER:
        for place, name in enumerate(LISTS.sequences[0].columns):
            is_behind = np.resize(LENGTHS, count) <= place
            columns[name][is_behind] = -1
        rng = np.random.default_rng(1)
        for name in OTHER.columns:
            columns[name] = rng.integers(5, size=count).astype(np.int32)
    return tower_input(columns, LISTS, side)


def towers(encoder: str = "attention", schema: Schema = LISTS) -> TwoTower:
    torch.manual_seed(0)
    config = RetrievalConfig.model_validate(
        {"embedding_dim": 8, "hidden": [], "history": {"encoder": encoder}}
    )
    return TwoTower(schema, config).eval()


@pytest.fixture(params=["attention", "gru"])
def model(request: pytest.FixtureRequest) -> Iterator[TwoTower]:
    yield towers(request.param)


def test_one_table_gives_histories_and_ads_their_vectors(model: TwoTower) -> None:
    names = [table_of(name) for name, _ in model.named_parameters() if table_of(name)]
    vectors = [name for name in names if "+" not in name]
    assert sorted(vectors) == [
        *("ad_campaign", "ad_format", "user_country", "user_device", "user_liked")
    ]
    table = model.ad_tower.items
    assert table is not None
    user, ad, _ = model(rows(Side.USER, ROWS), rows(Side.AD, ADS))
    for side in (user, ad):
        (gradient,) = torch.autograd.grad(
            side.sum(), [*table.parameters()], retain_graph=True
        )
        assert gradient.abs().sum() > 0


def test_each_tower_alone_is_what_both_are_together(model: TwoTower) -> None:
    """Also with more ads than users, as negatives are added, and for one user."""
    users, ads = rows(Side.USER, ROWS), rows(Side.AD, ADS)
    together = model(users, ads)
    torch.testing.assert_close(model.encode_users(users), together[0])
    torch.testing.assert_close(model.ad_tower(ads), together[1])
    one = tower_input({n: c[2:3] for n, c in _columns(users).items()}, LISTS, Side.USER)
    torch.testing.assert_close(model.encode_users(one), together[0][2:3])


def _columns(users: TowerInput) -> dict[str, np.ndarray]:
    """The columns that an input was made of."""
    numbers = zip(LISTS.dense_of(Side.USER), users.dense.T.numpy(), strict=True)
    columns = {feature.name: values for feature, values in numbers}
    for name, bag in users.sparse.to_dict().items():
        if name in [f.name for f in LISTS.sequences]:
            places = bag.to_padded_dense(3, -1).int().numpy()
            columns |= {f"{name}:{i}": places[:, i] for i in range(3)}
        else:
            columns[name] = bag.values().numpy()
    return columns


def test_every_place_of_a_history_counts_and_other_lists_stay_bags(
    model: TwoTower,
) -> None:
    before = model.encode_users(rows(Side.USER, ROWS))
    for name in ("seen:0", "seen:1", "seen:2", "liked:0"):
        changed = rows(Side.USER, ROWS)
        ids = changed.sparse[name[:-2]]
        places = ids.offsets()[:-1][ids.lengths() > int(name[-1])] + int(name[-1])
        ids.values()[places] = (ids.values()[places] + 1) % 5
        moved = (model.encode_users(changed) - before).abs().amax(dim=1) > 1e-5
        expected = ids.lengths() > int(name[-1])
        assert moved.tolist() == expected.tolist(), name


def test_ids_of_both_sides_are_looked_up_at_once() -> None:
    users, ads = rows(Side.USER, ROWS), rows(Side.AD, ADS)
    items = items_of(users, ads)
    assert items.keys() == ["items"] and items.stride() == ROWS + ADS
    assert items.lengths().tolist() == [*LENGTHS, *[1] * ADS]
    values = [*users.sparse["seen"].values(), *ads.sparse["campaign"].values()]
    assert items.values().tolist() == [int(value) for value in values]
    assert items.length_per_key() == [len(values)]


def test_a_history_of_other_ids_cannot_be_read_in_order() -> None:
    with pytest.raises(ConfigError, match="no list of the users has those"):
        towers("gru", NOT_SHARED)
    config = RankingConfig(history="tokens")
    with pytest.raises(ConfigError, match="no list of the users has those"):
        build_ranker(NOT_SHARED, config, 8)
    build_ranker(NOT_SHARED, config.model_copy(update={"model": "dnn"}), 8)


def test_tokens_of_a_ranker_end_with_the_history() -> None:
    """A row's scores do not depend on the histories beside it, nor on their ends."""
    torch.manual_seed(0)
    ranker = build_ranker(LISTS, RankingConfig(history="tokens", layers=2), 8).eval()
    assert ranker.items is not None
    positions = ranker.get_parameter("head.history.positions")
    torch.nn.init.normal_(positions)
    users, ads = rows(Side.USER, ROWS), rows(Side.AD, ROWS)
    together = ranker(users, ads)
    columns, of_ads = _columns(users), columns_of(Side.AD, ROWS)
    for row in range(ROWS):
        one = [
            tower_input({n: c[row : row + 1] for n, c in part.items()}, LISTS, side)
            for side, part in ((Side.USER, columns), (Side.AD, of_ads))
        ]
        torch.testing.assert_close(ranker(*one), together[row : row + 1])
        # A served request: the user's one row for all ads.
        served = ranker(one[0], ads)[row]
        torch.testing.assert_close(served, together[row])
    # What stands in a place without an item is not read, so its position counts not.
    with torch.no_grad():
        positions[1:] *= -1
    longer = [length > 1 for length in LENGTHS]
    moved = (ranker(users, ads) - together).abs().amax(dim=1) > 1e-5
    assert moved.tolist() == longer
