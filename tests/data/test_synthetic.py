from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from torchrec_adrec.config import SyntheticConfig
from torchrec_adrec.data.adapters import criteo, synthetic
from torchrec_adrec.data.bad_rows import BadRows

SMALL = SyntheticConfig(rows=5000, ads=200, users=300)
DEMO = SyntheticConfig(rows=120_000, ads=2000, users=8000)


def read(path: Path) -> pl.DataFrame:
    bad = BadRows()
    frame = pl.concat(criteo.read([path], bad, 1 << 20))
    assert bad.count == 0
    return frame


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    texts = []
    for i, seed in enumerate((1, 1, 2)):
        synthetic.write(SMALL, seed, tmp_path / f"{i}.tsv")
        texts.append((tmp_path / f"{i}.tsv").read_bytes())
    assert texts[0] == texts[1] != texts[2]
    assert len(read(tmp_path / "0.tsv")) == 5000


def test_the_creative_determines_the_ad(tmp_path: Path) -> None:
    synthetic.write(SMALL, 0, tmp_path / "a.tsv")
    frame = read(tmp_path / "a.tsv")
    for name in ("C2", "C14", "C18", "C25"):
        assert frame.group_by("C15").agg(pl.col(name).n_unique())[name].max() == 1


def test_clicks_follow_the_rule_and_the_rule_has_an_auc() -> None:
    """The figure that the README names: what the truth itself reaches."""
    world = synthetic.World(DEMO, seed=0)
    rng = np.random.default_rng(1)
    user = rng.integers(DEMO.users, size=200_000)
    ad = world._show(user, rng)
    truth = world.probability(user, ad)
    click = rng.random(len(truth)) < truth
    assert roc_auc_score(click, truth) == pytest.approx(0.717, abs=0.003)
    for rows in np.array_split(np.argsort(truth), 20):
        expected = truth[rows].mean()
        error = np.sqrt(expected * (1 - expected) / len(rows))
        assert abs(click[rows].mean() - expected) < 4 * error
