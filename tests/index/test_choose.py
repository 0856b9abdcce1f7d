"""`auto` says what it chose and why, and scans where lists cannot serve."""

from typing import Any

import numpy as np
import pytest

from torchrec_adrec.index.choose import Choice, Purpose, choose, variance_kept
from torchrec_adrec.index.trial import Trial

D = 16


def clusters(rows: int, directions: int = D) -> Any:
    """Vectors of length 1 near 50 centres, in some of 16 directions."""
    rng = np.random.default_rng(rows)
    centres = np.random.default_rng(0).normal(size=(50, D))
    vectors = centres[rng.integers(50, size=rows)]
    vectors += rng.normal(scale=0.2, size=(rows, D))
    vectors[:, directions:] *= 0.01
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


def isotropic(rows: int) -> Any:
    vectors = np.random.default_rng(rows).normal(size=(rows, 64))
    return vectors.astype(np.float32)


def chosen(sample: Any, queries: Any, **purpose: Any) -> Choice:
    purposes: Any = {"count": 1_000_000, "k": 500, "target": 0.9} | purpose
    return choose(sample, queries, Purpose(**purposes))


@pytest.mark.parametrize(
    ("purpose", "kind", "reason"),
    [
        ({"count": 100_000}, "exact", "a scan of 100,000 ads is as fast"),
        ({"k": 10_001}, "exact", "1.0% of all ads are retrieved"),
        ({}, "ivf_sqfp16", "1,000,000 ads of width 16"),
        # 16 bytes of lists' numbers and ids, and a byte or two a dimension.
        ({"memory": 48e6}, "ivf_sqfp16", "directions keep"),
        ({"memory": 47e6}, "ivf_sq8", "ivf_sqfp16 does not fit into 0.044 GiB"),
        ({"memory": 1e6}, "ivf_sq8", "does not fit"),
        ({"count": 90_000, "memory": 5e6}, "ivf_sqfp16", "whole vectors do not fit"),
    ],
)
def test_rows_k_and_memory_decide(
    purpose: dict[str, Any], kind: str, reason: str
) -> None:
    choice = chosen(clusters(4000), clusters(50), **purpose)
    assert choice.kind.name == kind and reason in choice.reason


def test_few_directions_are_projected_on() -> None:
    choice = chosen(clusters(4000, directions=8), clusters(50, directions=8))
    assert choice.kind.name == "pca_ivf_sq8_refined"
    assert "8 directions keep 100.0% of the vectors" in choice.reason


def test_vectors_without_near_neighbours_are_scanned() -> None:
    """No list of them holds what is near to a user: nearly all must be read."""
    choice = chosen(isotropic(4000), isotropic(50))
    assert choice.kind.name == "exact" and "lists cannot serve" in choice.reason


def test_the_sample_is_searched_as_deep_as_all_ads_will_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    depths = []

    def watched(index: Any, exported: Any, queries: Any, k: int) -> Trial:
        depths.append(k)
        return Trial(index, exported, queries, k)

    monkeypatch.setattr("torchrec_adrec.index.choose.Trial", watched)
    chosen(clusters(4000), clusters(50))
    chosen(clusters(4000), clusters(50), k=9_999)
    assert depths == [2, 40]


def test_inner_products_are_around_zero() -> None:
    """A mean that all vectors share is a direction like any other."""
    vectors = isotropic(500)
    vectors[:, 0] += 1000
    assert variance_kept(vectors, 1) > 0.99
    assert variance_kept(isotropic(500), 64) == pytest.approx(1)
