"""Refuses a run whose stages do not all come from the same checkpoint of the towers."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from trained_run import (
    SETTINGS,
    STEADY,
    TASKS,
    K,
    last,
    metrics,
    predicted_alone,
    train_ranker,
)

from torchrec_adrec.config.run import load_config
from torchrec_adrec.data.prepare.user_file import UserFile
from torchrec_adrec.distributed import checkpoint
from torchrec_adrec.distributed.checkpoint import Checkpoint
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import CheckpointError, ManifestError, PredictionError
from torchrec_adrec.evaluation.predict import evaluate_split
from torchrec_adrec.export.build_index import build_index
from torchrec_adrec.index.manifest import EmbeddingManifest, IndexManifest, load_vectors
from torchrec_adrec.models.rankers.base import Ensemble
from torchrec_adrec.models.rankers.registry import RANKERS
from torchrec_adrec.runs.stages import stage_folder
from torchrec_adrec.runtime.files import Origin
from torchrec_adrec.runtime.ranks import SingleProcess
from torchrec_adrec.schema import Schema
from torchrec_adrec.serve import open_run, proof
from torchrec_adrec.serve.batch import recommend_batch
from torchrec_adrec.serve.proof import Proof
from torchrec_adrec.serve.recommender import Recommender
from torchrec_adrec.tasks import sharded as sharded_task
from torchrec_adrec.tasks.ranking import warm_starts
from torchrec_adrec.tasks.sharded import final_checkpoint, restore, restore_whole


def test_all_name_the_best_checkpoint(run: Path) -> None:
    towers, ranker = (final_checkpoint(run / task) for task in TASKS)
    for task, final in zip(TASKS, (towers, ranker), strict=True):
        history = metrics(run, task)["train"]["validation"]
        assert final.step == min(history, key=lambda pair: pair[1])[0]
        assert metrics(run, task)["checkpoint"] == final.origin.model_dump()
    exported = EmbeddingManifest.load(run / "export")
    indexed = IndexManifest.load(stage_folder(run, "index"))
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
    best, last_one = (proof.distance(v, exported).max() for v in (ads, others))
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


ENSEMBLE = "ranking={seeds: 3, tables: scratch, field_dropout: 0.2, table_init: 0.01}"


def marks_of(ranker: str) -> list[pytest.MarkDecorator]:
    """Each ranker is trained for it; the default and the recommended one always are."""
    return [] if ranker in ("transformer", "dcnv2") else [pytest.mark.slow]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *(pytest.param(name, (), marks=marks_of(name)) for name in RANKERS),
        pytest.param("dnn", (ENSEMBLE,), id="3 dnn", marks=pytest.mark.slow),
    ],
)
def test_any_ranker_is_trained_judged_and_served(
    name: str, words: tuple[str, ...], run: Path, process: Process, tmp_path: Path
) -> None:
    """Sharded, in one piece and behind the recommender: the same model."""
    config = load_config(None, [*SETTINGS, STEADY, f"ranking.model={name}", *words])
    again = tmp_path / "run"
    shutil.copytree(run, again)
    train_ranker(again, config, process)
    schema = Schema.load(again / "data/schema.json")
    whole, checkpoint_of = restore_whole("ranking", again, schema)
    sharded, _ = restore("ranking", again, schema, config, process)
    reported = metrics(again, "ranking")["test"]
    for model in (whole, sharded):
        restored = evaluate_split(model, again / "data/test", schema, process, 512)
        for label_name, figures in restored.items():
            assert figures == pytest.approx(reported[label_name], abs=1e-6, nan_ok=True)
    tables_from = checkpoint_of.state["tables_from"]
    assert (tables_from is not None) == warm_starts(config.ranking)
    served = Recommender.load(again)
    assert type(served.scorer.ranker.head) is (Ensemble if words else RANKERS[name])
    for ad in served.recommend({}).ads.to_dicts():
        alone = predicted_alone(whole, served, ad["ad_id"])
        for label_name, value in alone.items():
            assert ad[label_name] == pytest.approx(value, rel=1e-5)


def test_the_last_checkpoint_in_the_place_of_the_best_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its name; and by its vectors alone, where all names are made to agree."""
    monkeypatch.setattr(sharded_task, "final_checkpoint", last)
    best, newest = final_checkpoint(run / "retrieval"), last(run / "retrieval")
    both = rf"made from step {best.step} .*is step {newest.step} "
    with pytest.raises(ManifestError, match=both):
        Recommender.load(run)
    monkeypatch.setattr(open_run, "check_names", lambda *_: None)
    both = f"step {newest.step} .* gives other ads .* made from step {best.step} "
    with pytest.raises(ManifestError, match=both):
        Recommender.load(run)


