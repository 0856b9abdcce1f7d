"""What is reported of a label equals scikit-learn's figures; intervals cover."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    log_loss,
    mean_absolute_error,
    roc_auc_score,
    root_mean_squared_error,
)

from torchrec_adrec.errors import ConfigError
from torchrec_adrec.evaluation.label_report import judge_label
from torchrec_adrec.evaluation.metrics import click_metrics
from torchrec_adrec.evaluation.row_keys import RowKeys, read_row_keys
from torchrec_adrec.evaluation.user_lists import user_lists
from torchrec_adrec.schema import NO_USER, Label, Schema, Side, SparseFeature

USERS, EACH = 150, 8


def rows(seed: int = 0, spread: float = 1.5) -> tuple[Any, Any, Any]:
    """Predictions of users who differ more from each other than their rows do."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(USERS), EACH)
    logits = rng.normal(0, spread, USERS)[user] + rng.normal(0, 0.5, USERS * EACH)
    label = (rng.random(USERS * EACH) < expit(logits - 1)).astype(np.float64)
    return np.round(expit(0.8 * logits - 0.7), 2), label, user


def slope_of(predicted: Any, label: Any) -> float:
    x = np.log(predicted / (1 - predicted))[:, None]
    return float(LogisticRegression(C=np.inf, tol=1e-8).fit(x, label).coef_[0, 0])


def figures_of(predicted: Any, label: Any, user: Any) -> dict[str, float]:
    lists = user_lists(predicted, label, user)
    return {
        "auc": roc_auc_score(label, predicted),
        "log_loss": log_loss(label, predicted),
        "normalized_entropy": click_metrics(predicted, label)["normalized_entropy"],
        "calibration": predicted.mean() / label.mean(),
        "slope": slope_of(predicted, label),
        "grouped_auc": lists.grouped_auc,
        "ndcg@5": lists.metrics["ndcg@5"].mean(),
    }


def test_figures_and_intervals_are_those_of_resampled_users() -> None:
    """Each draw computed anew with scikit-learn, on rows copied as often as drawn."""
    predicted, label, user = rows()
    report = judge_label("binary", predicted, label, RowKeys(user))
    assert report["resampled_by"] == "user"
    rng = np.random.default_rng(1)
    # A user who is drawn twice is two users.
    copies = np.repeat(np.arange(USERS), EACH)
    draws = []
    for _ in range(100):
        drawn = rng.integers(USERS, size=USERS)
        index = (drawn[:, None] * EACH + np.arange(EACH)).ravel()
        draws.append(figures_of(predicted[index], label[index], copies))
    for name, expected in figures_of(predicted, label, user).items():
        assert report["figures"][name] == pytest.approx(expected, rel=1e-5)
        ends = np.percentile([draw[name] for draw in draws], [2.5, 97.5])
        allowed = 0.3 * (ends[1] - ends[0])
        assert report["intervals"][name] == pytest.approx(ends, abs=allowed), name


def test_rows_of_one_user_are_drawn_together() -> None:
    """By row the interval of a ratio would be far too narrow."""
    predicted, label, user = rows(spread=3)
    predicted = np.full_like(predicted, label.mean())

    def width(keys: RowKeys) -> float:
        report = judge_label("binary", predicted, label, keys)
        low, high = report["intervals"]["calibration"]
        return float(high - low)

    by_row = width(RowKeys())
    assert width(RowKeys(user)) > 1.3 * by_row
    without = width(RowKeys(np.full(len(user), NO_USER)))
    assert without == pytest.approx(by_row, rel=0.15)


def test_values_have_the_errors_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    observed = rng.exponential(3, 500)
    predicted = observed * rng.lognormal(0, 0.5, 500)
    report = judge_label("value", predicted, observed, RowKeys())
    expected = {
        "mae": mean_absolute_error(observed, predicted),
        "rmse": root_mean_squared_error(observed, predicted),
        "calibration": predicted.mean() / observed.mean(),
    }
    assert report["figures"] == pytest.approx(expected)
    for name, (low, high) in report["intervals"].items():
        assert low < expected[name] < high
    assert report["users"] is None and len(report["deciles"]) == 10
    assert sum(decile["rows"] for decile in report["deciles"]) == 500


