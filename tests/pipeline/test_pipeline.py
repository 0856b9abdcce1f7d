"""The whole path runs on two gloo ranks, through torchx, and its parts agree."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from conftest import adrec, on_ranks
from html_text import Page, cells_of, check_self_contained

from torchrec_adrec.config.run import Config
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.data.loader.collate import batch_columns, collate
from torchrec_adrec.data.loader.parquet import Reader
from torchrec_adrec.data.loader.row_groups import Split
from torchrec_adrec.distributed import checkpoint
from torchrec_adrec.errors import CheckpointError, DataError, ManifestError
from torchrec_adrec.index.manifest import IndexManifest, load_vectors
from torchrec_adrec.index.sharded import ShardedIndex
from torchrec_adrec.runs.stages import record_of, stage_folder
from torchrec_adrec.schema import AD_ID, Schema
from torchrec_adrec.serve.recommender import Recommender
from torchrec_adrec.tasks.blend import load_blend
from torchrec_adrec.tasks.sharded import restore_whole
from torchrec_adrec.tasks.task import build_task


def metrics(run: Path, stage: str) -> dict[str, Any]:
    return dict(json.loads((run / stage / "metrics.json").read_text()))


def copy_run(run: Path, out: Path, *without: str) -> Path:
    shutil.copytree(run, out, ignore=shutil.ignore_patterns(*without))
    return out


def test_it_ends_with_figures_and_ten_ads(finished_run: Path) -> None:
    printed = (finished_run / "printed.txt").read_text()
    for title in ("ranker, click", "recall@50 against", "ms a request"):
        assert title in printed
    assert "ads: towers / context / popularity" in printed
    ads = printed[printed.index("Ten ads") : printed.index("The funnel for")]
    assert sum(line.startswith("│") for line in ads.splitlines()) == 10
    assert printed.index("funnel, as served") > printed.index("Ten ads")
    assert "## Funnel" in (finished_run / "report.md").read_text()
    pictures = ("retrieval/loss.png", "export/recall_by_popularity.png")
    assert (finished_run / "funnel/funnel.png").stat().st_size > 0
    for name in ("report.md", *pictures, "ranking/calibration.png"):
        assert (finished_run / name).stat().st_size > 0
    assert list((finished_run / "retrieval/tensorboard").glob("events*"))
    assert not list(finished_run.glob("*.partial*"))


def test_the_report_is_one_file_with_all_tables_and_pictures(
    finished_run: Path,
) -> None:
    page = Page((finished_run / "report.html").read_text())
    check_self_contained(page)
    texts = [(finished_run / p).read_text() for p in ("report.md", "data/report.md")]
    assert page.tables == [table for text in texts for table in cells_of(text)]
    assert len(page.all("img")) == sum(text.count("![") for text in texts) == 8
    assert "no picture" not in page.text
    for heading in ("Ten ads", "Baselines", "Retrieval", "Index", "Funnel", "Training"):
        assert f"\n## {heading}" in texts[0] and f"\n{heading}" in page.text


def test_the_models_have_learned(finished_run: Path) -> None:
    """Better than chance, and never better than the rule that made the rows."""
    truth = metrics(finished_run, "baselines")["truth"]["test"]
    for stage in ("retrieval", "ranking"):
        click = metrics(finished_run, stage)["test"]["click"]
        assert 0.6 < click["auc"] < truth["auc"], stage
        assert truth["log_loss"] < click["log_loss"]
        assert click["normalized_entropy"] < 1
        assert 0.8 < click["calibration"] < 1.25
        assert click["rows"] == 2400
    recall = metrics(finished_run, "export")["test"]["all"]
    assert recall["towers"]["recall@100"] > recall["popularity"]["recall@100"]


def test_figures_of_retrieval_are_reported_with_their_protocol(
    finished_run: Path,
) -> None:
    test = metrics(finished_run, "export")["test"]
    protocol, report = test["protocol"], (finished_run / "report.md").read_text()
    clicks = pl.read_parquet(finished_run / "data/test/*.parquet")["click"].sum()
    assert protocol["queries"] == protocol["clicks"] == clicks
    assert protocol["catalog"] == len(load_catalog(finished_run / "data"))
    assert protocol["context"]["clicks"] > 0
    assert f"- queries: {protocol['queries']}" in report
    for group in ("all", "seen_ads", "unseen_ads"):
        for retriever in ("towers", "context", "popularity"):
            figures = test[group][retriever]
            low, high = figures["intervals"]["recall@100"]
            assert low <= figures["recall@100"] <= high
            shown = f"{figures['recall@100']:.4f} ({low:.4f} to {high:.4f})"
            assert f"| {group} | {retriever} | {figures['clicks']:,} |" in report
            assert shown in report
    split = [test[g]["towers"]["clicks"] for g in ("seen_ads", "unseen_ads")]
    assert sum(split) == clicks


def test_every_parameter_has_moved(finished_run: Path, small_config: Config) -> None:
    """data_parallel tables, say, would stay where they began, without an error."""
    schema = Schema.load(finished_run / "data/schema.json")
    folder = finished_run / "retrieval/checkpoints"
    steps = sorted(folder.glob("step-*"))
    assert len(steps) == 2
    before, after = (build_task("retrieval", schema, small_config) for _ in steps)
    for task, step in zip((before, after), steps, strict=True):
        checkpoint.load(checkpoint.open_checkpoint(step), task, schema)
    for (name, old), new in zip(
        before.named_parameters(), after.parameters(), strict=True
    ):
        assert not torch.equal(old, new), name


def test_nothing_is_done_twice(finished_run: Path) -> None:
    again = adrec("run", "--out", finished_run, "-j", "1x2")
    assert again.returncode == 0
    assert again.stderr.count("skipped, its inputs have not changed") == 6


@pytest.fixture(scope="module")
def on_one_and_two(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The test figures and the exported vectors from 1 and from 2 ranks."""
    results = []
    for ranks in (1, 2):
        out = tmp_path_factory.mktemp("ranks") / "run"
        copy_run(finished_run, out, "export", "index", "ranking")
        done = on_ranks(ranks, "evaluate", "retrieval", "--out", out)
        assert done.returncode == 0, done.stderr
        line = next(x for x in done.stdout.splitlines() if x.startswith("{"))
        done = on_ranks(ranks, "export", "--out", out)
        assert done.returncode == 0, done.stderr
        results.append((json.loads(line), load_vectors(out / "export")))
    return results