def test_an_index_of_other_towers_is_not_built(
    run: Path,
    process: Process,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torchrec_adrec.export.build_index.final_checkpoint", last)
    config = load_config(None, SETTINGS)
    with pytest.raises(ManifestError, match=r"export was made from step .*, .* is"):
        build_index(run / "export", config.index, process, tmp_path, k=K, seed=0)


def prove(served: Recommender, run: Path, ad_tower: Any, towers: Checkpoint) -> None:
    Proof(
        served.user_input,
        served.retriever,
        served.scorer,
        ad_tower,
        towers,
        IndexManifest.load(stage_folder(run, "index")),
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
    served.retriever.tower = other.model.encode_users
    with pytest.raises(ManifestError, match="gives other users than"):
        prove(served, run, ad_tower, loaded)
    served.retriever.tower = user_tower
    search = served.retriever.index.search
    served.retriever.index.search = lambda *a: (search(*a)[0], search(*a)[1] * 0.999)  # type: ignore[method-assign]
    with pytest.raises(ManifestError, match="gives other scores of the index than"):
        prove(served, run, ad_tower, loaded)


def test_what_codes_round_is_allowed_as_far_as_the_gate_measured_it(run: Path) -> None:
    served = Recommender.load(run)
    towers, loaded = restore_whole("retrieval", run, served.encoder.schema)
    search = served.retriever.index.search
    served.retriever.index.search = lambda *a: (search(*a)[0], search(*a)[1] * 0.999)  # type: ignore[method-assign]
    manifest = IndexManifest.load(stage_folder(run, "index"))
    parts = served.user_input, served.retriever, served.scorer, towers.model.ad_tower
    for code_error, is_refused in ((1e-4, True), (0.01, False)):
        gate = manifest.gate.model_copy(update={"code_error": code_error})
        rounding = manifest.model_copy(update={"gate": gate})
        proof_of = Proof(*parts, loaded, rounding, run / "export")
        if is_refused:
            with pytest.raises(ManifestError, match="other scores of the index"):
                proof_of.check()
        else:
            assert 0 < proof_of.check() < 0.01


def test_a_ranker_with_other_tables_is_refused(run: Path) -> None:
    towers, ranker = (final_checkpoint(run / task) for task in TASKS)
    manifest = IndexManifest.load(stage_folder(run, "index"))
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
        (lambda r: r.scorer.ranker, r"the ranker: 5\d of 5\d predictions of click are"),
        (lambda r: r.parts.towers, "the towers' vector of the user is not finite"),
    ],
)
def test_a_prediction_that_is_not_finite_is_an_error(
    part: Callable[[Recommender], Any], message: str, run: Path, tmp_path: Path
) -> None:
    served = Recommender.load(run)
    with torch.no_grad():
        for weights in part(served).parameters():
            weights.fill_(torch.nan)
    user: dict[str, Any] = {"C1": "68fd1e64", "I1": 3}
    named = message + r".*the user had \['C1 \(hex\)', 'I1 \(number\)'\]"
    with pytest.raises(PredictionError, match=named):
        served.recommend(user)
    with pytest.raises(PredictionError, match=named):
        served.explain(user, int(served.scorer.ids[0]))
    users = tmp_path / "users.parquet"
    pl.DataFrame([user] * 3).write_parquet(users)
    file = UserFile.open(users, served.encoder)
    named = rf"{users}, row 0 \(from 0\): .*{message}"
    with pytest.raises(PredictionError, match=named):
        recommend_batch(served, file, tmp_path / "out.parquet", SingleProcess())
    assert not (tmp_path / "out.parquet").exists()
