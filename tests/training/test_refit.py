"""A ranker that is fitted again with the validation rows, never with the test."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import criteo_line, prepare_criteo

from torchrec_adrec.config.run import Config, load_config
from torchrec_adrec.data.loader.row_groups import Split
from torchrec_adrec.distributed.checkpoint_files import Checkpoint
from torchrec_adrec.distributed.optimizer import StepOptimizer
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import CheckpointError, ConfigError
from torchrec_adrec.pipeline.report import served_checkpoint
from torchrec_adrec.tasks.blend import load_blend
from torchrec_adrec.tasks.calibration import load_calibrations
from torchrec_adrec.tasks.sharded import CHECKPOINTS, METRICS, final_checkpoint
from torchrec_adrec.training.first_fit import FirstFit
from torchrec_adrec.training.refit import FIRST_FIT, fit_stage
from torchrec_adrec.training.trainer import Trainer

ROWS = 1500
SETTINGS = (
    "train={batch_size: 64, epochs: 2, health_every: 0, dead_model: warn}",
    "retrieval={embedding_dim: 4, hidden: [8], output_dim: 4}",
    "ranking={model: dnn, hidden: [8], tables: scratch, refit: true}",
    "ranking.calibration=platt",
    "ranking.optimizer={tables_lr: 0.05, dense_lr: 0.01}",
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of eleven users, five of whom click more than the others."""
    folder = tmp_path_factory.mktemp("refit")
    random = np.random.default_rng(0).random(ROWS)
    clicks = [p < (0.7 if i % 11 < 5 else 0.2) for i, p in enumerate(random)]
    raw = folder / "raw.tsv"
    lines = [criteo_line(i, int(click)) for i, click in enumerate(clicks)]
    raw.write_text("\n".join(lines) + "\n")
    prepare_criteo(folder / "data", raw)
    return folder / "data"


def refit(data: Path, folder: Path, process: Process, *words: str) -> dict[str, Any]:
    """Refit a ranker alone."""
    folder.mkdir(exist_ok=True)
    config = load_config(None, [*SETTINGS, *words])
    with any_number_of_rows():
        return fit_stage("ranking", config, process, data, folder)


@contextmanager
def any_number_of_rows() -> Iterator[None]:
    """Let blends and calibrations be fitted on few rows."""
    with pytest.MonkeyPatch.context() as patch:
        for part in ("blend", "calibrate"):
            patch.setattr(f"torchrec_adrec.training.{part}.LEAST", 1)
        yield


@pytest.fixture(scope="module")
def fitted(
    rows: Path, process: Process, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("fitted") / "ranking"
    refit(rows, folder, process)
    return folder


def reported(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / METRICS).read_text()))


def turned(rows: Path, split: str, folder: Path) -> Path:
    """Copy the rows; those of a split that had a click have none, and the reverse."""
    data = folder / "data"
    shutil.copytree(rows, data)
    for path in (data / split).glob("*.parquet"):
        frame = pl.read_parquet(path)
        frame.with_columns(click=1 - pl.col("click")).write_parquet(path)
    return data


def test_a_planted_leak_from_test_rows_is_not_learned(
    rows: Path, fitted: Path, process: Process, tmp_path: Path
) -> None:
    """With the reverse of every test label, both fits have the very same weights."""
    data, folder = turned(rows, "test", tmp_path), tmp_path / "ranking"
    refit(data, folder, process)
    for before, after in ((fitted, folder), (fitted / FIRST_FIT, folder / FIRST_FIT)):
        assert reported(after)["checkpoint"] == reported(before)["checkpoint"]
        assert reported(after)["test"] != reported(before)["test"]


def test_it_reads_both_splits_whole(rows: Path) -> None:
    """In the order of time, each row under its own number."""
    train, valid, test = (rows / name for name in ("train", "valid", "test"))
    both = Split.open(train, valid)
    parts = [pl.read_parquet(folder / "*.parquet") for folder in (train, valid)]
    read = list(both.read(range(len(both.groups)), ["ad_id", "click"]))
    for name in ("ad_id", "click"):
        expected = np.concatenate([part[name].to_numpy() for part in parts])
        np.testing.assert_array_equal(
            np.concatenate([columns[name] for columns in read]), expected
        )
    assert both.num_rows == sum(map(len, parts)) < ROWS
    assert str(valid) in both.locate(both.num_rows - 1)
    assert str(test) not in str(both.groups)


def test_checkpoint_and_report_say_what_it_was_trained_on(fitted: Path) -> None:
    metrics, first = reported(fitted), reported(fitted / FIRST_FIT)
    assert metrics["trained_on"] == ["train", "valid"]
    assert first["trained_on"] == ["train"]
    for folder, said in ((fitted, metrics), (fitted / FIRST_FIT, first)):
        assert final_checkpoint(folder).state["trained_on"] == said["trained_on"]
    # Figures of rows that it was trained on would say nothing.
    assert "valid" not in metrics
    assert metrics["first_fit"]["valid"] == first["valid"]
    assert metrics["first_fit"]["checkpoint"] == first["checkpoint"]
    assert metrics["train"]["steps"] > first["train"]["steps"]
    assert "refitted on train + valid" in served_checkpoint(metrics)
    assert "refitted" not in served_checkpoint(first)


def test_calibration_and_blend_are_those_of_the_first_fit(fitted: Path) -> None:
    before, after = (final_checkpoint(f) for f in (fitted / FIRST_FIT, fitted))
    assert load_calibrations(after) == load_calibrations(before) != {}
    assert load_blend(after) == load_blend(before)
    assert reported(fitted)["blend"]["rows"] == 0  # there were no towers


