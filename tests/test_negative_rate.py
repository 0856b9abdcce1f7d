"""A ranker that read few rows without a click predicts as if it had read them all."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from trained_run import SETTINGS, STEADY, train_ranker

from torchrec_adrec.config.run import load_config
from torchrec_adrec.distributed import checkpoint
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import CheckpointError, ConfigError
from torchrec_adrec.evaluation.predict import split_logits
from torchrec_adrec.schema import Schema
from torchrec_adrec.serve.recommender import Recommender
from torchrec_adrec.tasks.sharded import final_checkpoint, restore_whole
from torchrec_adrec.tasks.task import build_task
from torchrec_adrec.training.conditions import check_conditions
from torchrec_adrec.training.ledger_report import audit_stage

RATE = 0.25
SETTING = (
    *SETTINGS,
    STEADY,
    f"ranking.negative_rate={RATE}",
    "ranking.conditional={engagement: {given: click}, value: {given: click, train_on:"
    " all}}",
    "train={batch_size: 64, epochs: 4, patience: null, evaluate_every: 0}",
    "train.ledger=true",
)


@pytest.fixture(scope="module")
def trained(
    run: Path, process: Process, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run whose ranker was trained on a quarter of the rows without a click."""
    out = tmp_path_factory.mktemp("sampled") / "run"
    shutil.copytree(run, out)
    train_ranker(out, load_config(None, SETTING), process)
    return out


def test_predictions_are_those_of_all_rows(trained: Path, process: Process) -> None:
    schema = Schema.load(trained / "data/schema.json")
    model, _ = restore_whole("ranking", trained, schema)
    rows = split_logits(model, trained / "data/train", schema, process, 512)
    columns = pl.read_parquet(trained / "data/train/*.parquet")
    for name, (predicted, observed) in rows.predictions(schema).items():
        # A label that nobody looked at without a click is 0 there.
        label = columns[name].fill_nan(0)
        assert len(observed) == len(label)
        assert observed.mean() == pytest.approx(label.mean(), rel=1e-4)
        # A model that had learnt its rows by heart would be too high on those that it
        # did not read; this one is small. Without the correction the clicks would be
        # predicted twice as high.
        assert predicted.mean() == pytest.approx(observed.mean(), rel=0.15), name


def test_few_rows_are_read_each_once_an_epoch(trained: Path) -> None:
    click = pl.read_parquet(trained / "data/train/*.parquet")["click"]
    clicks, others = int((click == 1).sum()), int((click == 0).sum())
    for epoch in audit_stage(trained / "ranking"):
        assert epoch.is_whole
        assert epoch.rows == pytest.approx(clicks + RATE * others, rel=0.05)


def test_the_correction_is_a_part_of_the_checkpoint(trained: Path) -> None:
    schema = Schema.load(trained / "data/schema.json")
    saved = final_checkpoint(trained / "ranking")
    for setting in ("", "ranking.negative_rate=0.5"):
        config = load_config(None, [*SETTINGS, *([setting] if setting else [])])
        model = build_task("ranking", schema, config)
        if setting:
            checkpoint.load(saved, model, schema)
            correction = model.state_dict()["model.final_logits.correction"]
            assert correction.tolist() == pytest.approx([np.log(RATE), 0, 0])
        else:
            with pytest.raises(CheckpointError, match=r"final_logits\.correction"):
                checkpoint.load(saved, model, schema)


def test_what_is_served_is_corrected_and_multiplied_out(trained: Path) -> None:
    served = Recommender.load(trained, rank_by="click * 1000 + value")
    (best, *_) = served.recommend({}).ads.to_dicts()
    user, ads = served.user_input({}), np.array([best["ad_id"]])
    ranker: Any = served.scorer.ranker
    ad = served.scorer.features(ads)
    with torch.inference_mode():
        vectors = ranker.regroup(ranker.look_up(user, ad))
        raw = ranker.members(vectors, user.dense, ad.dense)[0, 0].double()
    click = torch.sigmoid(raw[0] + np.log(RATE)).item()
    engagement = click * torch.sigmoid(raw[1]).item()
    value = click * served.scorer.schema.labels[2].mean * raw[2].exp().item()
    expected = [click, engagement, value, click * 1000 + value]
    names = ("click", "engagement", "value", "rank_score")
    assert [best[name] for name in names] == pytest.approx(expected, rel=1e-4)


def test_a_condition_that_the_rows_contradict_is_refused(tmp_path: Path) -> None:
    ranking = load_config(None, ["ranking.conditional={buys: {given: click}}"]).ranking
    (tmp_path / "train").mkdir()
    rows = pl.DataFrame({"click": [1.0] * 99 + [0.0], "buys": [1.0] * 99 + [1.0]})
    path = tmp_path / "train/part-00000.parquet"
    rows.write_parquet(path)
    check_conditions("ranking", ranking, tmp_path)
    # Validation rows count once a refit reads them.
    (tmp_path / "valid").mkdir()
    rows[-1:].write_parquet(tmp_path / "valid/part-00000.parquet")
    check_conditions("ranking", ranking, tmp_path)
    refitted = ranking.model_copy(update={"refit": True})
    with pytest.raises(ConfigError, match=r"2\.0% of the buys in the"):
        check_conditions("ranking", refitted, tmp_path)
    pl.concat([rows, rows[-1:]]).write_parquet(path)
    check_conditions("retrieval", ranking, tmp_path)
    with pytest.raises(ConfigError, match=r"2\.0% of the buys in the"):
        check_conditions("ranking", ranking, tmp_path)
