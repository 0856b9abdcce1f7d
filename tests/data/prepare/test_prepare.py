"""The whole stage: splits, catalog, fits and report, on any number of ranks."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import adrec, criteo_line, on_ranks, prepare_criteo

from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.request import raw_user
from torchrec_adrec.errors import ConfigError, DataError, ManifestError
from torchrec_adrec.schema import AD_ID, LOG_Q, Schema, Side


def rows_of(data: Path) -> pl.DataFrame:
    parts = [data / f"{name}/*.parquet" for name in ("train", "valid", "test")]
    return pl.concat(pl.read_parquet(part) for part in parts)


def test_the_splits_are_the_rows_in_time_order(prepared: Path, raw_file: Path) -> None:
    labels = [int(line[0]) for line in raw_file.read_text().splitlines()]
    assert rows_of(prepared)["click"].to_list() == labels
    assert len(pl.read_parquet(prepared / "test/*.parquet")) == 40


def test_fitted_on_the_training_rows_alone(tmp_path: Path) -> None:
    lines = [criteo_line(i, i % 2) for i in range(80)]
    lines += [criteo_line(i, i % 2, c1="ffffffff") for i in range(80, 100)]
    (tmp_path / "raw.tsv").write_text("\n".join(lines))
    report = prepare_criteo(tmp_path / "out", tmp_path / "raw.tsv")
    assert report["num_embeddings"]["C1"] == 3
    assert report["splits"]["train"]["unknown"]["C1"] == 0
    assert report["splits"]["test"]["unknown"]["C1"] == 1


def test_every_row_finds_its_own_ad_in_the_catalog(prepared: Path) -> None:
    """Fails when an id of the catalog has the features of another ad."""
    schema = Schema.load(prepared / "schema.json")
    names = [f.name for f in schema.sparse_of(Side.AD)]
    rows, catalog = rows_of(prepared), load_catalog(prepared)
    joined = rows.join(catalog, on=AD_ID, how="left", suffix=":catalog")
    assert len(catalog) == 7
    for name in names:
        assert joined[name].to_list() == joined[f"{name}:catalog"].to_list()


def test_log_q_is_the_share_of_the_training_impressions(prepared: Path) -> None:
    train = pl.read_parquet(prepared / "train/*.parquet")
    for (ad,), rows in train.group_by([AD_ID]):
        share = len(rows) / len(train)
        assert np.allclose(np.exp(rows[LOG_Q].to_numpy()), share), ad


def test_an_ad_that_training_never_saw_has_no_log_q(tmp_path: Path) -> None:
    lines = [criteo_line(i - i % 7, i % 2) for i in range(90)]
    lines += [criteo_line(5, 1)] * 10
    (tmp_path / "raw.tsv").write_text("\n".join(lines))
    prepare_criteo(tmp_path / "out", tmp_path / "raw.tsv")
    assert pl.read_parquet(tmp_path / "out/test/*.parquet")[LOG_Q].is_nan().all()


def test_bad_rows_past_the_limit_stop(tmp_path: Path) -> None:
    (tmp_path / "raw.tsv").write_text("\n".join([criteo_line(1)] * 50 + ["rubbish"]))
    with pytest.raises(DataError, match=r"1 of 51 rows .*raw\.tsv:51: 1 fields"):
        prepare_criteo(tmp_path / "out", tmp_path / "raw.tsv")


def write_rows(path: Path, rows: range) -> Path:
    path.write_text("".join(criteo_line(i, i % 3 == 0) + "\n" for i in rows))
    return path


def test_files_and_blocks_do_not_change_the_result(tmp_path: Path) -> None:
    whole = write_rows(tmp_path / "a.tsv", range(9000))
    halves = [write_rows(tmp_path / "b.tsv", range(4000))]
    halves.append(write_rows(tmp_path / "c.tsv", range(4000, 9000)))
    one = prepare_criteo(tmp_path / "one", whole)
    two = prepare_criteo(tmp_path / "two", *halves, chunk_megabytes=1)
    assert rows_of(tmp_path / "one").equals(rows_of(tmp_path / "two"))
    assert load_catalog(tmp_path / "one").equals(load_catalog(tmp_path / "two"))
    assert {k: v for k, v in one.items() if k != "raw"} == {
        k: v for k, v in two.items() if k != "raw"
    }


@pytest.mark.parametrize("ids", ["frequency", "hash"])
def test_ranks_do_not_change_the_result(tmp_path: Path, ids: str) -> None:
    """Three files on one rank and on two gloo ranks: the same bytes."""
    for i in range(3):
        write_rows(tmp_path / f"day_{i}.tsv", range(i * 500, (i + 1) * 500))
    args = [f"data.raw={tmp_path}/day_*.tsv", f"data.ids={ids}"]
    args += ["data.hash_size=50", "data.min_count=2"]
    assert adrec("prepare", *args, "--out", tmp_path / "one").returncode == 0
    process = on_ranks(2, "prepare", *args, "--out", tmp_path / "two")
    assert process.returncode == 0, process.stderr
    files = sorted(
        p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*")
    )
    kept = [p for p in files if p.suffix in (".parquet", ".json", ".md")]
    assert len(kept) > 10
    for path in kept:
        if path.name != "stage.json":
            expected = (tmp_path / "one" / path).read_bytes()
            assert (tmp_path / "two" / path).read_bytes() == expected, path
    sizes = Schema.load(tmp_path / "two/data/schema.json").sparse
    assert (ids == "hash") == all(f.num_embeddings == 50 for f in sizes)


@pytest.mark.parametrize("by", ["time", "random"])
def test_each_row_stands_in_one_split(tmp_path: Path, by: str) -> None:
    lines = [criteo_line(i, i % 3 == 0, c1=f"{i:08x}") for i in range(2000)]
    (tmp_path / "a.tsv").write_text("\n".join(lines))
    split = {"by": by, "train": 0.6, "valid": 0.2, "test": 0.2}
    settings = {"min_count": 1, "split": split, "bounds": "raise"}
    report = prepare_criteo(tmp_path / "out", tmp_path / "a.tsv", **settings)
    sizes = {name: figures["rows"] for name, figures in report["splits"].items()}
    assert sum(sizes.values()) == 2000
    assert report["rows_in_two_splits"]["also_in_train"] == 0
    tolerance = 0 if by == "time" else 90  # about four deviations
    assert abs(sizes["train"] - 1200) <= tolerance
    assert abs(sizes["test"] - 400) <= tolerance
    hashes = {figures["hash"] for figures in report["splits"].values()}
    assert len(hashes) == 3


@pytest.mark.parametrize("by", ["time", "random"])
def test_a_split_without_rows_is_refused(tmp_path: Path, by: str) -> None:
    raw = write_rows(tmp_path / "a.tsv", range(8))
    with pytest.raises(DataError, match=r"data\.split\..* = 0\.1 of 8 rows is no row"):
        prepare_criteo(tmp_path / "out", raw, split={"by": by})


def test_a_file_named_twice_is_refused(tmp_path: Path) -> None:
    raw = write_rows(tmp_path / "a.tsv", range(50))
    (tmp_path / "b").mkdir()
    with pytest.raises(ConfigError, match=r"a\.tsv named twice"):
        prepare_criteo(tmp_path / "out", raw, raw.parent / "b/../a.tsv")


def test_a_split_by_user_needs_a_user(tmp_path: Path, raw_file: Path) -> None:
    with pytest.raises(ConfigError, match="but the data names no user"):
        prepare_criteo(tmp_path / "out", raw_file, split={"by": "user"})


def test_the_hash_of_a_split_changes_with_its_rows(tmp_path: Path) -> None:
    hashes: list[dict[str, str]] = []
    for last in (1999, 1999, 2000):
        lines = [criteo_line(i, i % 3 == 0, c1=f"{i:08x}") for i in range(1999)]
        lines.append(criteo_line(1, c1=f"{last:08x}"))
        (tmp_path / "a.tsv").write_text("\n".join(lines))
        report = prepare_criteo(tmp_path / f"out{len(hashes)}", tmp_path / "a.tsv")
        splits = report["splits"].items()
        hashes.append({name: figures["hash"] for name, figures in splits})
    assert hashes[0] == hashes[1]
    assert hashes[0]["train"] == hashes[2]["train"]
    assert hashes[0]["test"] != hashes[2]["test"]


def test_the_report_has_a_picture_and_the_label_over_time(prepared: Path) -> None:
    report = json.loads((prepared / "report.json").read_text())
    rows, clicks = np.array(report["label_periods"]["click"])
    assert rows.sum() == 400 and clicks.sum() == 134
    assert (prepared / "report.png").read_bytes().startswith(b"\x89PNG")
    text = (prepared / "report.md").read_text()
    assert (
        "400 rows were read, 0 of them bad" in text
        and "![the data](report.png)" in text
    )


def test_a_drifting_column_is_named(tmp_path: Path) -> None:
    lines = [criteo_line(i, i % 3 == 0, c1=f"{i % 2:08x}") for i in range(1600)]
    lines += [criteo_line(i, i % 3 == 0, c1=f"{i % 20 == 0:08x}") for i in range(400)]
    (tmp_path / "a.tsv").write_text("\n".join(lines))
    report = prepare_criteo(tmp_path / "out", tmp_path / "a.tsv")
    # p = (0.5, 0.5) and q is about (0.05, 0.95): 0.45 log 10 + 0.45 log 1.9 = 1.3
    assert report["drift"]["C1"] == pytest.approx(1.3, abs=0.15)
    assert report["drift"]["C4"] < 0.05


def test_serving_encodes_as_prepare_did(prepared: Path, raw_file: Path) -> None:
    encoder = Encoder.load(prepared)
    parts = raw_file.read_text().splitlines()[3].split("\t")
    user: dict[str, int | str] = {f"I{i}": int(parts[i]) for i in range(1, 14)}
    ads = [f.source for f in encoder.schema.sparse_of(Side.AD)]
    user |= {f"C{i}": parts[13 + i] for i in range(1, 27) if f"C{i}" not in ads}
    encoded = encoder.encode(raw_user(user, encoder.schema), Side.USER)
    row = rows_of(prepared).row(3, named=True)
    assert {n: v[0] for n, v in encoded.items()} == {n: row[n] for n in encoded}


def test_changed_transforms_and_catalogs_are_refused(prepared: Path) -> None:
    Encoder.load(prepared)
    catalog = load_catalog(prepared)
    shifted = catalog.with_columns(pl.col(AD_ID).shift(1, fill_value=0))
    shifted.write_parquet(prepared / "catalog.parquet")
    with pytest.raises(ManifestError, match=r"catalog\.parquet: expected sha256"):
        load_catalog(prepared)
    catalog.write_parquet(prepared / "catalog.parquet")
    (prepared / "vocabulary/C4.parquet").rename(prepared / "vocabulary/C5.parquet")
    with pytest.raises(ManifestError, match=r"vocabulary/C[45]\.parquet: expected"):
        Encoder.load(prepared)


def test_only_one_label_is_refused(tmp_path: Path) -> None:
    (tmp_path / "raw.tsv").write_text("\n".join(criteo_line(i) for i in range(50)))
    with pytest.raises(DataError, match="every training row has click = 0"):
        prepare_criteo(tmp_path / "out", tmp_path / "raw.tsv")


def test_rows_without_labels_cannot_be_learnt_from(tmp_path: Path) -> None:
    lines = [criteo_line(i).partition("\t")[2] for i in range(50)]
    (tmp_path / "raw.tsv").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"click = 0 \(0 observed\)"):
        prepare_criteo(tmp_path / "out", tmp_path / "raw.tsv", labelled=False)


def test_real_rows_give_the_counted_figures(real_data: Path, tmp_path: Path) -> None:
    """Shares of unknown values in the last fifth, counted independently."""
    raw = real_data / "criteo_kaggle/train_109711.tsv.gz"
    split = {"train": 0.8, "valid": 0, "test": 0.2}
    report = prepare_criteo(tmp_path, raw, split=split, min_count=1)
    unknown = report["splits"]["test"]["unknown"]
    expected = {"C3": 0.4340, "C4": 0.2057, "C12": 0.3939, "C16": 0.3135}
    expected |= {"C21": 0.3592, "C15": 0.0234, "C2": 0.0006}
    assert {name: round(unknown[name], 4) for name in expected} == expected
    assert report["rows_in"] == 109_711 and report["bad_rows"]["count"] == 0
    assert report["ads"]["all"] == 7407
    numbers = pl.read_parquet(tmp_path / "t*/*.parquet").select(pl.selectors.float())
    assert numbers.drop(LOG_Q).fill_nan(None).null_count().sum_horizontal().item() == 0
    assert report["rows_in_two_splits"]["also_in_train"] == 0
