"""Refuses a run whose stages do not all come from the same checkpoint of the towers."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from torchrec_adrec.config.run import Config, load_config
from torchrec_adrec.data.adapters import open_data
from torchrec_adrec.data.prepare.prepare import prepare
from torchrec_adrec.distributed import checkpoint
from torchrec_adrec.distributed.checkpoint import Checkpoint
from torchrec_adrec.distributed.process import Process, process_group
from torchrec_adrec.errors import CheckpointError, ManifestError, PredictionError
from torchrec_adrec.evaluation.predict import evaluate_split, split_logits
from torchrec_adrec.export.build_index import build_index
from torchrec_adrec.export.encode import export
from torchrec_adrec.index.manifest import EmbeddingManifest, IndexManifest, load_vectors
from torchrec_adrec.models.rankers.registry import RANKERS
from torchrec_adrec.runs.stage_folder import make_run, stage_workspace
from torchrec_adrec.runs.stages import DATA, EXPORT, INDEX, RANKING, RETRIEVAL
from torchrec_adrec.runtime.files import Origin
from torchrec_adrec.runtime.ranks import SingleProcess
from torchrec_adrec.schema import Schema
from torchrec_adrec.serve import proof, recommender
from torchrec_adrec.serve.proof import Proof
from torchrec_adrec.serve.recommender import Recommender
from torchrec_adrec.tasks import sharded as sharded_task
from torchrec_adrec.tasks.calibration import load_calibrations, to_json
from torchrec_adrec.tasks.label_heads import prediction
from torchrec_adrec.tasks.ranking import warm_starts
from torchrec_adrec.tasks.sharded import final_checkpoint, restore, restore_whole
from torchrec_adrec.training.calibrate import fit_calibrations
from torchrec_adrec.training.trainer import Trainer

SETTINGS = (
    "data.adapter=synthetic",
    "data.synthetic={rows: 4000, ads: 200, users: 200}",
    "train={batch_size: 128, epochs: 8, evaluate_every: 5, patience: 2}",
    "train.dead_model=warn",
    "recommend.candidates=50",
    "retrieval={embedding_dim: 4, hidden: [8], output_dim: 4}",
    "ranking={model_dim: 4, heads: 1, head_dim: 8, feedforward_dim: 8}",
    # so large that the validation loss soon rises: `patience` ends training after that
    "retrieval.optimizer={tables_lr: 1, dense_lr: 0.1}",
    "ranking.optimizer={tables_lr: 1, dense_lr: 0.1}",
)
TASKS = ("retrieval", "ranking")
K = 50  # candidates


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    with process_group("cpu") as process:
        yield process


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(None, SETTINGS)


@pytest.fixture(scope="module")
def run(
    config: Config, process: Process, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Make all that serving needs in this process; the best step is not the last."""
    out = tmp_path_factory.mktemp("runs") / "run"
    make_run(out)
    with stage_workspace(DATA, config, out) as folder:
        data = open_data(config.data, config.seed, folder, SingleProcess())
        prepare(config.data, data, folder, config.seed)
    with stage_workspace(RETRIEVAL, config, out, process) as folder:
        Trainer("retrieval", config, process, out / "data", folder).fit()
    schema = Schema.load(out / "data/schema.json")
    with stage_workspace(EXPORT, config, out, process) as folder:
        model, towers = restore("retrieval", out, schema, config, process)
        export(model, towers, out / "data", config, process, folder)
    with stage_workspace(INDEX, config, out, process) as folder:
        build_index(out / "export", config.index, process, folder, k=K, seed=0)
    with stage_workspace(RANKING, config, out, process) as folder:
        tables = final_checkpoint(out / "retrieval")
        Trainer("ranking", config, process, out / "data", folder, tables).fit()
    for task in TASKS:
        assert final_checkpoint(out / task).step < last(out / task).step
    return out


def last(folder: Path) -> Checkpoint:
    """Open the checkpoint that serving took before there was one function for all."""
    latest = checkpoint.latest(folder / "checkpoints")
    assert latest is not None
    return latest


def metrics(run: Path, task: str) -> dict[str, Any]:
    return dict(json.loads((run / task / "metrics.json").read_text()))


