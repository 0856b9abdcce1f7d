"""A run whose ranker was refitted: what is served, judged, packed and audited is it."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import polars as pl
import pytest
from trained_run import SETTINGS, STEADY, metrics, predicted_alone, train_ranker

from torchrec_adrec.cli.evaluate import ranking
from torchrec_adrec.config.run import load_config
from torchrec_adrec.distributed import checkpoint
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.runs.stages import CONFIG, RANKING, is_done
from torchrec_adrec.serve.bundle import served_files
from torchrec_adrec.serve.recommender import Recommender
from torchrec_adrec.tasks.sharded import final_checkpoint
from torchrec_adrec.tasks.task import build_task
from torchrec_adrec.training.ledger_report import audit_stage
from torchrec_adrec.training.open_evaluator import open_evaluator
from torchrec_adrec.training.refit import FIRST_FIT

REFIT = (
    *SETTINGS,
    STEADY,
    "ranking.refit=true",
    "ranking.epochs=2",
    "train.ledger=true",  # which changes nothing, so that the towers of `run` fit
)


@pytest.fixture(scope="module")
def refitted(
    run: Path, process: Process, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("refitted") / "run"
    shutil.copytree(run, out)
    train_ranker(out, load_config(None, REFIT), process)
    return out


def test_the_refit_serves_and_the_first_fit_is_not_read(refitted: Path) -> None:
    served = Recommender.load(refitted)
    (best, *_) = served.recommend({}).ads.to_dicts()
    clicks = []
    for folder in ("ranking", f"ranking/{FIRST_FIT}"):
        schema = served.scorer.schema
        model = build_task("ranking", schema, load_config(None, REFIT)).eval()
        checkpoint.load(final_checkpoint(refitted / folder), model, schema)
        clicks.append(predicted_alone(model, served, best["ad_id"])["click"])
    assert best["click"] == pytest.approx(clicks[0], rel=1e-5)
    assert best["click"] != pytest.approx(clicks[1], rel=1e-3)
    assert not any(FIRST_FIT in name for name in served_files(refitted))


def test_evaluate_prints_the_test_figures_of_the_refit(
    refitted: Path,
    process: Process,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        "torchrec_adrec.distributed.process.process_group",
        lambda device: nullcontext(process),
    )
    ranking(refitted, refitted / "ranking" / CONFIG)
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    reported = metrics(refitted, "ranking")
    assert "valid" not in printed
    for name, figure in reported["test"]["click"].items():
        assert printed["test"]["click"][name] == pytest.approx(figure, rel=1e-6), name
    of_first = json.loads(
        (refitted / "ranking" / FIRST_FIT / "metrics.json").read_text()
    )
    assert of_first["test"]["click"]["auc"] != reported["test"]["click"]["auc"]


def test_rows_that_it_has_seen_judge_nothing(refitted: Path, process: Process) -> None:
    config = load_config(refitted / "ranking" / CONFIG)
    trained_on = {"ranking": ("train", "valid"), "retrieval": ("train",)}
    for task, splits in trained_on.items():
        evaluator, model, _ = open_evaluator(task, refitted, config, process)
        assert evaluator.trained_on == splits
        assert evaluator.has("test")
        assert evaluator.has("valid") == ("valid" not in splits)
        with pytest.raises(AssertionError, match=f"seen the rows of {splits[-1]}"):
            evaluator.logits(model, splits[-1])


def test_the_ledger_has_every_row_of_both_splits(refitted: Path) -> None:
    splits = {
        name: refitted / "data" / name / "*.parquet" for name in ("train", "valid")
    }
    rows = sum(
        len(pl.read_parquet(path, columns=["ad_id"])) for path in splits.values()
    )
    epochs = audit_stage(refitted / "ranking")
    assert all(epoch.is_whole for epoch in epochs)
    # All whole steps of 128 rows, up to the share at which the first fit was best.
    train = metrics(refitted, "ranking")["train"]
    assert train["planned_steps"] == 2 * (rows // 128)
    assert sum(epoch.rows for epoch in epochs) == train["steps"] * 128


def test_a_ranker_without_a_refit_is_another_one(refitted: Path) -> None:
    config = load_config(refitted / "ranking" / CONFIG)
    assert is_done(RANKING, config, refitted)
    ranking = config.ranking.model_copy(update={"refit": False})
    assert not is_done(
        RANKING, config.model_copy(update={"ranking": ranking}), refitted
    )
