"""What is wrong with an update is named, and nothing of it is served."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from updates import answers, update

from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.errors import AdRecError, ConfigError, GateError, ManifestError
from torchrec_adrec.export import update as export_update
from torchrec_adrec.export.ad_encoder import AdEncoder
from torchrec_adrec.export.ad_file import AdRows
from torchrec_adrec.export.update import Updater
from torchrec_adrec.runs import versions
from torchrec_adrec.runs.ad_changes import changes_name
from torchrec_adrec.runs.run_lock import Job, hold
from torchrec_adrec.serve.recommender import Recommender


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
    lines: list[str], remove: list[Any], message: str, updater: Updater
) -> None:
    run = updater.run
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
    step: str, updater: Updater, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = updater.run
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


def test_the_gate_refuses_too_many_changes(updater: Updater) -> None:
    run = updater.run
    lines = [f"n{n},b1,1" for n in range(11)]
    with pytest.raises(GateError, match=r"5\.5% of the index's ads .* allows 5"):
        update(updater, *lines)
    assert not changes_name(run) and not list(run.glob("changes.partial*"))
    update(updater, *lines[:10])


def test_of_two_commands_at_once_the_second_is_refused(updater: Updater) -> None:
    run = updater.run
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


def test_a_damaged_update_is_refused_and_the_old_one_stays(updater: Updater) -> None:
    run = updater.run
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
    updater: Updater, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = updater.run
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