def test_all_name_the_best_checkpoint(run: Path) -> None:
    towers, ranker = (final_checkpoint(run / task) for task in TASKS)
    for task, final in zip(TASKS, (towers, ranker), strict=True):
        history = metrics(run, task)["train"]["validation"]
        assert final.step == min(history, key=lambda pair: pair[1])[0]
        assert metrics(run, task)["checkpoint"] == final.origin.model_dump()
    exported = EmbeddingManifest.load(run / "export")
    indexed = IndexManifest.load(run / "index")
    assert exported.checkpoint == indexed.embeddings.checkpoint == towers.origin
    tables = ranker.state["tables_from"]
    assert Origin.model_validate(tables) == towers.origin
    assert metrics(run, "ranking")["tables_from"] == tables


def test_served_is_exported(run: Path) -> None:
    """To 1e-6, and far below what loading refuses; the last checkpoint is far above."""
    served = Recommender.load(run)
    ids, exported = load_vectors(run / "export")
    towers, _ = restore_whole("retrieval", run, served.encoder.schema)
    with torch.inference_mode():
        ads = towers.model.ad_tower(served.scorer.features(ids)).numpy()
        checkpoint.load(last(run / "retrieval"), towers, served.encoder.schema)
        others = towers.model.ad_tower(served.scorer.features(ids)).numpy()
    np.testing.assert_allclose(ads, exported, atol=1e-6)
    examples = json.loads((run / "export/examples.json").read_text())
    assert len(examples) == 50
    for example in examples:
        user = served.user_input(example["user"])
        retrieved, scores = served.retriever.retrieve(user, len(ids))
        vector = np.array(example["vector"], dtype=np.float32)
        expected = exported[np.searchsorted(ids, retrieved)] @ vector
        np.testing.assert_allclose(scores, expected, atol=1e-6)
    best, last_one = (proof._distance(v, exported).max() for v in (ads, others))
    tolerance = proof.TOLERANCE["fp32"]
    print(f"furthest ad: served {best:.2g}, last {last_one:.2g}, limit {tolerance:g}")
    assert best * 10 < tolerance < last_one / 10


@pytest.mark.parametrize("task", TASKS)
def test_reported_is_served(task: str, run: Path, process: Process) -> None:
    schema = Schema.load(run / "data/schema.json")
    model, _ = restore_whole(task, run, schema)
    served = evaluate_split(model, run / "data/test", schema, process, 512)
    reported = metrics(run, task)["test"]
    checkpoint.load(last(run / task), model, schema)
    other = evaluate_split(model, run / "data/test", schema, process, 512)
    for label, values in served.items():
        assert values == pytest.approx(reported[label], abs=1e-6, nan_ok=True)
    assert other["click"]["log_loss"] != pytest.approx(
        reported["click"]["log_loss"], abs=1e-4
    )


@pytest.mark.parametrize("name", RANKERS)
def test_any_ranker_is_trained_judged_and_served(
    name: str, run: Path, process: Process, tmp_path: Path
) -> None:
    """Sharded, in one piece and behind the recommender: the same model."""
    words = (
        f"ranking.model={name}",
        "ranking.optimizer={tables_lr: 0.05, dense_lr: 0.01}",
    )
    config, again = load_config(None, [*SETTINGS, *words]), tmp_path / "run"
    shutil.copytree(run, again)
    with stage_workspace(RANKING, config, again, process) as folder:
        tables = None
        if warm_starts(config.ranking):
            tables = final_checkpoint(again / "retrieval")
        Trainer("ranking", config, process, again / "data", folder, tables).fit()
    schema = Schema.load(again / "data/schema.json")
    whole, checkpoint_of = restore_whole("ranking", again, schema)
    sharded, _ = restore("ranking", again, schema, config, process)
    reported = metrics(again, "ranking")["test"]
    for model in (whole, sharded):
        restored = evaluate_split(model, again / "data/test", schema, process, 512)
        for label_name, figures in restored.items():
            assert figures == pytest.approx(reported[label_name], abs=1e-6, nan_ok=True)
    tables_from = checkpoint_of.state["tables_from"]
    assert (tables_from is not None) == RANKERS[name].warm_starts
    served = Recommender.load(again)
    assert type(served.scorer.ranker.head) is RANKERS[name]
    ads = served.recommend({}).ads
    user = served.user_input({})
    for ad in ads.to_dicts():
        with torch.inference_mode():
            logits = whole.model(user, served.scorer.features(np.array([ad["ad_id"]])))
        for t, label in enumerate(schema.labels):
            alone = prediction(label, logits[:, t].double()).item()
            assert ad[label.name] == pytest.approx(alone, rel=1e-5)


