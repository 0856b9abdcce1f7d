"""The law against its equations written out a second time, and its log against both."""

from math import cos, exp, pi, sin

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from torchrec_adrec.config.data import SyntheticConfig
from torchrec_adrec.data.known_world import law as known_world
from torchrec_adrec.data.known_world import log as known_log
from torchrec_adrec.data.known_world.law import World
from torchrec_adrec.data.known_world.log import Log
from torchrec_adrec.errors import DataError

SMALL = SyntheticConfig(rows=5000, ads=120, users=60)


def by_hand(
    world: World, user: int, ad: int, time: float, position: int, device: int
) -> tuple[float, float, float]:
    """docs/known_world.md for one impression, in plain Python."""
    law, users, ads = world.config, world.users, world.ads
    angle = law.drift * time / law.days
    taste = cos(angle) * users.vector[user] + sin(angle) * users.turn[user]
    affinity = float(taste @ ads.vector[ad])
    logit = -2.8 + users.activity[user] + ads.quality[ad] + law.affinity * affinity
    logit += world.fit[device, ads.campaign[ad] % 10]
    logit += 0.3 * cos(2 * pi * (int(24 * (time % 1)) - 20) / 24)
    click = 1 / (1 + exp(-logit)) / position**law.position_bias
    engagement = 1 / (1 + exp(-(ads.depth[ad] + 2 * affinity)))
    return click, engagement, ads.price[ad] * (1 + 3 * engagement)


@pytest.fixture(scope="module")
def log_rows() -> pl.DataFrame:
    """200,000 rows of the demo's world."""
    config = SyntheticConfig(rows=200_000, ads=2000, users=8000)
    log = Log(World(config, 0), 0)
    return pl.concat([log.block(i) for i in range(log.blocks)])


def clicked(rows: pl.DataFrame) -> pl.Series:
    return rows["engagement"].is_not_null()


def assert_means(expected: pl.Series, actual: pl.Series) -> None:
    """In 20 bins of the expectation, the mean is within 4 standard errors of it."""
    expectation, outcome = (x.cast(pl.Float64).to_numpy() for x in (expected, actual))
    for rows in np.array_split(expected.arg_sort().to_numpy(), 20):
        error = outcome[rows].std(ddof=1) / np.sqrt(len(rows))
        assert abs(outcome[rows].mean() - expectation[rows].mean()) < 4 * error


@pytest.mark.parametrize("by", ["click", "value"])
@pytest.mark.parametrize(("day", "device"), [(0.0, 0), (6.8, 2)])
def test_the_true_top_is_that_of_a_loop(by: str, day: float, device: int) -> None:
    """Fails when an unborn ad is in it, or when drift, hour or device is left out."""
    world = World(SMALL.model_copy(update={"ads": 900}), 3)
    users = np.array([0, 7, 59])
    # 300: numpy's partition happens to sort parts of 256 and fewer.
    tops = world.true_top(users, 300, by, day, device)  # type: ignore[arg-type]
    for user, top in zip(users, tops, strict=True):
        worth = {}
        for ad in np.flatnonzero(world.ads.birth <= day).tolist():
            click, _, value = by_hand(world, user, ad, day, 1, device)
            worth[ad] = click * value if by == "value" else click
        assert top.tolist() == sorted(worth, key=worth.__getitem__, reverse=True)[:300]


def test_click_value_device_and_time_have_tops_of_their_own() -> None:
    world, users = World(SMALL, 3), np.arange(60)
    tops = [
        world.true_top(users, 10, by, day, device).tolist()  # type: ignore[arg-type]
        for by, day, device in (
            ("click", 0, 0),
            ("value", 0, 0),
            ("click", 0, 2),
            ("click", 13.9, 0),
        )
    ]
    assert all(tops.count(top) == 1 for top in tops)


def test_chunks_of_users_do_not_change_the_top(monkeypatch: pytest.MonkeyPatch) -> None:
    world, users = World(SMALL, 3), np.arange(60)
    whole = world.true_top(users, 5, day=9)
    monkeypatch.setattr(known_world, "CHUNK_CELLS", 700)
    assert (world.true_top(users, 5, day=9) == whole).all()
    assert world.true_top(users[:0], 5).shape == (0, 5)


def test_more_than_are_born_is_refused() -> None:
    world = World(SMALL, 3)
    born = int((world.ads.birth <= 0).sum())
    assert 0 < born < 120
    assert world.true_top(np.arange(2), born).shape == (2, born)
    with pytest.raises(DataError, match=f"k is {born + 1}, expected 1 to the {born}"):
        world.true_top(np.arange(2), born + 1)


def test_rows_follow_the_written_equations() -> None:
    world = World(SMALL, 1)
    rows = Log(world, 1).block(0)
    names = ("user", "ad", "time", "position", "device")
    for row in rows[::25].iter_rows(named=True):
        actual = row["p_click"], row["p_engagement"], row["expected_value"]
        expected = by_hand(world, *(row[name] for name in names))
        assert actual == pytest.approx(expected, rel=1e-12)
    assert set(rows["position"]) == {1, 2, 3, 4, 5} and set(rows["device"]) == {0, 1, 2}


