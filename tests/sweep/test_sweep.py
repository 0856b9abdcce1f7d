"""A sweep's runs and its table; the stages are stand-ins, but for one test."""

import fcntl
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, adrec
from stand_in import BEST_LR, CRASH, run_alone, standing_in, sweep, tables

from torchrec_adrec.errors import ConfigError, StageError
from torchrec_adrec.sweep import runner

VARIANTS = f"""
settings: {{data.seed: 0}}
seeds: [0, 1]
variants:
  slow: {{ranking.optimizer.dense_lr: 0.001}}
  best: {{ranking.optimizer.dense_lr: {BEST_LR}}}
  deep: {{ranking.layers: 2}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(f"config: {REPOSITORY / 'configs/movie_lab.yaml'}\n{VARIANTS}")
    return path


def test_the_best_on_validation_rows_is_chosen_and_alone_shows_test_figures(
    file: Path, tmp_path: Path
) -> None:
    with standing_in():
        report = sweep(file, tmp_path / "out")
        assert report["chosen"] == "best" and list(report["test"]) == ["best"]
        slow, best, _ = report["variants"]
        assert best["validation"]["auc"]["mean"] == pytest.approx(0.7995)
        assert best["validation"]["auc"]["sd"] == pytest.approx(0.001 / 2**0.5)
        assert slow["by_seed"]["1"]["auc"] == pytest.approx(0.79)
        page = (tmp_path / "out/sweep.md").read_text()
        assert (
            "| best | ranking.optimizer.dense_lr=0.01 | 0.7995 (0.0007) | chosen"
            in page
        )
        assert "0.7000" in page and page.count("0.7000") == 1
        assert (tmp_path / "out/sweep.png").stat().st_size > 0
        everything = sweep(file, tmp_path / "out", all_test=True)
    assert list(everything["test"]) == ["slow", "best", "deep"]
    assert "nothing may be chosen" in (tmp_path / "out/sweep.md").read_text()


def test_runs_of_the_same_inputs_share_a_stage(file: Path, tmp_path: Path) -> None:
    """One data set for all, towers for each seed, a ranker for each run; once each."""
    with standing_in() as launch:
        sweep(file, tmp_path / "out")
        stages = [(stage, seed) for stage, seed, _ in launch.launched]
        assert stages.count(("data", 0)) == 1 and ("data", 1) not in stages
        assert [s for s in stages if s[0] == "retrieval"] == [
            ("retrieval", 0),
            ("retrieval", 1),
        ]
        assert len([s for s in stages if s[0] == "ranking"]) == 6
        launch.launched.clear()
        sweep(file, tmp_path / "out")
        assert launch.launched == []
        changed = file.read_text().replace("layers: 2", "layers: 4")
        file.write_text(changed)
        sweep(file, tmp_path / "out")
    assert [stage for stage, *_ in launch.launched] == ["ranking", "ranking"]


def test_a_shared_stage_outlives_the_run_that_made_it(
    file: Path, tmp_path: Path
) -> None:
    with standing_in():
        sweep(file, tmp_path / "out")
    one, other = (
        tmp_path / f"out/runs/{name}/seed-0/data" for name in ("slow", "best")
    )
    assert (one / "metrics.json").samefile(other / "metrics.json")
    (one / "metrics.json").unlink()
    assert (other / "metrics.json").exists()


def test_without_a_seed_of_the_data_each_seed_has_its_own(
    file: Path, tmp_path: Path
) -> None:
    file.write_text(file.read_text().replace("settings: {data.seed: 0}", ""))
    with standing_in() as launch:
        sweep(file, tmp_path / "out")
    data = [(stage, seed) for stage, seed, _ in launch.launched if stage == "data"]
    assert data == [("data", 0), ("data", 1)]


def test_a_failure_is_named_and_the_rest_goes_on(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crash = file.read_text().replace("layers: 2", f"layers: {CRASH}")
    file.write_text(crash + "  last: {}\n")
    with standing_in():
        report = sweep(file, tmp_path / "out")
    assert report["chosen"] == "best"
    *_, deep, last = report["variants"]
    assert set(deep["failed"]) == {"0", "1"} and last["validation"]
    assert "ValueError: three layers" in deep["failed"]["1"]
    assert "FAILED deep, seed 1: stage ranking failed" in capsys.readouterr().out
    page = (tmp_path / "out/sweep.md").read_text()
    assert (
        "- deep, seed 0: stage ranking failed" in page and "failed: seed 0, 1" in page
    )


def test_a_variant_with_a_failed_run_is_not_chosen(file: Path, tmp_path: Path) -> None:
    with standing_in() as launch:
        make, best = launch.make, tmp_path / "out/runs/best/seed-1"

        def fail(stage: Any, config: Any, run: Path, display: Any) -> None:
            if run == best and stage.name == "ranking":
                raise StageError("no memory")
            make(stage, config, run, display)

        launch.make = fail  # type: ignore[method-assign]
        report = sweep(file, tmp_path / "out")
        assert report["chosen"] == "deep"
        assert report["variants"][1]["failed"] == {"1": "no memory"}
        launch.make = make  # type: ignore[method-assign]
        assert sweep(file, tmp_path / "out")["chosen"] == "best"


def test_a_stop_is_no_failure(file: Path, tmp_path: Path) -> None:
    with standing_in() as launch:

        def stop(*_: Any) -> None:
            raise StageError("stage retrieval failed with exit code 143", 15)

        launch.make = stop  # type: ignore[method-assign, assignment]
        with pytest.raises(StageError, match="143"):
            sweep(file, tmp_path / "out")
    assert not (tmp_path / "out/sweep.json").exists()


def test_killed_in_the_middle_it_ends_with_the_same_table(
    file: Path, tmp_path: Path
) -> None:
    with standing_in():
        sweep(file, tmp_path / "whole")
    assert run_alone(file, tmp_path / "killed", 0, 5) == -9
    assert list((tmp_path / "killed/runs").glob("*/*/ranking.partial-*"))
    before = json.loads((tmp_path / "killed/sweep.json").read_text())
    assert len(before["variants"]) == 1
    with standing_in() as launch:
        sweep(file, tmp_path / "killed")
    assert tables(tmp_path / "killed") == tables(tmp_path / "whole")
    assert "data" not in [stage for stage, *_ in launch.launched]


def test_it_waits_for_the_stage_that_a_killed_sweep_has_left(
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(runner, "LOOK_AGAIN_S", 0.01)
    run = tmp_path / "out/runs/slow/seed-0"
    run.mkdir(parents=True)
    lock = (run / ".lock-stage").open("a")
    fcntl.flock(lock, fcntl.LOCK_EX)
    threading.Timer(0.3, lock.close).start()
    with standing_in():
        report = sweep(file, tmp_path / "out")
    assert report["chosen"] == "best"
    assert capsys.readouterr().out.count("waiting: another command is at work") == 1


def test_two_sweeps_in_one_folder_are_refused(file: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with (tmp_path / "out/.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with standing_in(), pytest.raises(ConfigError, match="another command"):
            sweep(file, tmp_path / "out")


def test_trials_belong_to_a_search(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the file has none"):
        sweep(file, tmp_path / "out", trials=3)


@pytest.mark.slow
def test_real_runs_with_a_failure_and_a_kill(tmp_path: Path) -> None:
    """The command itself on a tiny world; a variant whose loss overflows fails."""
    path = tmp_path / "sweep.yaml"
    path.write_text(
        f"""