@pytest.fixture(scope="module")
def calibrated(
    run: Path, process: Process, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same run, its ranker trained again and calibrated."""
    calibration = "ranking.calibration=platt"
    rates = "ranking.optimizer={tables_lr: 0.05, dense_lr: 0.01}"
    config = load_config(None, [*SETTINGS, rates, calibration, "train.epochs=2"])
    out = tmp_path_factory.mktemp("calibrated") / "run"
    shutil.copytree(run, out)
    patch = pytest.MonkeyPatch()
    # 400 validation rows, of which some 40 observe each class of `engagement`.
    patch.setattr("torchrec_adrec.training.calibrate.LEAST", 1)
    with patch.context(), stage_workspace(RANKING, config, out, process) as folder:
        tables = final_checkpoint(out / "retrieval")
        Trainer("ranking", config, process, out / "data", folder, tables).fit()
    return out


def test_a_calibration_is_fitted_on_the_validation_rows(
    calibrated: Path, process: Process
) -> None:
    """Fitted again on these rows it is the same, on the test rows another one."""
    schema = Schema.load(calibrated / "data/schema.json")
    model, final = restore_whole("ranking", calibrated, schema)
    kept = load_calibrations(final)
    assert set(kept) == set(schema.label_names)
    for name, is_same in (("valid", True), ("test", False)):
        folder = calibrated / "data" / name
        logits = split_logits(model, folder, schema, process, 512)
        again = fit_calibrations("platt", schema, logits)
        slopes = [c["click"].model_dump()["slope"] for c in (kept, again)]
        assert (slopes[1] == pytest.approx(slopes[0], rel=1e-3)) == is_same


def test_a_calibrated_prediction_is_reported_and_served(
    calibrated: Path, process: Process
) -> None:
    schema = Schema.load(calibrated / "data/schema.json")
    model, final = restore_whole("ranking", calibrated, schema)
    kept = load_calibrations(final)
    reported = metrics(calibrated, "ranking")
    assert reported["calibration"] == to_json(kept)
    test = calibrated / "data/test"
    restored = evaluate_split(
        model, test, schema, process, 512, calibrations=load_calibrations(final)
    )
    for label_name, figures in restored.items():
        expected = pytest.approx(reported["test"][label_name], abs=1e-6, nan_ok=True)
        assert figures == expected
    raw = evaluate_split(model, test, schema, process, 512)
    assert raw["click"]["auc"] == pytest.approx(restored["click"]["auc"], abs=1e-9)
    assert raw["click"]["log_loss"] != pytest.approx(restored["click"]["log_loss"])
    served = Recommender.load(calibrated)
    user = served.user_input({})
    for ad in served.recommend({}).ads.to_dicts():
        with torch.inference_mode():
            logits = model.model(user, served.scorer.features(np.array([ad["ad_id"]])))
        for t, label in enumerate(schema.labels):
            alone = prediction(label, logits[:, t].double(), kept).item()
            assert ad[label.name] == pytest.approx(alone, rel=1e-5)


def test_a_calibration_that_is_missing_or_damaged_is_refused(
    calibrated: Path, tmp_path: Path
) -> None:
    path = final_checkpoint(calibrated / "ranking").path
    copied = shutil.copytree(path, tmp_path / path.name)
    text = (copied / "calibration.json").read_text()
    (copied / "calibration.json").write_text(text.replace("1", "2"))
    with pytest.raises(CheckpointError, match=r"calibration\.json"):
        load_calibrations(checkpoint.open_checkpoint(copied))
    hashes = json.loads((copied / "hashes.json").read_text())
    del hashes["calibration.json"]
    (copied / "hashes.json").write_text(json.dumps(hashes))
    with pytest.raises(CheckpointError, match=r"has no calibration\.json, expected"):
        load_calibrations(checkpoint.open_checkpoint(copied))


def test_the_last_checkpoint_in_the_place_of_the_best_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its name; and by its vectors alone, where all names are made to agree."""
    monkeypatch.setattr(sharded_task, "final_checkpoint", last)
    best, newest = final_checkpoint(run / "retrieval"), last(run / "retrieval")
    both = rf"made from step {best.step} .*is step {newest.step} "
    with pytest.raises(ManifestError, match=both):
        Recommender.load(run)
    monkeypatch.setattr(recommender, "check_names", lambda *_: None)
    both = f"step {newest.step} .* gives other ads .* made from step {best.step} "
    with pytest.raises(ManifestError, match=both):
        Recommender.load(run)


def test_an_index_of_other_towers_is_not_built(
    run: Path,
    config: Config,
    process: Process,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torchrec_adrec.export.build_index.final_checkpoint", last)
    with pytest.raises(ManifestError, match=r"export was made from step .*, .* is"):
        build_index(run / "export", config.index, process, tmp_path, k=K, seed=0)


def prove(served: Recommender, run: Path, ad_tower: Any, towers: Checkpoint) -> None:
    Proof(
        served.user_input,
        served.retriever,
        served.scorer,
        ad_tower,
        towers,
        IndexManifest.load(run / "index"),
        run / "export",
    ).check()


def test_each_part_is_proved(run: Path) -> None:
    """A wrong user tower, other vectors in the index: each alone is enough."""
    served = Recommender.load(run)
    towers, loaded = restore_whole("retrieval", run, served.encoder.schema)
    ad_tower = towers.model.ad_tower
    prove(served, run, ad_tower, loaded)
    user_tower = served.retriever.tower
    other, _ = restore_whole("retrieval", run, served.encoder.schema)
    checkpoint.load(last(run / "retrieval"), other, served.encoder.schema)
    served.retriever.tower = other.model.user_tower
    with pytest.raises(ManifestError, match="gives other users than"):
        prove(served, run, ad_tower, loaded)
    served.retriever.tower = user_tower
    search = served.retriever.index.search
    served.retriever.index.search = lambda *a: (search(*a)[0], search(*a)[1] * 0.999)  # type: ignore[method-assign]
    with pytest.raises(ManifestError, match="gives other scores of the index than"):
        prove(served, run, ad_tower, loaded)


def test_a_ranker_with_other_tables_is_refused(run: Path) -> None:
    towers, ranker = (final_checkpoint(run / task) for task in TASKS)
    manifest = IndexManifest.load(run / "index")
    proof.check_names(run, towers, ranker, manifest)
    tables = last(run / "retrieval").origin.model_dump()
    other = replace(ranker, state=ranker.state | {"tables_from": tables})
    with pytest.raises(ManifestError, match=f"was made from step {tables['step']} "):
        proof.check_names(run, towers, other, manifest)


def test_figures_of_another_checkpoint_are_refused(run: Path, tmp_path: Path) -> None:
    stage = tmp_path / "retrieval"
    shutil.copytree(run / "retrieval", stage)
    reported = metrics(tmp_path, "retrieval")
    other = reported["checkpoint"] | {"weights": "0" * 16}
    (stage / "metrics.json").write_text(json.dumps(reported | {"checkpoint": other}))
    with pytest.raises(ManifestError, match=rf"weights {'0' * 16}\), .* is step"):
        final_checkpoint(stage)
    (stage / "metrics.json").unlink()
    with pytest.raises(CheckpointError, match=r"metrics\.json names no checkpoint"):
        final_checkpoint(stage)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda r: r.scorer.ranker, "50 of 50 predictions of click are not finite"),
        (lambda r: r.retriever.tower, "the vector of the user is not finite"),
    ],
)
def test_a_prediction_that_is_not_finite_is_an_error(
    part: Callable[[Recommender], Any], message: str, run: Path
) -> None:
    served = Recommender.load(run)
    with torch.no_grad():
        for weights in part(served).parameters():
            weights.fill_(torch.nan)
    with pytest.raises(PredictionError, match=message):
        served.recommend({})