def test_what_happened_follows_what_was_expected(log_rows: pl.DataFrame) -> None:
    """Fails when a row's truth is another row's, or when p leaves out the position."""
    assert_means(log_rows["p_click"], clicked(log_rows))
    clicks = log_rows.filter(clicked(log_rows))
    assert_means(clicks["p_engagement"], clicks["engagement"])
    assert_means(clicks["expected_value"], clicks["value"])
    assert clicks["value"].to_numpy().min() > 0
    assert clicks["value"].null_count() == 0
    assert log_rows.filter(~clicked(log_rows))["value"].null_count() == len(
        log_rows
    ) - len(clicks)


def test_a_model_of_the_true_logit_reaches_the_bayes_figures(
    log_rows: pl.DataFrame,
) -> None:
    p, click = log_rows["p_click"].to_numpy(), clicked(log_rows).to_numpy()
    logit = np.log(p / (1 - p))[:, None]
    train, test = slice(0, None, 2), slice(1, None, 2)
    model = LogisticRegression(C=1e6).fit(logit[train], click[train])
    predicted = model.predict_proba(logit[test])[:, 1]
    for judge in (roc_auc_score, log_loss):
        assert judge(click[test], predicted) == pytest.approx(
            judge(click[test], p[test]), abs=1e-3
        )
    assert model.coef_[0, 0] == pytest.approx(1, abs=0.03)
    assert model.intercept_[0] == pytest.approx(0, abs=0.04)


def test_ads_are_shown_by_the_written_policy(log_rows: pl.DataFrame) -> None:
    """Never before birth; else by popularity and the taste of the user's group."""
    world = World(SyntheticConfig(rows=200_000, ads=2000, users=8000), 0)
    birth, ad = world.ads.birth, log_rows["ad"].to_numpy()
    assert (birth[ad] <= log_rows["time"].to_numpy()).all()
    assert (birth[ad] > 0).any() and len(np.unique(birth)) == 14
    last = log_rows.filter(pl.col("time") >= birth.max())
    group = world.users.group[last["user"].to_numpy()]
    weight = np.exp(4 * world.centre @ world.ads.vector.T) / (np.arange(2000) + 40)
    share = (weight / weight.sum(axis=1, keepdims=True))[group].mean(axis=0)
    for top in np.argsort(-share)[:30]:
        error = np.sqrt(share[top] / len(last))
        assert abs((last["ad"] == top).mean() - share[top]) < 4 * error


def test_rows_stand_in_time_order_and_most_at_noon(log_rows: pl.DataFrame) -> None:
    time = log_rows["time"].to_numpy()
    assert (np.diff(time) >= 0).all() and time[0] >= 0 and time[-1] < 14
    traffic = np.bincount((time % 1 * 24).astype(int), minlength=24)
    assert traffic[12] > 3 * traffic[0]


def test_popular_ads_stand_higher(log_rows: pl.DataFrame) -> None:
    """So a naive click rate confounds an ad's place with its appeal."""
    assert_means(2.2 + 1.6 * log_rows["ad"] / 2000, log_rows["position"])


def test_any_block_can_be_drawn_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_log, "BLOCK_ROWS", 2000)
    log = Log(World(SMALL, 0), 0)
    assert log.blocks == 3
    forwards = [log.block(i) for i in range(3)]
    backwards = [Log(World(SMALL, 0), 0).block(i) for i in (2, 1, 0)]
    assert pl.concat(forwards).equals(pl.concat(backwards[::-1]))
    assert [len(block) for block in forwards] == [2000, 2000, 1000]
    assert forwards[0]["user"].to_list() != forwards[1]["user"].to_list()


def test_each_part_of_a_world_is_drawn_apart() -> None:
    """Neither the rows nor the number of users change the ads."""
    one = World(SMALL, 0)
    other = World(SMALL.model_copy(update={"rows": 9, "users": 70}), 0)
    for mine, theirs in zip(one.ads, other.ads, strict=True):
        assert (mine == theirs).all()
    assert not (one.ads.quality == World(SMALL, 1).ads.quality).any()


def test_settings_without_effect_at_zero() -> None:
    still = World(SMALL.model_copy(update={"drift": 0, "cold_share": 0}), 0)
    assert (still.ads.birth == 0).all()
    assert np.allclose(still.tastes(np.arange(9), 14.0), still.users.vector[:9])
    alike = World(SMALL.model_copy(update={"affinity": 0}), 0)
    assert len(np.unique(alike.true_top(np.arange(60), 5), axis=0)) == 1
    angle = np.arccos(
        (World(SMALL, 0).tastes(np.arange(9), 14.0) * still.users.vector[:9]).sum(1)
    )
    assert np.allclose(angle, SMALL.drift)
