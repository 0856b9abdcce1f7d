"""Two runs are compared on the same rows, or not at all."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
from trained_run import SETTINGS, STEADY, metrics, train_ranker

from torchrec_adrec.config.run import EvaluationConfig, load_config
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import DataError
from torchrec_adrec.evaluation.funnel.report import evaluate_funnel
from torchrec_adrec.pipeline.compare import compare, comparison_table
from torchrec_adrec.pipeline.report import wide_console
from torchrec_adrec.runs.stages import CONFIG
from torchrec_adrec.serve.recommender import Recommender


@pytest.fixture(scope="module")
def pair(
    run: Path, tmp_path_factory: pytest.TempPathFactory, process: Process
) -> tuple[Path, Path]:
    """A run and the same with another ranker, both with a judged funnel."""
    runs = []
    for name, more in (("a", ()), ("b", (STEADY,))):
        config = load_config(None, [*SETTINGS, *more])
        out = tmp_path_factory.mktemp("compare") / name
        shutil.copytree(run, out)
        config.save(out / CONFIG)
        if more:
            shutil.rmtree(out / "ranking")
            train_ranker(out, config, process)
        settings = EvaluationConfig(funnel_users=20)
        evaluate_funnel(out, Recommender.load(out), settings, 0)
        runs.append(out)
    return runs[0], runs[1]


def test_figures_are_those_that_the_runs_report(
    pair: tuple[Path, Path], process: Process
) -> None:
    comparison = compare(*pair, 0, process)
    by_metric = {d.metric: d for d in comparison.differences}
    assert not comparison.notes
    for name in ("auc", "log_loss"):
        reported = [metrics(run, "ranking")["test"]["click"][name] for run in pair]
        difference = by_metric[f"click, {name}"]
        assert [difference.a, difference.b] == pytest.approx(reported, abs=1e-6)
        assert difference.low <= difference.b - difference.a <= difference.high
    assert by_metric["click, auc"].a != by_metric["click, auc"].b
    towers = metrics(pair[0], "export")["test"]["all"]["towers"]
    recall = by_metric["retrieval, recall@10"]
    assert recall.a == recall.b == pytest.approx(towers["recall@10"])
    assert recall.low == recall.high == 0 and recall.verdict == "open"
    worth = by_metric["funnel, worth of 10 ads"]
    for run, served in zip(pair, (worth.a, worth.b), strict=True):
        users = pl.read_parquet(run / "funnel/users.parquet")
        assert served == pytest.approx(users["funnel"].mean())
    console = wide_console()
    with console.capture() as printed:
        console.print(comparison_table(comparison, *pair))
    assert "funnel, worth of 10 ads" in printed.get()
    assert json.loads(json.dumps(comparison.to_json()))["metrics"][0]["verdict"]


def test_other_rows_are_refused(
    pair: tuple[Path, Path], tmp_path: Path, process: Process
) -> None:
    other = tmp_path / "other"
    shutil.copytree(pair[1], other)
    path = other / "data/report.json"
    report = json.loads(path.read_text())
    right = report["splits"]["test"]["hash"]
    report["splits"]["test"]["hash"] = "0123456789abcdef"
    path.write_text(json.dumps(report))
    with pytest.raises(DataError, match=f"{right}, those of .* 0123456789abcdef"):
        compare(pair[0], other, 0, process)


def test_rows_in_another_order_are_refused(
    pair: tuple[Path, Path], tmp_path: Path, process: Process
) -> None:
    other = tmp_path / "other"
    shutil.copytree(pair[1], other)
    for part in (other / "data/test").glob("*.parquet"):
        pl.read_parquet(part)[::-1].write_parquet(part)
    with pytest.raises(DataError, match="stand in another order"):
        compare(pair[0], other, 0, process)


def test_what_cannot_be_paired_is_left_out_with_a_reason(
    pair: tuple[Path, Path], tmp_path: Path, process: Process
) -> None:
    other = tmp_path / "other"
    shutil.copytree(pair[1], other)
    settings = EvaluationConfig(funnel_users=15)
    evaluate_funnel(other, Recommender.load(other), settings, 0)
    notes = compare(pair[0], other, 0, process).notes
    assert [note.partition(";")[0] for note in notes] == [
        "funnel: other users were drawn"
    ]
    path = other / "funnel/metrics.json"
    report = json.loads(path.read_text())
    report["made_from"]["ranking"] = "another"
    path.write_text(json.dumps(report))
    assert "was made again since" in compare(pair[0], other, 0, process).notes[0]
    shutil.rmtree(other / "funnel")
    assert "has none; run `adrec" in compare(pair[0], other, 0, process).notes[0]
