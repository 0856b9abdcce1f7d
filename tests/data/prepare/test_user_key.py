"""Prepared rows hold the key of their user, whom the model may not know."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import prepare_world

from torchrec_adrec.config.data import DataConfig, SplitConfig, SyntheticConfig
from torchrec_adrec.data.adapters import open_data
from torchrec_adrec.data.prepare.prepare import prepare
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.runtime.ranks import SingleProcess
from torchrec_adrec.schema import NO_USER, USER_KEY


def test_rows_of_one_user_have_one_key_even_if_the_user_is_rare(tmp_path: Path) -> None:
    prepare_world(tmp_path, rows=3000, ads=50, users=100, min_count=1000)
    truth = pl.read_parquet(tmp_path / "truth/rows.parquet")
    parts = [pl.read_parquet(tmp_path / f"{s}/*.parquet") for s in ("train", "test")]
    # By time: the training rows are the first of the truth, the test rows the last.
    users = (truth["user"][: len(parts[0])], truth["user"][-len(parts[1]) :])
    for part, user in zip(parts, users, strict=True):
        frame = pl.DataFrame({"user": user, "key": part[USER_KEY]})
        known = frame.filter(pl.col("key") != NO_USER)
        assert 0.9 < len(known) / len(frame) < 1  # C3 is missing in 4% of the rows
        assert (known.group_by("user").agg(pl.col("key").n_unique())["key"] == 1).all()
        assert known["key"].n_unique() == known["user"].n_unique()
        assert np.isin(part["C3"].to_numpy(), [0, 1]).all()  # to the model all are rare


def test_unknown_users_are_in_no_split_by_user(tmp_path: Path) -> None:
    """Spread over the splits, they would be users whom training had seen."""
    config = DataConfig(
        adapter="synthetic",
        synthetic=SyntheticConfig(rows=3000, ads=50, users=100),
        split=SplitConfig(by="user"),
    )
    data = open_data(config, 0, tmp_path, SingleProcess())
    with pytest.raises(ConfigError, match="C3 names no user in some rows"):
        prepare(config, data, tmp_path)
