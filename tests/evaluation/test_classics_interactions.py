"""The clicks of a prepared data set, as the classics take them."""

from pathlib import Path

import polars as pl
import pytest

from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.data.adapters import sequences
from torchrec_adrec.data.prepare.prepare import prepare
from torchrec_adrec.errors import DataError
from torchrec_adrec.evaluation.classics.interactions import Interactions
from torchrec_adrec.evaluation.classics.report import sizes
from torchrec_adrec.schema import NO_USER


def _prepare_lines(lines: list[list[str]], folder: Path) -> None:
    """Prepare a file of a line a user; the data stand in `folder / "data"`."""
    path, out = folder / "a.txt", folder / "data"
    path.write_text("".join(" ".join(line) + "\n" for line in lines))
    out.mkdir()
    config = DataConfig.model_validate(
        {
            "adapter": "sequences",
            "raw": str(path),
            "split": {"by": "leave_one_out"},
            "min_count": 1,
        }
    )
    prepare(config, sequences.open_data(config), out)


def test_the_clicks_of_a_prepared_data_set(tmp_path: Path) -> None:
    """As `prepare` splits them; a test click that was clicked before is left out."""
    lines = [[f"u{u}", *(f"i{(u + j) % 9}" for j in range(5))] for u in range(12)]
    lines[0] = ["u0", "i0", "i1", "i2", "i3", "i1"]  # the last one comes back
    _prepare_lines(lines, tmp_path)
    out = tmp_path / "data"
    data = Interactions.load(out)
    assert len(data.users) == 12 and len(data.ids) == 9
    assert {n: t.nnz for n, t in data.splits.items()} == {
        "train": 36,
        "valid": 12,
        "test": 11,
    }
    assert data.repeated == {"train": 0, "valid": 0, "test": 1}
    assert not data.in_time_order
    known, held = data.known("test"), data.splits["test"]
    assert known.nnz == 48 and not known.multiply(held).nnz
    assert data.known("valid").nnz == 36
    # Later clicks have larger numbers: those of the validation are the latest.
    assert data.splits["valid"].data.min() > data.splits["train"].data.max()
    for part in (out / "train").glob("*.parquet"):
        pl.read_parquet(part).drop("user_key").write_parquet(part)
    with pytest.raises(DataError, match="the data name no user"):
        Interactions.load(out)


def test_clicks_without_a_user_are_left_out_and_counted(tmp_path: Path) -> None:
    lines = [[f"u{u}", *(f"i{(u + j) % 9}" for j in range(5))] for u in range(12)]
    _prepare_lines(lines, tmp_path)
    out = tmp_path / "data"
    nameless = Interactions.load(out).users[0]
    key = pl.col("user_key")
    for part in out.glob("t*/*.parquet"):  # train and test, not valid
        rows = pl.read_parquet(part)
        rows.with_columns(key.replace(int(nameless), NO_USER)).write_parquet(part)
    data = Interactions.load(out)
    assert data.nameless == {"train": 3, "valid": 0, "test": 1}
    assert data.splits["test"].nnz == 11
    assert sizes(data)["left_out_without_user"] == data.nameless
