"""What the columns tell of p(click): by a loop over all that they leave open, and
against the truth of the rows themselves.
"""

from math import comb, cos, exp, factorial, pi, sin
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import prepare_world

from torchrec_adrec.errors import ManifestError
from torchrec_adrec.evaluation.attainable import KnownRows
from torchrec_adrec.evaluation.known_world import expected_auc, expected_metrics

DAYS = 14


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tenth of the rows has an unknown ad, about as many an unknown user."""
    folder = tmp_path_factory.mktemp("attainable") / "data"
    prepare_world(folder, min_count=60, rows=80_000, ads=300, users=1200)
    return folder


@pytest.fixture(scope="module")
def known(data: Path) -> KnownRows:
    return KnownRows.of(data)


@pytest.fixture(scope="module")
def attainable(known: KnownRows) -> np.ndarray:
    return known.attainable("test")


def cohorts(known: KnownRows) -> dict[str, np.ndarray]:
    user, ad = (known.rows[n].to_numpy() for n in ("user", "ad"))
    missing = known.rows["number"].is_null().to_numpy()
    unknown = ~known.known_users[user] & ~missing
    rare = ~known.known_ads[ad]
    return {
        "all known": ~missing & ~unknown & ~rare,
        "no user": missing & ~rare,
        "unknown user": unknown & ~rare,
        "unknown ad": ~missing & ~unknown & rare,
        "neither known": (missing | unknown) & rare,
    }


def poisson(count: int, rate: float) -> float:
    return exp(-rate) * rate**count / factorial(count)


def by_hand(known: KnownRows, row: dict[str, Any], time: np.ndarray) -> float:
    """Try every user, ad and day in plain Python, as docs/known_world.md says."""
    world, users, ads = known.world, known.world.users, known.world.ads
    hour, number, shown = row["hour"], row["user"], row["ad"]
    quarter = [[sum(x > c for c in (-0.24, 0, 0.24)) for x in v] for v in users.vector]
    times = [t for t in time if int(t % 1 * 24) == hour]
    above = below = 0.0
    for day in sorted({int(t) for t in times}):
        of_day = [t for t in times if int(t) == day]
        t = sum(of_day) / len(of_day)
        for u in range(len(users.group)):
            if row["number"] is not None and known.known_users[number]:
                fits = u == number
            else:
                fits = users.group[u] == users.group[number] and all(
                    row[f"C{4 + a}"] is None or quarter[u][a] == quarter[number][a]
                    for a in range(8)
                )
                fits &= row["number"] is None or not known.known_users[u]
            if not fits:
                continue
            rate = exp(1 + 1.5 * users.activity[u])
            weight = len(of_day) * (u + 10) ** -0.5
            for name, mean, less in (("I1", 1, 0), ("I2", 2, 2), ("I6", 5, 0)):
                if row[name] is not None:
                    weight *= poisson(row[name] + less, mean * rate)
            angle = world.config.drift * t / DAYS
            taste = cos(angle) * users.vector[u] + sin(angle) * users.turn[u]
            shares = [
                exp(4 * world.centre[users.group[u]] @ ads.vector[a]) / (a + 40)
                if ads.birth[a] <= t
                else 0.0
                for a in range(len(ads.birth))
            ]
            for a, share in enumerate(shares):
                if known.known_ads[shown]:
                    fits = a == shown
                else:
                    fits = ads.campaign[a] == ads.campaign[shown]
                    fits &= not known.known_ads[a]
                if not fits:
                    continue
                low, place = 0.3 + 0.4 * a / len(shares), row["position"] - 1
                p_place = comb(4, place) * low**place * (1 - low) ** (4 - place)
                logit = -2.8 + users.activity[u] + ads.quality[a]
                logit += world.config.affinity * float(taste @ ads.vector[a])
                logit += world.fit[row["device"], ads.campaign[a] % 10]
                logit += 0.3 * cos(2 * pi * (hour - 20) / 24)
                p = 1 / (1 + exp(-logit)) / (place + 1) ** 0.5
                w = weight * share / sum(shares) * p_place
                above, below = above + w * p, below + w
    return above / below


def test_it_is_the_mean_over_all_that_the_columns_leave_open(
    known: KnownRows, attainable: np.ndarray
) -> None:
    time = known.truth["time"].to_numpy()
    for name, rows in cohorts(known).items():
        for i in np.flatnonzero(rows)[:4]:
            row = known.rows.row(int(i), named=True)
            assert attainable[i] == pytest.approx(by_hand(known, row, time)), name


def test_no_cohort_is_better_or_worse_than_it_says(
    known: KnownRows, attainable: np.ndarray
) -> None:
    """Fails where a column is read that says nothing, or one that says much is not:
    the true p of rows averages to what their columns tell, in every cohort and bin.
    """
    p = known.truth["p_click"].to_numpy()
    for name, rows in cohorts(known).items():
        assert rows.sum() > 100, name
        off = (p - attainable)[rows]
        assert abs(off.mean()) < 4 * off.std() / np.sqrt(len(off)), name
        slope = np.cov(p[rows], attainable[rows])[0, 1] / attainable[rows].var(ddof=1)
        assert slope == pytest.approx(1, abs=0.1), name
        assert (off.std() < 0.005) == (name == "all known")
    for rows in np.array_split(np.argsort(attainable), 10):
        off = (p - attainable)[rows]
        assert abs(off.mean()) < 4 * off.std() / np.sqrt(len(off))


def test_what_training_days_tell_is_less(
    known: KnownRows, attainable: np.ndarray
) -> None:
    """The rule knows most, then its columns, then the columns on other days."""
    p = known.truth["p_click"].to_numpy()
    before = known.attainable("train")
    aucs = [expected_auc(score, p) for score in (p, attainable, before, p * 0 + 0.5)]
    assert aucs[0] == pytest.approx(expected_metrics(p)["auc"])
    assert aucs[0] > aucs[1] + 0.002 and aucs[1] > aucs[2] + 0.002
    assert aucs[3] == 0.5


def test_other_rows_than_those_of_the_truth_are_refused(
    data: Path, tmp_path: Path
) -> None:
    part = next((data / "test").glob("*.parquet"))
    for path in ("truth", "train", "test"):
        (tmp_path / path).mkdir()
        for file in (data / path).iterdir():
            (tmp_path / path / file.name).symlink_to(file)
    changed = pl.read_parquet(part).with_columns(pl.col("click").shift(1, fill_value=0))
    (tmp_path / "test" / part.name).unlink()
    changed.write_parquet(tmp_path / "test" / part.name)
    (tmp_path / "synthetic.tsv").symlink_to(data / "synthetic.tsv")
    with pytest.raises(ManifestError, match="are not those of the last rows of"):
        KnownRows.of(tmp_path)