def test_one_class_alone_has_no_auc_and_no_slope() -> None:
    report = judge_label("binary", np.array([0.1, 0.2]), np.zeros(2), RowKeys())
    for name in ("auc", "slope", "intercept", "normalized_entropy"):
        assert np.isnan(report["figures"][name])
        assert np.isnan(report["intervals"][name]).all()


def test_segments_hold_their_own_rows() -> None:
    names = np.array(["a", "b", "b", "b"])
    predicted, label = np.array([0.5, 0.2, 0.2, 0.2]), np.array([1.0, 0, 0, 1])
    keys = RowKeys(None, "C9", names)
    segment = judge_label("binary", predicted, label, keys)["segment"]
    assert segment["column"] == "C9"
    first, second = segment["values"]
    assert (first["value"], first["rows"]) == ("b", 3)
    assert first["ratio"] == pytest.approx(0.6) and second["ratio"] == 0.5


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Schema]:
    """Two files of a split: a column of three values, and one of many."""
    schema = Schema(
        dense=(),
        sparse=tuple(
            SparseFeature(
                name=name, side=side, source=name, kind="text", num_embeddings=size
            )
            for name, side, size in (
                ("city", Side.USER, 900),
                ("page", Side.USER, 4),
                ("format", Side.AD, 5),
            )
        ),
        labels=(Label(name="click"),),
    )
    (tmp_path / "test").mkdir()
    columns = {
        "city": [7] * 6,
        "page": [2, 0, 3, 1, 2, 2],
        "format": [2, 2, 3, 4, 2, 1],
        "user_key": [5, 6, NO_USER, 5, 6, 7],
    }
    frame = pl.DataFrame(columns)
    frame[:4].write_parquet(tmp_path / "test/part-00000-000000.parquet")
    frame[4:].write_parquet(tmp_path / "test/part-00001-000000.parquet")
    pl.DataFrame(
        {"format": [2, 3, 4, 1], "raw_format": ["text", "image", "video", "odd"]}
    ).write_parquet(tmp_path / "catalog.parquet")
    return tmp_path, schema


def test_keys_are_those_of_the_rows_that_were_asked_for(
    data: tuple[Path, Schema],
) -> None:
    folder, schema = data
    numbers = np.array([0, 2, 5])
    keys = read_row_keys(folder, "test", numbers, schema)
    assert keys.user is not None and keys.segment_names is not None
    assert keys.user.tolist() == [5, NO_USER, 7]
    # `format` is known in two of these rows and `page` in three.
    assert keys.segment == "page"
    assert keys.segment_names.tolist() == ["id 2", "id 3", "id 2"]
    by_ad = read_row_keys(folder, "test", numbers, schema, "format").segment_names
    assert by_ad is not None and by_ad.tolist() == ["text", "image", "rare"]
    with pytest.raises(ConfigError, match=r"train.segment is 'hour', expected .*page"):
        read_row_keys(folder, "test", numbers, schema, "hour")


def test_a_row_without_a_user_is_drawn_alone() -> None:
    keys = RowKeys(np.array([4, NO_USER, 4, NO_USER]))
    clusters = keys.clusters(4)
    assert clusters[0] == clusters[2]
    assert len(set(clusters.tolist())) == 3 and clusters.max() == 2


def test_many_rows_are_drawn_in_groups_with_the_same_spread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predicted, label, _ = rows()
    widths = []
    for most in (100_000, 200):
        monkeypatch.setattr("torchrec_adrec.evaluation.row_keys.MOST_CLUSTERS", most)
        assert RowKeys().clusters(len(label)).max() + 1 == min(len(label), most)
        report = judge_label("binary", predicted, label, RowKeys())
        low, high = report["intervals"]["auc"]
        widths.append(high - low)
    assert widths[1] == pytest.approx(widths[0], rel=0.2)