def test_a_blend_with_towers_is_kept(
    rows: Path, process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchrec_adrec.training.blend.DEVIATIONS", -1e9)
    config = load_config(None, [*SETTINGS, "ranking.calibration=none"])
    towers = towers_of(rows, config, process, tmp_path / "retrieval")
    ranking = tmp_path / "ranking"
    ranking.mkdir()
    with any_number_of_rows():
        metrics = fit_stage("ranking", config, process, rows, ranking, towers)
    first = reported(ranking / FIRST_FIT)
    shared = ("serves", "ranker", "towers", "intercept", "origin", "rows", "gain")
    assert metrics["blend"]["rows"] > 0
    for name in shared:
        assert metrics["blend"][name] == first["blend"][name]
    # What is reported of the ranker alone is said of the one that serves.
    alone = [m["blend"]["ranker_alone"]["auc"] for m in (metrics, first)]
    assert alone[0] != alone[1]


def towers_of(data: Path, config: Config, process: Process, out: Path) -> Checkpoint:
    out.mkdir()
    Trainer("retrieval", config, process, data, out).fit()
    return final_checkpoint(out)


def test_it_ends_where_the_first_fit_was_best(
    rows: Path, process: Process, tmp_path: Path
) -> None:
    """At the same share of a schedule that more rows have made longer."""
    early = "train={epochs: 4, evaluate_every: 3, patience: 1}"
    steep = "ranking.optimizer={tables_lr: 1, dense_lr: 0.1, accumulate: 2}"
    folder = tmp_path / "ranking"
    metrics = refit(rows, folder, process, early, steep, "ranking.calibration=none")
    first = FirstFit.open(folder / FIRST_FIT)
    history = first.metrics["train"]["validation"]
    best, planned = first.checkpoint.step, first.metrics["train"]["planned_steps"]
    # Not where it stopped, which is an evaluation later.
    assert best == min(history, key=lambda pair: pair[1])[0] < history[-1][0] < planned
    assert metrics["train"]["validation"] == []
    longer = metrics["train"]["planned_steps"]
    assert longer > planned
    assert metrics["train"]["steps"] == pytest.approx(best / planned * longer, abs=2)
    assert metrics["train"]["steps"] % 2 == 0
    assert first.last_step(longer, 1) == round(best / planned * longer)


@pytest.mark.parametrize(
    ("best", "planned", "steps", "accumulate", "last"),
    [
        (40, 41, 46, 8, 46),  # 44.9 are nearer to six updates, but there are 46 steps
        (8, 10, 11, 16, 11),  # fewer steps than one update has
        (41, 41, 46, 8, 46),
        (30, 41, 46, 8, 32),
        (1, 41, 46, 8, 8),
    ],
)
def test_it_never_ends_after_its_schedule(
    tmp_path: Path, best: int, planned: int, steps: int, accumulate: int, last: int
) -> None:
    checkpoint = Checkpoint(tmp_path, {"step": best}, {})
    first = FirstFit(checkpoint, {"train": {"planned_steps": planned}})
    assert first.last_step(steps, accumulate) == last


def test_its_learning_rates_fall_over_the_whole_schedule(
    rows: Path, process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the first fit was best at a half, they end in the middle of their fall."""
    asked: list[tuple[int, int]] = []
    prepare_step = StepOptimizer.prepare_step

    def spy(self: StepOptimizer, step: int, steps: int) -> None:
        asked.append((step, steps))
        prepare_step(self, step, steps)

    monkeypatch.setattr(StepOptimizer, "prepare_step", spy)
    monkeypatch.setattr(FirstFit, "last_step", lambda self, steps, _: steps // 2)
    train = refit(rows, tmp_path / "ranking", process)["train"]
    assert asked[-1] == (train["steps"], train["planned_steps"])
    assert train["steps"] == train["planned_steps"] // 2


def test_an_interrupted_refit_goes_on_with_its_first_fit(
    rows: Path, fitted: Path, process: Process, tmp_path: Path
) -> None:
    """And it learns from validation rows: with other labels it has other weights."""
    data, folder = turned(rows, "valid", tmp_path), tmp_path / "ranking"
    shutil.copytree(fitted, folder)
    shutil.rmtree(folder / CHECKPOINTS)
    (folder / METRICS).unlink()
    before = reported(folder / FIRST_FIT)
    first = final_checkpoint(folder / FIRST_FIT).path.stat().st_mtime_ns
    again = refit(data, folder, process)
    assert again["checkpoint"] != reported(fitted)["checkpoint"]
    assert again["first_fit"]["checkpoint"] == before["checkpoint"]
    assert final_checkpoint(folder / FIRST_FIT).path.stat().st_mtime_ns == first


def test_weights_of_other_rows_are_not_gone_on_with(
    rows: Path, fitted: Path, process: Process, tmp_path: Path
) -> None:
    """Neither those of a refit by a ranker without one, nor the reverse."""
    for place, words, said in (
        (fitted, ["ranking.refit=false"], r"train \+ valid, expected train:"),
        (fitted / FIRST_FIT, [], r"on train, expected train \+ valid:"),
    ):
        folder = tmp_path / place.name
        shutil.copytree(place, folder)
        with pytest.raises(CheckpointError, match=said):
            refit(rows, folder, process, *words)


def test_without_validation_rows_there_is_nothing_to_add(
    rows: Path, process: Process, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(rows, data)
    shutil.rmtree(data / "valid")
    with pytest.raises(ConfigError, match=r"ranking\.refit is set, but .*valid has no"):
        refit(data, tmp_path / "ranking", process)