config: {REPOSITORY / "configs/movie_lab.yaml"}
settings:
  data: {{seed: 0, movie_lab: {{rows: 3000, users: 100, movies: 50}}}}
  train: {{epochs: 1, batch_size: 256, evaluate_every: 5, checkpoint_every: 5}}
seeds: [0]
stages: [export]
metric: export.recall@10
variants: {{plain: {{}}, broken: {{retrieval.optimizer.dense_lr: 1.0e+30}}}}
"""
    )
    args = ("sweep", path, "--out", tmp_path / "killed")
    words = [sys.executable, "-m", "torchrec_adrec", *map(str, args)]
    killed = subprocess.Popen(words, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    run = tmp_path / "killed/runs/plain/seed-0"
    while killed.poll() is None and not list(run.glob("retrieval*")):
        threading.Event().wait(0.05)
    killed.kill()
    killed.wait()
    done = adrec(*args)
    assert done.returncode == 1, done.stderr
    assert "failed: broken, seed 0: stage retrieval failed" in done.stdout
    report = json.loads((tmp_path / "killed/sweep.json").read_text())
    assert report["chosen"] == "plain"
    figures = report["variants"][0]["validation"]["recall@10"]
    assert 0 < figures["mean"] <= 1 and "recall@10" in report["test"]["plain"]
    whole = adrec("sweep", path, "--out", tmp_path / "whole")
    assert whole.returncode == 1
    again = json.loads((tmp_path / "whole/sweep.json").read_text())
    for one, other in zip(report["variants"], again["variants"], strict=True):
        assert one["by_seed"] == other["by_seed"]
    assert report["test"] == again["test"]
