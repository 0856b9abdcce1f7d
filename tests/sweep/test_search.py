"""A search: it finds the best, gives up early, and goes on after a kill."""

from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from stand_in import BEST_LR, CRASH, run_alone, standing_in, sweep, tables

from torchrec_adrec.errors import ConfigError

pytest.importorskip("optuna")

SEARCH = """
settings: {data.seed: 0}
seeds: [0, 1]
stages: [ranking]
search:
  ranking.optimizer.dense_lr: {low: 0.0001, high: 0.5, log: true}
  ranking.hidden: [[32], [64, 32]]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "search.yaml"
    path.write_text(f"config: {REPOSITORY / 'configs/movie_lab.yaml'}\n{SEARCH}")
    return path


def test_it_comes_near_the_best_and_gives_up_early(file: Path, tmp_path: Path) -> None:
    with standing_in() as launch:
        report = sweep(file, tmp_path / "out", trials=12)
    chosen = next(v for v in report["variants"] if v["name"] == report["chosen"])
    assert abs(chosen["settings"]["ranking.optimizer.dense_lr"] - BEST_LR) < 0.02
    assert chosen["settings"]["ranking.hidden"] in ([32], [64, 32])
    pruned = [v for v in report["variants"] if v["pruned"]]
    assert pruned and "given up" in (tmp_path / "out/sweep.md").read_text()
    # One that was given up has trained with its first seed, or not even that.
    rankers = [stage for stage, *_ in launch.launched if stage == "ranking"]
    assert len(rankers) < 2 * 12
    assert not list((tmp_path / "out/runs").glob("*/*/*.partial-*"))


def test_killed_it_tries_what_it_would_have_tried(file: Path, tmp_path: Path) -> None:
    with standing_in():
        sweep(file, tmp_path / "whole", trials=7)
    assert run_alone(file, tmp_path / "killed", 7, 9) == -9
    with standing_in():
        sweep(file, tmp_path / "killed", trials=7)
    assert tables(tmp_path / "killed") == tables(tmp_path / "whole")


def test_more_trials_go_on_from_there(file: Path, tmp_path: Path) -> None:
    with standing_in():
        sweep(file, tmp_path / "whole", trials=5)
        sweep(file, tmp_path / "parts", trials=3)
        report = sweep(file, tmp_path / "parts", trials=5)
    assert len(report["variants"]) == 5
    assert tables(tmp_path / "parts") == tables(tmp_path / "whole")


def test_a_trial_that_fails_counts_and_the_rest_goes_on(
    file: Path, tmp_path: Path
) -> None:
    layers = f"  ranking.layers: [1, {CRASH}]\n"
    file.write_text(file.read_text() + layers)
    with standing_in():
        report: Any = sweep(file, tmp_path / "out", trials=6)
    failed = [v for v in report["variants"] if v["failed"]]
    assert len(report["variants"]) == 6 and 0 < len(failed) < 6
    assert all(v["settings"]["ranking.layers"] == CRASH for v in failed)
    assert report["chosen"] not in [v["name"] for v in failed]


def test_figures_of_other_settings_are_not_mixed(file: Path, tmp_path: Path) -> None:
    with standing_in():
        sweep(file, tmp_path / "out", trials=1)
        file.write_text(file.read_text().replace("seeds: [0, 1]", "seeds: [0]"))
        with pytest.raises(ConfigError, match=r"another file.*\(seeds differ\)"):
            sweep(file, tmp_path / "out", trials=2)


def test_a_search_needs_trials(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the file has one"):
        sweep(file, tmp_path / "out")
