"""Every switch of the second stage at once: what is evaluated is what is served."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from trained_run import SETTINGS, STEADY, make_stages, metrics

from torchrec_adrec.arrays import Columns, Float64s
from torchrec_adrec.config.run import load_config
from torchrec_adrec.data.request import RawUser, raw_user, raw_users
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.runs.stages import CONFIG
from torchrec_adrec.schema import AD_ID, LOG_Q, Side
from torchrec_adrec.serve.recommender import Recommender
from torchrec_adrec.tasks.blend import Blend, load_blend, save_blend
from torchrec_adrec.tasks.calibration import (
    Calibrations,
    Line,
    Ratio,
    load_calibrations,
    save_calibrations,
)
from torchrec_adrec.tasks.sharded import final_checkpoint, restore
from torchrec_adrec.training.blend import with_blend
from torchrec_adrec.training.evaluator import Evaluator

SWITCHES = (
    STEADY,
    STEADY.replace("ranking", "retrieval"),
    "retrieval={statistics: false, click_bias: true}",
    "data.synthetic.rows=2000",
    "data.statistics={cross_pairs: 2, folds: 3}",
    "train={epochs: 3, patience: null, evaluate_every: 0}",
    "ranking={model: dcnv2, tables: scratch, seeds: 2, blend: auto}",
    "ranking={calibration: platt, negative_rate: 0.5}",
    "ranking.conditional={engagement: {given: click, train_on: all}}",
    "ranking.conditional={value: {given: click}}",
)
# A line that is fitted to the blend changes nothing: these do, and not in any order.
BLEND = Blend(ranker=0.7, towers=0.5, intercept=-0.2)
LINES: Calibrations = {
    "click": Line(kind="platt", slope=0.6, intercept=-0.7),
    "engagement": Line(kind="platt", slope=1.3, intercept=0.4),
    "value": Ratio(kind="ratio", factor=1.7),
}


@pytest.fixture(scope="module")
def combined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("combined") / "run"
    with pytest.MonkeyPatch.context() as patch:
        for module in ("blend", "calibrate"):
            patch.setattr(f"torchrec_adrec.training.{module}.LEAST", 1)
        for switch in ("training.blend", "data.prepare.cross_switch"):
            patch.setattr(f"torchrec_adrec.{switch}.DEVIATIONS", -1e9)
        make_stages(out, load_config(None, [*SETTINGS, *SWITCHES]))
    return out


def test_a_calibration_is_fitted_to_the_blend(combined: Path) -> None:
    """The blend is the best line of both logits already: its own best line is none."""
    final = final_checkpoint(combined / "ranking")
    blend = load_blend(final)
    assert blend.towers > 0 and blend.ranker + blend.towers != pytest.approx(1, abs=0.1)
    line = load_calibrations(final)["click"].model_dump()
    assert line["slope"] == pytest.approx(1, abs=0.01)
    assert line["intercept"] == pytest.approx(0, abs=0.01)
    assert metrics(combined, "ranking")["calibration"]["click"] == line


@pytest.fixture(scope="module")
def by_hand(combined: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with a blend and calibrations that each change a prediction."""
    run = tmp_path_factory.mktemp("by_hand") / "run"
    shutil.copytree(combined, run)
    towers = final_checkpoint(run / "retrieval").origin
    final = final_checkpoint(run / "ranking")
    save_blend(final, BLEND.model_copy(update={"origin": towers}))
    save_calibrations(final, LINES)
    return run


def candidates(served: Recommender, run: Path, answer: pl.DataFrame) -> Columns:
    """The ads of an answer as rows of a split, each with the user of the request."""
    raw = raw_user(example_user(run), served.encoder.schema)
    user = served.encoder.encode(raw, Side.USER)
    rows = served.scorer.rows(answer[AD_ID].to_numpy())
    columns = {name: np.repeat(values, len(rows)) for name, values in user.items()}
    columns |= {name: c[rows] for name, c in served.scorer.columns.items()}
    columns |= served.crosses.of(raw, rows)
    labels = served.scorer.schema.label_names
    ones = np.ones(len(rows), dtype=np.float32)
    others = dict.fromkeys((*labels, LOG_Q), ones)
    return {AD_ID: answer[AD_ID].to_numpy()} | columns | others


def example_user(run: Path) -> RawUser:
    users = json.loads((run / "data/example_users.json").read_text())
    user: RawUser = users[3]
    return user


def evaluated(
    run: Path, rows: Columns, folder: Path, process: Process
) -> dict[str, Float64s]:
    """Predict rows as `adrec evaluate` does."""
    (folder / "test").mkdir()
    pl.DataFrame(rows).write_parquet(folder / "test/part-00000.parquet")
    config = load_config(run / "ranking" / CONFIG)
    schema = Recommender.load(run).scorer.schema
    model, final = restore("ranking", run, schema, config, process)
    evaluator = Evaluator(
        "ranking", folder, folder, schema, process, config.train, config.data.bounds
    )
    evaluator = with_blend(evaluator, config, run, final)
    logits = evaluator.logits(model, "test")
    predictions = logits.predictions(schema, load_calibrations(final))
    return {name: predicted for name, (predicted, _) in predictions.items()}


def test_what_is_served_is_what_is_evaluated(
    by_hand: Path, process: Process, tmp_path: Path
) -> None:
    served = Recommender.load(by_hand)
    answer = served.recommend(example_user(by_hand), top=50).ads
    rows = candidates(served, by_hand, answer)
    expected = evaluated(by_hand, rows, tmp_path, process)
    for name, predictions in expected.items():
        np.testing.assert_allclose(answer[name], predictions, rtol=2e-6, err_msg=name)
        assert np.ptp(predictions) > 1e-3


def test_many_users_get_what_each_of_them_gets(by_hand: Path) -> None:
    """With what a user's row alone decides: crosses, biases and the towers' scores."""
    served = Recommender.load(by_hand)
    users = json.loads((by_hand / "data/example_users.json").read_text())[:6]
    raw = raw_users(pl.DataFrame(users, strict=False), served.encoder.schema)
    answers = list(served.recommend_many(raw, top=50))
    for user, actual in zip(users, answers, strict=True):
        expected = served.recommend(user, top=50).ads.sort(AD_ID)
        actual = actual.sort(AD_ID)
        assert actual[AD_ID].to_list() == expected[AD_ID].to_list()
        for name in served.scorer.schema.label_names:
            np.testing.assert_allclose(actual[name], expected[name], rtol=1e-5)
    assert not np.allclose(answers[0]["click"], answers[1]["click"], rtol=1e-3)