def test_one_checkpoint_is_the_same_on_any_number_of_ranks(on_one_and_two: Any) -> None:
    (one, (ids, vectors)), (two, (other_ids, other_vectors)) = on_one_and_two
    assert (one["world_size"], two["world_size"]) == (1, 2)
    figures, others = (run["test"]["click"] for run in (one, two))
    assert figures["rows"] == others["rows"]
    assert figures["log_loss"] == pytest.approx(others["log_loss"], abs=1e-6)
    # Rounding may swap two rows of nearly equal scores, a few pairs among all.
    clicks = figures["rows"] * figures["label_rate"]
    pairs = clicks * (figures["rows"] - clicks)
    assert figures["auc"] == pytest.approx(others["auc"], abs=20 / pairs)
    assert ids.tolist() == other_ids.tolist()
    np.testing.assert_allclose(vectors, other_vectors, atol=1e-6)


def test_trained_score_is_exported_score_is_index_score(
    finished_run: Path, small_config: Config
) -> None:
    schema = Schema.load(finished_run / "data/schema.json")
    recommender = Recommender.load(finished_run)
    reader = Reader(Split.open(finished_run / "data/test"), batch_columns(schema), 200)
    batch = collate(next(reader.epoch()), schema)
    ids, vectors = load_vectors(finished_run / "export")
    catalog = load_catalog(finished_run / "data")
    assert ids.tolist() == catalog[AD_ID].to_list()
    version = stage_folder(finished_run, "index")
    manifest = IndexManifest.load(version)
    index = ShardedIndex.load(version, manifest)
    with torch.inference_mode():
        task = build_task("retrieval", schema, small_config).eval()
        start = checkpoint.latest(finished_run / "retrieval/checkpoints")
        assert start is not None
        checkpoint.load(start, task, schema)
        user, ad, _ = task.model(batch.user, batch.ad)
        trained = (user * ad).sum(1).numpy()
        served = recommender.retriever.tower(batch.user).numpy()
    np.testing.assert_allclose(served, user.numpy(), atol=1e-6)
    positions = np.searchsorted(ids, batch.ad_ids.numpy())
    exported = (user.numpy() * vectors[positions]).sum(1)
    np.testing.assert_allclose(exported, trained, atol=1e-5)
    searched_ids, scores = index.search(user.numpy(), len(ids))
    columns = (searched_ids == batch.ad_ids.numpy()[:, None]).argmax(axis=1)
    searched = np.take_along_axis(scores, columns[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(searched, trained, atol=1e-5)


def test_a_served_probability_is_the_trained_one(
    finished_run: Path, small_config: Config, tmp_path: Path
) -> None:
    """From the raw request: encoder, shared user tokens and catalog, all in one."""
    schema = Schema.load(finished_run / "data/schema.json")
    recommender = Recommender.load(finished_run)
    users = json.loads((finished_run / "data/example_users.json").read_text())
    answer = recommender.recommend(users[3])
    served = dict(answer.ads.select(AD_ID, "click").iter_rows())
    catalog = load_catalog(finished_run / "data")
    test = pl.read_parquet(finished_run / "data/test/*.parquet")[3]
    ads = answer.ads.select(AD_ID).join(catalog, on=AD_ID, maintain_order="left")
    features = [f.name for f in schema.sparse_of("ad")]  # type: ignore[arg-type]
    rows = pl.concat([test.drop(features, AD_ID)] * len(ads))
    rows = rows.with_columns(ads.select(AD_ID, *features))
    rows.write_parquet(tmp_path / "part-00000.parquet")
    split = Split.open(tmp_path)
    batch = collate(
        next(Reader(split, batch_columns(schema), len(ads)).epoch()), schema
    )
    task = build_task("ranking", schema, small_config).eval()
    start = checkpoint.latest(finished_run / "ranking/checkpoints")
    assert start is not None
    checkpoint.load(start, task, schema)
    towers, _ = restore_whole("retrieval", finished_run, schema)
    with torch.inference_mode():
        logits = task.model(batch.user, batch.ad)[:, 0].double()
        of_towers = towers.model(batch.user, batch.ad)[2].double()
    trained = load_blend(start).apply(logits, of_towers).sigmoid()
    expected = dict(zip(ads[AD_ID], trained.tolist(), strict=True))
    assert served == pytest.approx(expected, abs=1e-5)
    assert answer.ads["click"].is_sorted(descending=True)
    assert answer.candidates == 50


def test_a_request_of_the_wrong_kind_is_refused(finished_run: Path) -> None:
    recommender = Recommender.load(finished_run)
    assert len(recommender.recommend({}).ads) == 10
    for top in (0, 51):
        with pytest.raises(DataError, match=f"top is {top}, expected 1 to 50"):
            recommender.recommend({}, top)
    for user, message in (
        ({"C99": "00000000"}, r"unknown user columns \['C99'\]"),
        ({"C15": "00000000"}, r"unknown user columns \['C15'\]"),
        ({"I1": "many"}, "I1 is 'many', expected a number"),
        ({"C1": 12345678}, "C1 is 12345678, expected eight hexadecimal digits"),
    ):
        with pytest.raises(DataError, match=message):
            recommender.recommend(user)


def test_parts_that_do_not_belong_together_are_refused(
    finished_run: Path, small_config: Config, tmp_path: Path
) -> None:
    run = copy_run(finished_run, tmp_path / "run")
    record = record_of(run / "export")
    assert record is not None
    other = record.model_copy(update={"build_id": "0" * 16})
    (run / "export/stage.json").write_text(other.model_dump_json())
    with pytest.raises(ManifestError, match="index was made from export"):
        Recommender.load(run)
    schema = Schema.load(run / "data/schema.json")
    start = checkpoint.latest(run / "retrieval/checkpoints")
    assert start is not None
    reordered = schema.model_copy(update={"sparse": schema.sparse[::-1]})
    task = build_task("retrieval", reordered, small_config)
    with pytest.raises(CheckpointError, match="was trained on columns"):
        checkpoint.load(start, task, reordered)
    ranking = build_task("ranking", schema, small_config)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        checkpoint.load(start, ranking, schema)


def test_inputs_made_with_other_settings_are_refused(finished_run: Path) -> None:
    before = (finished_run / "config.yaml").read_text()
    done = adrec("index", "--out", finished_run, "retrieval.hidden=[9]")
    assert done.returncode == 2 and "was made with other settings" in done.stderr
    assert (finished_run / "config.yaml").read_text() == before
