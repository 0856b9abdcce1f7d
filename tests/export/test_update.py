"""Ads are added, replaced and removed: all of an update is served, or nothing."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from named_ads import copy_of, ids_of, rows_of
from typer.testing import CliRunner

from torchrec_adrec.cli.app import app
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.prepare.user_file import UserFile
from torchrec_adrec.distributed.process import process_group
from torchrec_adrec.errors import AdRecError, ConfigError, GateError, ManifestError
from torchrec_adrec.export import update as export_update
from torchrec_adrec.export.ad_encoder import AdEncoder
from torchrec_adrec.export.ad_file import AdIds, AdRows
from torchrec_adrec.export.export import export
from torchrec_adrec.export.update import Update, Updater
from torchrec_adrec.index.manifest import IndexManifest
from torchrec_adrec.index.updated import UpdatedIndex
from torchrec_adrec.pipeline.job import run_stages
from torchrec_adrec.runs import versions
from torchrec_adrec.runs.ad_changes import changes_name
from torchrec_adrec.runs.run_lock import Job, hold
from torchrec_adrec.runs.stage_folder import stage_workspace
from torchrec_adrec.runs.stage_settings import stage_settings
from torchrec_adrec.runs.stages import EXPORT, INDEX, stage_folder
from torchrec_adrec.runs.versions import version_names
from torchrec_adrec.runtime.ranks import SingleProcess
from torchrec_adrec.serve.batch import recommend_batch
from torchrec_adrec.serve.recommender import Recommender
from torchrec_adrec.serve.rollback import roll_back
from torchrec_adrec.tasks.sharded import restore

USER = {"user": "u1", "city": "c1"}
K = 50


@pytest.fixture(scope="module")
def updater_of_run(named_run: Path) -> Updater:
    return Updater(named_run)


@pytest.fixture
def run(named_run: Path, tmp_path: Path) -> Path:
    return copy_of(named_run, tmp_path / "run")


@pytest.fixture
def updater(run: Path, updater_of_run: Updater) -> Iterator[Updater]:
    """One that has opened a copy of the run: its models are those of the original."""
    opened = Updater.__new__(Updater)
    opened.__dict__ |= updater_of_run.__dict__ | {"run": run}
    yield opened


def update(updater: Updater, *lines: str, remove: tuple[int, ...] = ()) -> Update:
    """Add rows and remove ids, by way of files."""
    folder, schema = updater.run.parent, updater.ads.encoder.schema
    rows = AdRows.read(rows_of(folder, *lines), schema) if lines else None
    ids = AdIds.read(ids_of(folder, *remove)) if remove else None
    return updater.apply(rows, ids)


def items(served: Recommender, **arguments: Any) -> dict[str, dict[str, Any]]:
    """What is served of every ad, by its name."""
    top = served.retriever.index.count
    settings = served.settings.model_copy(update={"candidates": top})
    served.parts = replace(served.parts, settings=settings)
    return {ad["item"]: ad for ad in served.recommend(USER, **arguments).ads.to_dicts()}


def answers(served: Recommender) -> dict[str, dict[str, Any]]:
    return items(served, top=served.retriever.index.count)


def alike(
    actual: dict[str, dict[str, Any]], expected: dict[str, dict[str, Any]]
) -> None:
    """Compare what is served of some ads, up to rounding."""
    for item, ad in expected.items():
        numbers = {n: x for n, x in ad.items() if isinstance(x, float)}
        texts = {n: x for n, x in ad.items() if n not in numbers}
        assert {n: actual[item][n] for n in texts} == texts
        for name, number in numbers.items():
            np.testing.assert_allclose(actual[item][name], number, rtol=1e-4)


def test_an_update_is_served_at_once_and_alike_after_a_new_start(
    run: Path, updater: Updater
) -> None:
    served = Recommender.load(run)
    before = answers(served)
    gone = [before["a10"]["ad_id"], before["a11"]["ad_id"]]
    assert min(gone) > 2**53
    done = update(updater, "a3,b6,7.5", "new,b1,", remove=(gone[0],))
    assert (done.added, done.replaced, done.removed) == (1, 1, 1)
    assert str(done).startswith("000001-") and "have changed since" in str(done)
    update(updater, "a3,b5,7.5", remove=(gone[1],))
    newest = served.refreshed(run)
    assert newest.changes == changes_name(run) == version_names(run / "changes")[-1]
    assert newest.refreshed(run) is newest
    after = answers(newest)
    assert set(after) == set(before) - {"a10", "a11"} | {"new"}
    # The replaced ad keeps its id, has its latest values, once; others are as before.
    assert after["a3"]["ad_id"] == before["a3"]["ad_id"]
    assert (after["a3"]["brand"], after["a3"]["price"]) == ("b5", "7.5")
    assert after["a3"]["score"] != before["a3"]["score"]
    assert after["new"]["price"] is None
    alike(after, {n: ad for n, ad in before.items() if n not in ("a3", "a10", "a11")})
    assert newest.retriever.index.count == len(after)
    # The one that was loaded before is what it was; a new start serves the same.
    assert answers(served) == before
    alike(answers(Recommender.load(run)), after)
    # A removed ad is there again when it is added again.
    update(updater, "a10,b3,1.5")
    assert answers(newest.refreshed(run))["a10"]["ad_id"] == gone[0]


def test_the_ranker_scores_a_new_ad_by_its_own_columns(
    run: Path, updater: Updater
) -> None:
    served = Recommender.load(run)
    best = answers(served)
    # Of another name that nobody knows, as both are: alike in all else.
    update(updater, "twin,b2,3", "other,b2,3")
    after = answers(served.refreshed(run))
    assert after["twin"]["click"] == after["other"]["click"]
    update(updater, "twin,b4,0")
    newest = answers(served.refreshed(run))
    assert newest["twin"]["click"] != after["twin"]["click"]
    assert newest["other"]["click"] == after["other"]["click"]
    assert len(newest) == len(best) + 2


def test_a_removed_ad_is_in_no_answer(run: Path, updater: Updater) -> None:
    served = Recommender.load(run)
    prepared = served.eligible_ads("brand = 'b1'")
    best = served.recommend(USER, 5).ads["ad_id"].to_list()
    eligible = [ad["ad_id"] for ad in items(served, top=9, eligible=prepared).values()]
    gone = (best[0], eligible[0])
    update(updater, remove=gone)
    newest = served.refreshed(run)
    assert not set(gone) & {ad["ad_id"] for ad in answers(newest).values()}
    for eligible_now in ("brand = 'b1'", prepared):
        ads = items(newest, top=9, eligible=eligible_now).values()
        assert not set(gone) & {ad["ad_id"] for ad in ads}
        assert {ad["brand"] for ad in ads} == {"b1"}
    with pytest.raises(AdRecError, match="not in the catalog"):
        newest.eligible_ads(np.array(gone))
    users = run.parent / "users.parquet"
    pl.DataFrame([{"user": f"u{n}"} for n in range(40)]).write_parquet(users)
    file = UserFile.open(users, Encoder.load(run / "data"))
    recommend_batch(Recommender.load(run), file, run.parent / "out", SingleProcess())
    assert not set(gone) & set(pl.read_parquet(run.parent / "out")["ad_id"])


@pytest.mark.parametrize(
    ("lines", "remove", "message"),
    [
        (["a3,b6,x"], [], r"ads\.csv:2: price is 'x', expected a number"),
        (["a3,b6,1", "a4,b1,1e999"], [], r"ads\.csv:3: price is .*finite"),
        (["a3,b6,1", "new,b6,1", "a3,b1,2"], [], r"ads\.csv:4: ad \d+ stands in 2"),
        (["a3,b6,1", ",b1,2"], [], r"ads\.csv:3: item is missing, which names"),
        (["a3,b6"], [], r"ads\.csv:2: 2 fields, expected 3"),
        ([], [7], r"ids\.txt:1: there is no ad 7"),
        ([], ["x"], r"ids\.txt:1: found 'x', expected the ad_id"),
        ([], [2**63], r"ids\.txt:1: found '9223372036854775808'"),
        ([], [5, 6, 5], r"ids\.txt:3: ad 5 stands in 1 already"),
        (["a3,b6,1"], ["a3"], r"ads\.csv:2: ad \d+ is to be added and removed"),
    ],
)
def test_a_bad_update_names_file_and_line_and_changes_nothing(
    lines: list[str], remove: list[Any], message: str, run: Path, updater: Updater
) -> None:
    names = dict(updater.ads.catalog.select("raw_item", "ad_id").rows())
    ids = tuple(names.get(ad, ad) for ad in remove)
    before = sorted(run.iterdir())
    with pytest.raises(AdRecError, match=message):
        update(updater, *lines, remove=ids)
    assert [p for p in sorted(run.iterdir()) if p.name[0] != "."] == before


def test_files_of_other_columns_are_refused(updater: Updater, tmp_path: Path) -> None:
    schema = updater.ads.encoder.schema
    for text, message in {
        "item,brand\na,b\n": "no column price",
        "item,brand,price,x\na,b,1,2\n": r"columns \['x'\] are none of an ad",
        "item,brand,price\n": "holds no ads",
    }.items():
        path = tmp_path / "ads.csv"
        path.write_text(text)
        with pytest.raises(AdRecError, match=message):
            AdRows.read(path, schema)
    with pytest.raises(ConfigError, match="expected a file of"):
        AdRows.read(tmp_path / "ads.json", schema)
    frame = pl.DataFrame({"price": [1, 2], "item": ["x", "y"], "brand": [None, "b"]})
    frame.write_parquet(tmp_path / "ads.parquet")
    rows = AdRows.read(tmp_path / "ads.parquet", schema)
    assert updater.ads.encode(rows)[0]["raw_price"].to_list() == ["1.0", "2.0"]
    frame.with_columns(item=pl.Series([7, 8])).write_parquet(tmp_path / "ads.parquet")
    with pytest.raises(AdRecError, match=r"parquet:row 1: item is 7, expected text"):
        updater.ads.encode(AdRows.read(tmp_path / "ads.parquet", schema))


@pytest.mark.parametrize("step", ["publish_version", "make_current"])
def test_killed_before_it_is_published_nothing_has_changed(
    step: str, run: Path, updater: Updater, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Recommender.load(run)
    update(updater, "first,b1,1")
    name = changes_name(run)

    def die(*args: object) -> None:
        raise KeyboardInterrupt

    module: Any = versions if step == "make_current" else export_update
    with monkeypatch.context() as patch:
        patch.setattr(module, step, die)
        with pytest.raises(KeyboardInterrupt):
            update(updater, "second,b1,1")
    assert changes_name(run) == name
    assert {"first", "second"} & set(answers(served.refreshed(run))) == {"first"}
    update(updater, "third,b1,1")
    assert not list(run.glob("changes.partial*"))
    items_now = set(answers(served.refreshed(run)))
    assert {"first", "second", "third"} & items_now == {"first", "third"}


def test_the_gate_refuses_too_many_changes(run: Path, updater: Updater) -> None:
    lines = [f"n{n},b1,1" for n in range(11)]
    with pytest.raises(GateError, match=r"5\.5% of the index's ads .* allows 5"):
        update(updater, *lines)
    assert not changes_name(run) and not list(run.glob("changes.partial*"))
    update(updater, *lines[:10])


def test_of_two_commands_at_once_the_second_is_refused(
    run: Path, updater: Updater
) -> None:
    # An update, or a build that publishes: both hold the run.
    with (
        hold(run, Job.new()),
        pytest.raises(ConfigError, match="another command is at work"),
    ):
        update(updater, "new,b1,1")
    update(updater, "new,b1,1")
    # One that was opened before knows what the other one has changed.
    other = Updater(run)
    update(other, "newer,b1,1")
    update(updater, "newest,b1,1")
    names = {"new", "newer", "newest"}
    assert names <= set(answers(Recommender.load(run)))


def rebuild(run: Path, *overrides: str) -> None:
    """Build the index as `adrec index compact` does."""
    settings = stage_settings(run / "data", overrides)
    run_stages([INDEX], settings, run, again=True)


def test_compaction_builds_the_changes_in_and_answers_the_same(
    run: Path, updater: Updater
) -> None:
    served = Recommender.load(run)
    gone = served.recommend(USER, 1).ads["ad_id"][0]
    update(updater, "a3,b6,7.5", "new,b1,", remove=(gone,))
    before = answers(served.refreshed(run))
    first = stage_folder(run, "index")
    rebuild(run)
    version = stage_folder(run, "index")
    manifest = IndexManifest.load(version)
    assert version != first and manifest.count == 200
    assert manifest.changes == changes_name(run)
    compacted = Recommender.load(run)
    index = compacted.retriever.index
    assert isinstance(index, UpdatedIndex)
    assert index.segment.count == 0 and index.changed_share == 0
    alike(answers(compacted), before)
    # It goes on from there, and so does one that was opened before.
    done = update(updater, "new,b2,2", "newer,b1,1")
    assert done.changed_share == 2 / 200
    newest = answers(compacted.refreshed(run))
    assert (newest["new"]["brand"], len(newest)) == ("b2", len(before) + 1)
    # Back in the version before, what was removed stays removed.
    assert roll_back(run).startswith(first.name)
    alike(answers(Recommender.load(run)), newest)
    rebuild(run, "index.kind=ivf_flat", "index.shards=3")
    alike(answers(Recommender.load(run)), newest)


def test_an_index_that_the_gate_refuses_leaves_the_updates_served(
    run: Path, updater: Updater, monkeypatch: pytest.MonkeyPatch
) -> None:
    update(updater, "new,b1,")
    version = stage_folder(run, "index")

    def refuse(*args: object, **kwargs: object) -> None:
        raise GateError("too low")

    monkeypatch.setattr("torchrec_adrec.export.build_index.tune_and_validate", refuse)
    with pytest.raises(GateError):
        rebuild(run)
    assert stage_folder(run, "index") == version
    assert "new" in answers(Recommender.load(run))


def test_changes_that_are_older_than_the_index_are_refused(
    run: Path, updater: Updater
) -> None:
    update(updater, "new,b1,")
    name = changes_name(run)
    update(updater, "newer,b1,")
    rebuild(run)
    versions.make_current(run / "changes", name)
    with pytest.raises(
        ManifestError, match=r"not in the run's changes .*: they are older"
    ):
        Recommender.load(run)


def test_a_new_export_encodes_the_changed_ads_again(
    run: Path, updater: Updater
) -> None:
    served = Recommender.load(run)
    gone = served.recommend(USER, 1).ads["ad_id"][0]
    update(updater, "a3,b6,7.5", "new,b1,", remove=(gone,))
    expected = answers(served.refreshed(run))
    settings = stage_settings(run / "data", ["export.dtype=fp16"])
    schema = Encoder.load(run / "data").schema
    with (
        process_group("cpu") as process,
        stage_workspace(EXPORT, settings, run, process) as folder,
    ):
        model, towers = restore("retrieval", run, schema, settings, process)
        export(model, towers, run / "data", settings, process, folder)
    with pytest.raises(ManifestError, match="made from export"):
        Recommender.load(run)
    with pytest.raises(AdRecError):
        update(updater, "newest,b1,")
    old = changes_name(run)
    rebuild(run, "export.dtype=fp16")
    assert changes_name(run) != old
    served = Recommender.load(run)
    assert set(answers(served)) == set(expected)
    # Changes of the export before, in the place of the new ones, are refused.
    versions.make_current(run / "changes", old)
    with pytest.raises(ManifestError, match="encodes the changed ads again"):
        served.refreshed(run)


def test_a_damaged_update_is_refused_and_the_old_one_stays(
    run: Path, updater: Updater
) -> None:
    served = Recommender.load(run)
    update(updater, "new,b1,")
    path = run / "changes/versions" / changes_name(run) / "vectors.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    readers: list[Callable[[Path], object]] = [served.refreshed, Recommender.load]
    for read in readers:
        with pytest.raises(ManifestError, match=r"vectors\.npy: expected sha256"):
            read(run)
    assert "new" not in answers(served)


def test_another_transform_than_that_of_the_catalog_is_noticed(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    AdEncoder.open(run)
    encode = Encoder.encode

    def wrong(self: Encoder, *args: Any) -> Any:
        columns = encode(self, *args)
        return columns | {"price": columns["price"] + 1}

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode", wrong)
        with pytest.raises(ManifestError, match="would get other price now"):
            AdEncoder.open(run)
    vectors: Any = AdEncoder._vectors
    monkeypatch.setattr(AdEncoder, "_vectors", lambda *args: -vectors(*args))
    with pytest.raises(ManifestError, match="the towers give vectors that are 2 of"):
        AdEncoder.open(run)


def test_the_commands(run: Path) -> None:
    def command(*args: object) -> Any:
        words = ["index", *map(str, args), "--out", str(run)]
        return CliRunner().invoke(app, words)

    stage_settings(run / "data").save(run / "config.yaml")
    rows, ids = rows_of(run.parent, "new,b1,"), ids_of(run.parent, 7)
    with pytest.raises(AdRecError, match="there is no ad 7"):
        raise command("update", "--add", rows, "--remove", ids).exception
    with pytest.raises(ConfigError, match="nothing to update"):
        raise command("update").exception
    done = command("update", "--add", rows)
    assert done.exit_code == 0 and done.stdout.startswith("000001-")
    assert "1 ads added, 0 replaced, 0 removed; 0.50%" in done.stdout
    assert command("compact").exit_code == 0
    manifest = IndexManifest.load(stage_folder(run, "index"))
    assert manifest.changes == changes_name(run)
