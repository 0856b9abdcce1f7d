"""A model that is worse than what it is there to beat does not end without a word."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from torchrec_adrec.config.run import Config
from torchrec_adrec.evaluation.below import below_baselines, warn_below
from torchrec_adrec.pipeline import pipeline
from torchrec_adrec.pipeline.report import summary_table, wide_console, write_report
from torchrec_adrec.runs.stages import STAGES, stage_folder

MODELS = {"retrieval": "towers", "ranking": "ranker"}


def of_run(run: Path) -> dict[str, Any]:
    """The figures of a finished run, as the report gets them."""
    names = dict.fromkeys(STAGES, "metrics.json") | {"data": "report.json"}
    metrics = {
        name: json.loads((stage_folder(run, name) / file).read_text())
        for name, file in names.items()
    }
    speed = {"requests": 1, "milliseconds": {"total": 1.0}}
    return metrics | {"serve": speed}


def figures(auc: float, loss: float) -> dict[str, Any]:
    return {"test": {"click": {"auc": auc, "log_loss": loss}}}


def metrics_with(stage: str, auc: float, loss: float) -> dict[str, Any]:
    constant = {"test": {"auc": 0.5, "log_loss": 0.6}}
    regression = {"test": {"auc": 0.56, "log_loss": 0.55}}
    baselines = {"constant": constant, "logistic_regression": regression}
    return {"baselines": baselines, stage: figures(auc, loss)}


@pytest.mark.parametrize("stage", MODELS)
@pytest.mark.parametrize(
    ("auc", "loss", "words"),
    [
        (0.57, 0.54, []),
        (0.56, 0.6, []),
        (0.51, 0.59, ["AUC of the {}, 0.5100, is below 0.5600"]),
        (0.58, 0.61, ["log loss of the {}, 0.6100, is worse than 0.6000"]),
        (0.39, 0.7, ["AUC of the {}, 0.3900", "log loss of the {}, 0.7000"]),
        (float("nan"), 0.1, []),  # the test rows are all clicks: nothing to compare
    ],
)
def test_each_figure_that_a_baseline_does_better(
    stage: str,
    auc: float,
    loss: float,
    words: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = metrics_with(stage, auc, loss)
    lines = below_baselines(metrics)
    assert len(lines) == len(words)
    for line, word in zip(lines, words, strict=True):
        assert word.format(MODELS[stage]) in line
    with caplog.at_level(logging.WARNING):
        warn_below(metrics)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == lines


def test_recall_below_that_of_one_list_for_all() -> None:
    methods = {
        "towers": {"recall@10": 0.2, "mrr": 0.1},
        "popularity": {"recall@10": 0.3},
    }
    metrics = metrics_with("retrieval", 0.9, 0.1) | {
        "export": {"test": {"all": methods}}
    }
    assert below_baselines(metrics) == [
        "recall@10 of the towers, 0.2000, is below 0.3000 of the most shown ads for all"
    ]


def test_table_and_report_say_it(
    finished_run: Path, small_config: Config, tmp_path: Path
) -> None:
    metrics = of_run(finished_run)
    metrics["ranking"]["test"]["click"]["auc"] = 0.39
    console = wide_console()
    with console.capture() as printed:
        console.print(summary_table(metrics))
    write_report(small_config.seed, metrics, tmp_path)
    line = "the test AUC of the ranker, 0.3900, is below"
    for text in (printed.get(), (tmp_path / "report.md").read_text()):
        assert "WARNING" in text and line in text


def test_a_run_logs_it(
    finished_run: Path,
    small_config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """All stages are done; the ranker's figures are then made worse than they are."""
    metrics = of_run(finished_run)
    metrics["ranking"]["test"]["click"]["auc"] = 0.39
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    monkeypatch.setattr(pipeline, "metrics_of", lambda _, name: metrics[name])
    with caplog.at_level(logging.WARNING):
        pipeline.run_pipeline(small_config, run, "1x2")
    assert "the test AUC of the ranker, 0.3900, is below" in caplog.text
    assert "the test AUC of the ranker, 0.3900" in (run / "report.md").read_text()
