from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from torchrec_adrec.config import SyntheticConfig
from torchrec_adrec.data.adapters import criteo, synthetic
from torchrec_adrec.data.bad_rows import BadRows

SMALL = SyntheticConfig(rows=5000, ads=200, users=300)


def read(path: Path) -> pl.DataFrame:
    bad = BadRows()
    frame = pl.concat(criteo.read([path], bad, 1 << 20))
    assert bad.count == 0
    return frame


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    texts = []
    for i, seed in enumerate((1, 1, 2)):
        synthetic.write(SMALL, seed, tmp_path / f"{i}.tsv", tmp_path / "truth")
        texts.append((tmp_path / f"{i}.tsv").read_bytes())
    assert texts[0] == texts[1] != texts[2]
    assert len(read(tmp_path / "0.tsv")) == 5000


def test_the_creative_determines_the_ad(tmp_path: Path) -> None:
    synthetic.write(SMALL, 0, tmp_path / "a.tsv", tmp_path / "truth")
    frame = read(tmp_path / "a.tsv")
    for name in ("C2", "C14", "C18", "C25"):
        assert frame.group_by("C15").agg(pl.col(name).n_unique())[name].max() == 1


def test_clicks_follow_the_written_truth(tmp_path: Path) -> None:
    """Fails when a row's truth is another row's."""
    config = SyntheticConfig(rows=200_000, ads=2000, users=8000)
    synthetic.write(config, 0, tmp_path / "a.tsv", tmp_path / "truth")
    click = read(tmp_path / "a.tsv")["click"].to_numpy()
    truth = pl.read_parquet(tmp_path / "truth")[synthetic.TRUTH].to_numpy()
    assert roc_auc_score(click, truth) == pytest.approx(0.717, abs=0.004)
    for rows in np.array_split(np.argsort(truth), 20):
        expected = truth[rows].mean()
        error = np.sqrt(expected * (1 - expected) / len(rows))
        assert abs(click[rows].mean() - expected) < 4 * error
