from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import criteo_line

from torchrec_adrec.config import Config, DataConfig, load_config
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.data.encoder import Encoder
from torchrec_adrec.data.prepare import prepare
from torchrec_adrec.errors import DataError, ManifestError
from torchrec_adrec.schema import AD_ID, LOG_Q, Schema, Side

DEFAULT = Config().data


def rows_of(data: Path) -> pl.DataFrame:
    parts = [data / f"{name}/*.parquet" for name in ("train", "valid", "test")]
    return pl.concat(pl.read_parquet(part) for part in parts)


def test_the_splits_are_the_rows_in_time_order(prepared: Path, raw_file: Path) -> None:
    labels = [int(line[0]) for line in raw_file.read_text().splitlines()]
    assert rows_of(prepared)["click"].to_list() == labels
    assert len(pl.read_parquet(prepared / "test/*.parquet")) == 40


def test_fitted_on_the_training_rows_alone(tmp_path: Path) -> None:
    lines = [criteo_line(i, i % 2) for i in range(80)]
    lines += [criteo_line(i, c1="ffffffff") for i in range(80, 100)]
    (tmp_path / "raw.tsv").write_text("\n".join(lines))
    (tmp_path / "out").mkdir()
    report = prepare(DEFAULT, [tmp_path / "raw.tsv"], tmp_path / "out")
    assert report["num_embeddings"]["C1"] == 3
    assert report["splits"]["train"]["unknown"]["C1"] == 0
    assert report["splits"]["test"]["unknown"]["C1"] == 1


def test_every_row_finds_its_own_ad_in_the_catalog(prepared: Path) -> None:
    """Fails when the catalog's ids stand beside another ad's features."""
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
    lines += [criteo_line(5)] * 10
    (tmp_path / "raw.tsv").write_text("\n".join(lines))
    (tmp_path / "out").mkdir()
    prepare(DEFAULT, [tmp_path / "raw.tsv"], tmp_path / "out")
    assert pl.read_parquet(tmp_path / "out/test/*.parquet")[LOG_Q].is_nan().all()


def test_bad_rows_past_the_limit_stop(tmp_path: Path) -> None:
    (tmp_path / "raw.tsv").write_text("\n".join([criteo_line(1)] * 50 + ["rubbish"]))
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"1 of 51 rows .*raw\.tsv:51: 1 fields"):
        prepare(DEFAULT, [tmp_path / "raw.tsv"], tmp_path / "out")


def test_files_and_blocks_do_not_change_the_result(tmp_path: Path) -> None:
    lines = [criteo_line(i, i % 3 == 0) + "\n" for i in range(9000)]
    (tmp_path / "a.tsv").write_text("".join(lines))
    (tmp_path / "b.tsv").write_text("".join(lines[:4000]))
    (tmp_path / "c.tsv").write_text("".join(lines[4000:]))
    small = DEFAULT.model_copy(update={"chunk_megabytes": 1})
    outs = [tmp_path / "one", tmp_path / "two"]
    for out in outs:
        out.mkdir()
    prepare(DEFAULT, [tmp_path / "a.tsv"], outs[0])
    prepare(small, [tmp_path / "b.tsv", tmp_path / "c.tsv"], outs[1])
    assert rows_of(outs[0]).equals(rows_of(outs[1]))
    assert load_catalog(outs[0]).equals(load_catalog(outs[1]))


def test_serving_encodes_as_prepare_did(prepared: Path, raw_file: Path) -> None:
    encoder = Encoder.load(prepared)
    parts = raw_file.read_text().splitlines()[3].split("\t")
    numbers = {f"I{i}": [int(parts[i])] for i in range(1, 14)}
    hashes = {f"C{i}": [int(parts[13 + i], 16)] for i in range(1, 27)}
    encoded = encoder.encode(pl.DataFrame(numbers | hashes), Side.USER)
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
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="every training row has click = 0"):
        prepare(DEFAULT, [tmp_path / "raw.tsv"], tmp_path / "out")


def test_real_rows_give_the_counted_figures(real_data: Path, tmp_path: Path) -> None:
    """Shares of unknown values in the last fifth, counted independently."""
    words = ["data.split={train: .8, valid: 0, test: .2}", "data.min_count=1"]
    config: DataConfig = load_config(None, words).data
    report = prepare(
        config, [real_data / "criteo_kaggle/train_109711.tsv.gz"], tmp_path
    )
    unknown = report["splits"]["test"]["unknown"]
    assert {name: round(unknown[name], 4) for name in ("C3", "C4", "C12", "C16")} == {
        "C3": 0.4340,
        "C4": 0.2057,
        "C12": 0.3939,
        "C16": 0.3135,
    }
    assert report["rows_in"] == 109_711 and report["bad_rows"]["count"] == 0
    assert report["ads"]["all"] == 7407
