"""A ranker with crosses, blended with its towers: what is reported is served."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import roc_auc_score
from trained_run import SETTINGS, STEADY, make_stages, metrics

from torchrec_adrec.arrays import Float64s
from torchrec_adrec.cli.evaluate import ranking
from torchrec_adrec.config.run import load_config
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.data.request import raw_user
from torchrec_adrec.distributed import checkpoint
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import CheckpointError, ConfigError, ManifestError
from torchrec_adrec.evaluation.predict import split_logits
from torchrec_adrec.runs.stages import CONFIG
from torchrec_adrec.schema import AD_ID, Schema, Side
from torchrec_adrec.serve.proof import Proof
from torchrec_adrec.serve.recommender import Recommender
from torchrec_adrec.tasks.blend import Blend, load_blend, save_blend
from torchrec_adrec.tasks.sharded import final_checkpoint, restore_whole
from torchrec_adrec.training.blend import fit_blend


@pytest.fixture(scope="module")
def blended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run in which every switch says yes."""
    out = tmp_path_factory.mktemp("blended") / "run"
    steady = STEADY.replace("ranking", "retrieval")
    steps = (
        "data.synthetic.rows=2000",
        "train.epochs=1",
        "train.patience=null",
        "train.evaluate_every=0",
    )
    last = (steady, *steps, "data.statistics={cross_pairs: 2, folds: 3}")
    ranking = {"model": "dcnv2", "tables": "scratch", "blend": "auto"}
    model = [f"ranking.{name}={value}" for name, value in ranking.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchrec_adrec.training.blend.LEAST", 1)
        for switch in ("training.blend", "data.prepare.cross_switch"):
            patch.setattr(f"torchrec_adrec.{switch}.DEVIATIONS", -1e9)
        make_stages(out, load_config(None, [*SETTINGS, STEADY, *last, *model]))
    return out


def blended_by_hand(run: Path, rows: pl.DataFrame) -> Float64s:
    """Return the click of rows of a split, by both models in one piece."""
    schema = Schema.load(run / "data/schema.json")
    ranker, final = restore_whole("ranking", run, schema)
    towers, _ = restore_whole("retrieval", run, schema)
    columns = {name: rows[name].to_numpy() for name in rows.columns}
    user = tower_input(columns, schema, Side.USER)
    ad = tower_input(columns, schema, Side.AD)
    joined = tower_input(columns, schema.joined, Side.AD)
    assert joined.dense.shape[1] == ad.dense.shape[1] + len(schema.cross) > 0
    with torch.inference_mode():
        first = ranker.model(user, joined)[:, 0].double()
        second = towers.model(user, ad)[2].double()
    weights = load_blend(final)
    assert weights.towers > 0
    z = weights.ranker * first + weights.towers * second + weights.intercept
    return np.asarray(torch.sigmoid(z).numpy())


def test_reported_is_the_blend(blended: Path) -> None:
    test = pl.read_parquet(blended / "data/test/*.parquet")
    predicted = blended_by_hand(blended, test)
    auc = roc_auc_score(test["click"], predicted)
    reported = metrics(blended, "ranking")
    assert reported["test"]["click"]["auc"] == pytest.approx(auc, abs=1e-6)
    mean = predicted.mean() / test["click"].to_numpy().mean()
    calibration = reported["test"]["click"]["calibration"]
    assert calibration == pytest.approx(mean, rel=1e-5)
    blend, towers = reported["blend"], metrics(blended, "retrieval")["test"]["click"]
    assert blend["serves"] in ("blend", "towers") and blend["towers"] > 0
    assert blend["towers_alone"]["auc"] == pytest.approx(towers["auc"], abs=1e-6)
    assert blend["ranker_alone"]["auc"] != pytest.approx(auc, abs=1e-6)


def test_the_blend_is_fitted_on_the_validation_rows(
    blended: Path, process: Process
) -> None:
    """Fitted again on these rows it is the same, on others another one."""
    schema = Schema.load(blended / "data/schema.json")
    ranker, final = restore_whole("ranking", blended, schema)
    towers, origin = restore_whole("retrieval", blended, schema)
    kept = load_blend(final)
    for split in ("train", "valid", "test"):
        folder = blended / "data" / split
        of_ranker = split_logits(ranker, folder, schema.joined, process, 512)
        of_towers = split_logits(towers, folder, schema, process, 512)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("torchrec_adrec.training.blend.LEAST", 1)
            patch.setattr("torchrec_adrec.training.blend.DEVIATIONS", -1e9)
            again = fit_blend(
                of_ranker.logits[:, 0],
                of_towers.logits[:, 0],
                of_ranker.labels[:, 0],
                origin.origin,
            ).blend
        weights = [(b.ranker, b.towers, b.intercept) for b in (kept, again)]
        is_same = weights[0] == pytest.approx(weights[1], abs=0.01)
        assert is_same == (split == "valid"), weights


def test_the_command_evaluates_what_is_served(
    blended: Path,
    process: Process,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The blend, and not the ranker alone."""
    monkeypatch.setattr(
        "torchrec_adrec.distributed.process.process_group",
        lambda device: nullcontext(process),
    )
    ranking(blended, blended / "ranking" / CONFIG)
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    reported = metrics(blended, "ranking")["test"]
    for label, figures in reported.items():
        expected = pytest.approx(figures, abs=1e-6, nan_ok=True)
        assert printed["test"][label] == expected


def test_served_is_reported(blended: Path) -> None:
    """To 1e-5: 50 candidates of a request as rows that hold both sides."""
    served = Recommender.load(blended)
    user = json.loads((blended / "data/example_users.json").read_text())[3]
    answer = served.recommend(user, top=50).ads
    encoder = served.encoder
    ids = answer[AD_ID].to_numpy()
    raw = raw_user(user, encoder.schema)
    columns = {
        name: np.repeat(values, len(ids))
        for name, values in encoder.encode(raw, Side.USER).items()
    }
    rows = served.scorer.rows(ids)
    columns |= {name: c[rows] for name, c in served.scorer.columns.items()}
    columns |= served.crosses.of(raw, rows)
    expected = blended_by_hand(blended, pl.DataFrame(columns))
    np.testing.assert_allclose(answer["click"].to_numpy(), expected, atol=1e-5)
    assert (np.diff(answer["click"].to_numpy()) <= 0).all()


def test_an_index_that_rounds_too_much_for_the_blend_is_refused(
    blended: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Recommender.load(blended)
    user = served.user_input({})
    ids, scores = served.retriever.retrieve(user, 5)
    rows = served.scorer.rows(ids)
    cross = served.crosses.of(raw_user({}, served.encoder.schema), rows)
    clicks = [
        served.scorer.score(user, rows, scores + error, cross)["click"]
        for error in (0, np.float32(0.25))
    ]
    shift = np.diff([np.log(p / (1 - p)) for p in clicks], axis=0)[0]
    np.testing.assert_allclose(shift, served.scorer.logit_error(0.25), rtol=1e-3)
    bound = served.settings.max_score_error / served.scorer.logit_error(1.0)
    for score_error in (bound * 1.01, float("nan")):
        monkeypatch.setattr(Proof, "check", lambda _, error=score_error: error)
        with pytest.raises(ConfigError, match="changes the blended click logit by"):
            Recommender.load(blended)
    monkeypatch.setattr(Proof, "check", lambda _: bound * 0.99)
    Recommender.load(blended)


def test_a_blend_that_is_missing_damaged_or_of_other_towers_is_refused(
    blended: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(blended, run)
    final = final_checkpoint(run / "ranking")
    kept = load_blend(final)
    assert kept.origin is not None
    other = kept.origin.model_copy(update={"weights": "f" * 16})
    save_blend(final, kept.model_copy(update={"origin": other}))
    with pytest.raises(ManifestError, match=r"blend\.json was made from step"):
        Recommender.load(run)
    (final.path / "blend.json").write_text(Blend().model_dump_json())
    with pytest.raises(CheckpointError, match=r"blend\.json"):
        load_blend(checkpoint.open_checkpoint(final.path))
    hashes = json.loads((final.path / "hashes.json").read_text())
    del hashes["blend.json"]
    (final.path / "hashes.json").write_text(json.dumps(hashes))
    with pytest.raises(CheckpointError, match=r"has no blend\.json, expected"):
        load_blend(checkpoint.open_checkpoint(final.path))
