"""What another policy earns, by closed forms and on a log whose law is known."""

from typing import Any

import numpy as np
import pytest

from torchrec_adrec.arrays import Float64s
from torchrec_adrec.config.data import SyntheticConfig
from torchrec_adrec.data.known_world.law import Shown, World
from torchrec_adrec.data.known_world.log import Log
from torchrec_adrec.errors import DataError
from torchrec_adrec.evaluation.off_policy import LoggedRows, off_policy


def rows(**changes: Any) -> LoggedRows:
    """Four impressions of two ads, shown with 1/4 and 3/4; the policy shows the first.

    Its reward is 1 in every second row.
    """
    columns = {
        "reward": [1.0, 0.0, 1.0, 0.0],
        "propensity": [0.25, 0.75, 0.75, 0.75],
        "target": [1.0, 0.0, 0.0, 0.0],
        "predicted": [0.6, 0.0, 0.0, 0.0],
        "expected": [0.6, 0.6, 0.6, 0.6],
    }
    return LoggedRows(**{n: np.array(v) for n, v in (columns | changes).items()})


def figures(logged: LoggedRows) -> dict[str, float]:
    return logged.terms().figures()


def test_closed_forms() -> None:
    estimates = figures(rows())
    assert estimates["ips"] == 1  # (1 / 0.25) * 1 / 4
    assert estimates["snips"] == 1  # 4 * 1 / 4
    assert estimates["dr"] == pytest.approx(0.6 + 4 * (1 - 0.6) / 4)
    assert estimates["logged"] == 0.5 and estimates["mean_weight"] == 1


def test_the_logging_policy_itself_earns_what_it_earned() -> None:
    p = [0.25, 0.75, 0.75, 0.75]
    estimates = figures(rows(target=p))
    for name in ("ips", "snips", "logged"):
        assert estimates[name] == 0.5
    assert rows(target=p).effective == 4


def test_a_perfect_prediction_needs_no_reward() -> None:
    """The doubly robust estimate is then the expectation, whatever the propensities."""
    logged = rows(predicted=[1.0, 0.0, 1.0, 0.0], expected=[0.3, 0.5, 0.7, 0.1])
    assert figures(logged)["dr"] == pytest.approx(0.4)
    wrong = rows(
        predicted=[1.0, 0.0, 1.0, 0.0],
        expected=[0.3, 0.5, 0.7, 0.1],
        propensity=[0.9, 0.9, 0.9, 0.9],
    )
    assert figures(wrong)["dr"] == pytest.approx(0.4)


def test_weights_that_are_too_large_leave_the_normalised_estimate() -> None:
    """Propensities that are half of the right ones double IPS and leave SNIPS."""
    right, halved = (
        rows(propensity=np.array([0.25, 0.75, 0.75, 0.75]) / k, target=[0.5] * 4)
        for k in (1, 2)
    )
    assert figures(halved)["ips"] == pytest.approx(2 * figures(right)["ips"])
    assert figures(halved)["snips"] == pytest.approx(figures(right)["snips"])


@pytest.mark.parametrize(
    ("target", "effective"),
    [([0.75] * 4, 16 * 0.75), ([1, 0, 0, 0], 1), ([0, 0, 0, 0], 0)],
)
def test_effective_rows(target: list[float], effective: float) -> None:
    logged = rows(target=np.array(target, dtype=float))
    weight = logged.weight
    if effective in (0, 1):
        assert logged.effective == effective
    else:
        assert logged.effective == pytest.approx(weight.sum() ** 2 / (weight**2).sum())


def test_too_few_effective_rows_are_refused() -> None:
    user = np.arange(4)
    with pytest.raises(DataError, match=r"1 effective rows of 4 .* at least 2"):
        off_policy(rows(), user, 2, 0)
    assert off_policy(rows(), user, 1, 0)["effective_rows"] == 1


@pytest.mark.parametrize("wrong", [0.0, -0.1, 1.5, float("nan"), float("inf")])
def test_what_is_no_propensity_is_refused(wrong: float) -> None:
    with pytest.raises(DataError, match="propensity of logged row 2"):
        rows(propensity=[0.25, 0.75, wrong, 0.75])


@pytest.mark.parametrize(
    ("name", "wrong"), [("target", 1.1), ("reward", np.nan), ("predicted", np.inf)]
)
def test_what_is_not_finite_is_refused(name: str, wrong: float) -> None:
    with pytest.raises(DataError, match=f"{name} of logged row 0"):
        rows(**{name: [wrong, 0.0, 0.0, 0.0]})


def world_rows(factor: float = 1.0) -> tuple[LoggedRows, float]:
    """A known world's log, and what a policy that shows each ad evenly is worth.

    Args:
        factor: of the propensities; 1: they are right.
    """
    config = SyntheticConfig(
        rows=20_000, ads=30, users=50, cold_share=0, position_bias=0
    )
    world = World(config, 0)
    log = Log(world, 0)
    shown = log.block(0)
    user, ad = (shown[n].cast(int).to_numpy() for n in ("user", "ad"))
    group = world.users.group[user]
    share: Float64s = log.weight / log.weight.sum(axis=1, keepdims=True)
    ads = np.arange(config.ads)
    truth = np.zeros(len(shown))
    for each in ads:
        impressions = Shown(
            user,
            np.full_like(user, each),
            shown["time"].to_numpy(),
            np.ones_like(user),
            shown["device"].cast(int).to_numpy(),
        )
        truth += world.truth(impressions).p_click / config.ads
    half = shown["p_click"].to_numpy() / 2  # a model that predicts too little
    logged = LoggedRows(
        reward=shown["engagement"].is_not_null().cast(float).to_numpy(),
        propensity=factor * share[group, ad],
        target=np.full(len(shown), 1 / config.ads),
        predicted=half,
        expected=truth / 2,
    )
    return logged, float(truth.mean())


def test_a_known_law_is_recovered() -> None:
    logged, truth = world_rows()
    report = off_policy(logged, np.arange(len(logged.reward)), 100, 0)
    assert abs(report["logged"]["mean"] - truth) > 0.02, "another policy wrote the log"
    for name in ("ips", "snips", "dr"):
        low, high = report[name]["interval"]
        spread = high - low
        assert report[name]["mean"] == pytest.approx(truth, abs=spread)
    assert report["weights_fit"]


def test_wrong_propensities_show_in_the_weights() -> None:
    logged, _ = world_rows(factor=0.8)
    report = off_policy(logged, np.arange(len(logged.reward)), 100, 0)
    assert not report["weights_fit"]
    assert report["mean_weight"]["mean"] == pytest.approx(1.25, rel=0.1)
