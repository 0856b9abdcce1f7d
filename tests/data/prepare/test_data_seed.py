"""`data.seed` draws the rows, whatever the seed of the run is."""

import json
from pathlib import Path

from conftest import REPOSITORY
from typer.testing import CliRunner

from torchrec_adrec.cli.app import app


def hashes(run: Path, *seeds: str) -> dict[str, str]:
    """Prepare a small world; return the hash of the rows of each split."""
    config = REPOSITORY / "configs/movie_lab.yaml"
    args = ["prepare", "--config", str(config), "--out", str(run), *seeds]
    small = "data.movie_lab={rows: 300, users: 30, movies: 20}"
    result = CliRunner().invoke(app, [*args, small])
    assert result.exit_code == 0, result.output
    splits = json.loads((run / "data/report.json").read_text())["splits"]
    return {name: split["hash"] for name, split in splits.items()}


def test_runs_of_one_data_seed_have_the_same_rows(tmp_path: Path) -> None:
    """A sweep prepares them once, so another seed must not mean other rows."""
    first = hashes(tmp_path / "first", "seed=0", "data.seed=3")
    assert hashes(tmp_path / "other", "seed=1", "data.seed=3") == first
    assert hashes(tmp_path / "alone", "seed=3") == first
    assert hashes(tmp_path / "rows", "seed=0", "data.seed=4") != first
