"""`adrec init` as a command: what it refuses, and what it tells."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from drafts import ROWS, columns, init
from typer.testing import CliRunner

from torchrec_adrec.cli import app as cli
from torchrec_adrec.cli.init import _summary
from torchrec_adrec.errors import AdRecError, ConfigError, DataError


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    pl.DataFrame(columns()).write_csv(tmp_path / "log.csv", separator=";")
    (tmp_path / "my.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"my\.yaml exists already"):
        init(tmp_path / "log.csv")
    assert (tmp_path / "my.yaml").read_text() == "mine"
    (tmp_path / "my.yaml").unlink()
    (tmp_path / "my.rewritten.csv").write_text("mine")
    with pytest.raises(ConfigError, match=r"my\.rewritten\.csv exists already"):
        init(tmp_path / "log.csv")
    assert not (tmp_path / "my.yaml").exists()
    assert (tmp_path / "my.rewritten.csv").read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", DataError, "empty file"),
        ("a\n1\n", DataError, "one column"),
        ("user,item,clicked\n", DataError, "none below the header"),
        ("user,item\n1,2\n1,3\n", DataError, "rows that are all clicks"),
        ("user,user\na,b\n", DataError, "stand there twice"),
    ],
)
def test_what_cannot_be_proposed_is_said(
    text: str, error: type[AdRecError], message: str, tmp_path: Path
) -> None:
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(error, match=message):
        init(tmp_path / "log.csv")


def test_try_prepares_the_first_rows(tmp_path: Path) -> None:
    rows = pl.DataFrame({**columns(), "ts": np.arange(ROWS)})
    rows.write_csv(tmp_path / "log.csv")
    args = ["init", str(tmp_path / "log.csv"), "--to", str(tmp_path / "my.yaml")]
    done = CliRunner().invoke(cli.app, [*args, "--try"])
    assert done.exit_code == 0, done.output
    assert "600 rows were read, 0 of them bad" in done.output
    assert "AUC alone" not in done.output
    assert f"adrec run --config {tmp_path / 'my.yaml'}" in done.output
    assert {p.name for p in tmp_path.iterdir()} == {"log.csv", "my.yaml"}


def test_try_names_bad_rows_of_the_users_file(tmp_path: Path) -> None:
    """And not of the copy that is tried, whose folder is gone by then."""
    rows = pl.DataFrame({**columns(4 * ROWS), "ts": np.arange(4 * ROWS)})
    text = rows.write_csv().splitlines()
    text[7] = "too,few"
    (tmp_path / "log.csv").write_text("\n".join(text) + "\n")
    args = ["init", str(tmp_path / "log.csv"), "--to", str(tmp_path / "my.yaml")]
    done = CliRunner().invoke(cli.app, [*args, "--try"])
    assert done.exit_code == 0, done.output
    assert "- `log.csv:8: 2 fields, expected 4`" in done.output
    assert "/tmp" not in done.output.replace(str(tmp_path), "")


def test_a_report_without_oddities_is_told_as_that() -> None:
    table = "# The data\n\n9 rows\n\n![the data](report.png)\n"
    assert _summary(f"{table}\n## Columns\n\nall") == "9 rows\n\nNothing looks odd."
    odd = f"{table}\n## Look at these\n\n- odd\n\n## Columns\n\nall"
    assert _summary(odd) == "9 rows\n\n- odd"
    bad = f"{odd}\n\n## Bad rows\n\nThe first ones:\n\n- x"
    assert _summary(bad) == "9 rows\n\n- odd\n\nBad rows: The first ones:\n\n- x"
