"""Sets, vectors and prose through `prepare`: what its files hold."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich_rows import (
    ADS,
    ROWS,
    SETTINGS,
    genres_of,
    image_of,
    rich_config,
    rich_rows,
    use_words,
)
from thread_ranks import assert_same_files, prepare_on

from torchrec_adrec.data.catalog import ad_ids, load_catalog
from torchrec_adrec.data.column import JaggedColumn, column_of
from torchrec_adrec.data.loader.collate import batch_columns, collate
from torchrec_adrec.data.loader.negatives import UniformNegatives
from torchrec_adrec.data.loader.parquet import Reader
from torchrec_adrec.data.loader.row_groups import Split
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.errors import DataError
from torchrec_adrec.schema import AD_ID, Side


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rich")
    with pytest.MonkeyPatch.context() as patch:
        words = use_words(patch)
        prepare_on(1, rich_config(folder), folder / "data")
        texts = rich_rows().select(pl.col("query", "title").drop_nulls().n_unique())
        assert len(words.encoded) == sum(texts.row(0)) == len(set(words.encoded))
    return folder / "data"


def test_the_catalog_has_the_sets_and_vectors_of_its_ads(data: Path) -> None:
    catalog = load_catalog(data)
    assert len(catalog) == ADS and "raw_image" not in catalog.columns
    vocabulary = Encoder.load(data).vocabularies["genres"]
    for ad in catalog.iter_rows(named=True):
        item = int(ad["raw_item"][1:])
        genres = sorted(set(genres_of(item)))
        assert ad["raw_genres"] == genres
        ids = [ad[f"genres:{k}"] for k in range(4) if ad[f"genres:{k}"] != -1]
        assert len(ids) == len(genres) and min(ids, default=2) > 1
        image = image_of(item)
        assert ad["image"] == [*(image or [0.0] * 5), 0.0 if image else 1.0]
    assert vocabulary.num_embeddings == 2 + 7


def test_a_batch_has_the_values_of_its_rows(data: Path) -> None:
    """Also of ads that are drawn from the catalog, behind those of the rows."""
    schema = Encoder.load(data).schema
    reader = Reader(Split.open(data / "test"), batch_columns(schema), 64)
    rows = next(iter(reader.epoch()))
    drawn = UniformNegatives(data, schema, 8, 64, 0).of_step(1)
    batch, catalog = collate(rows, schema, extra=drawn), load_catalog(data)
    names = schema.dense_names_of(Side.AD)
    assert names == ("image",) * 6 + ("title",) * 7
    assert batch.ad.dense.shape == (72, 13)
    ads = catalog[np.searchsorted(catalog[AD_ID], batch.ad_ids.numpy())]
    expected = np.hstack([ads["image"].to_numpy(), ads["title"].to_numpy()])
    np.testing.assert_array_equal(batch.ad.dense.numpy(), expected)
    lists = batch.ad.sparse["genres"].to_dense()
    for ids, ad in zip(lists, ads.iter_rows(named=True), strict=True):
        assert ids.tolist() == [i for k in range(4) if (i := ad[f"genres:{k}"]) != -1]


def test_the_number_of_ranks_changes_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_words(monkeypatch)
    config = rich_config(tmp_path)
    other = prepare_on(2, config, tmp_path / "data")
    # The reports name the raw files, which lie elsewhere.
    (other / "report.json").write_bytes((data / "report.json").read_bytes())
    assert_same_files(data, other)
    for path in data.glob("vectors/*"):
        assert path.read_bytes() == (other / "vectors" / path.name).read_bytes()


def test_the_scale_is_that_of_training_rows(data: Path) -> None:
    schema = Encoder.load(data).schema
    train = rich_rows()[: int(0.8 * ROWS)]["image"].drop_nulls()
    square = np.mean(np.square(np.stack(train.to_list())))
    image, title = schema.vectors_of(Side.AD)
    assert image.scale == pytest.approx(square**-0.5)
    assert title.scale == pytest.approx(6**0.5) and title.encoder == "words 1"


def test_the_order_of_a_set_makes_no_other_ad() -> None:
    lists = [["a", "b"], ["b", "a"], ["a"], [], ["b"], ["a", "b"]]
    items = pl.Series(["x"] * 6)
    raw = {"item": column_of(items), "genres": column_of(pl.Series(lists))}
    assert isinstance(raw["genres"], JaggedColumn)
    ids = ad_ids(raw, ("item", "genres"))
    assert ids[0] == ids[1] == ids[5] and len(set(ids)) == 4 and ids.min() >= 0


def test_drawn_negatives_have_the_values_of_their_own_ads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_words(monkeypatch)
    click = {"click": {"positives_only": True, "negatives": 2}}
    config = rich_config(tmp_path, labels=click, ignore=["click"])
    out = prepare_on(1, config, tmp_path / "data")
    names = ["item", *(f"genres:{k}" for k in range(4)), "image", "title"]
    rows = pl.read_parquet(out / "train/*.parquet").select("click", *names)
    assert (rows["click"] == 0).sum() > len(rows) / 2
    assert rows.select(names).n_unique() == rows["item"].n_unique()


def test_a_place_behind_the_last_vector_is_refused(data: Path, tmp_path: Path) -> None:
    schema = Encoder.load(data).schema
    reader = Reader(Split.open(data / "test"), batch_columns(schema), 64)
    rows = next(iter(reader.epoch()))
    image = next(iter(schema.vectors_of(Side.AD)))
    rows.columns[image.name][3] = ADS + 1
    with pytest.raises(DataError, match=r"image is at .* vectors in .*prepare again"):
        collate(rows, schema)


def test_a_user_column_that_gives_a_set_or_vector_away_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails when only the ad's single ids are compared with the user's columns."""
    use_words(monkeypatch)
    for column in ("genres", "image"):
        ad = {"brand": "text", column: SETTINGS["ad"][column]}
        settings = {"user": {"place": "text"}, "ad": ad, "user_id": None}
        folder = tmp_path / column
        folder.mkdir()
        config = rich_config(folder, **settings, ad_id=None, ignore=["*"])
        rows = rich_rows().with_columns(
            place=pl.col(column).hash().cast(pl.String), brand=pl.lit("b")
        )
        if column == "genres":
            places = pl.col("genres").str.split("|").list.sort().list.join("|")
            rows = rows.with_columns(place=pl.lit("p") + places)
        rows.write_parquet(folder / "rows.parquet")
        with pytest.raises(DataError, match=f"place -> {column}"):
            prepare_on(1, config, folder / "data")
