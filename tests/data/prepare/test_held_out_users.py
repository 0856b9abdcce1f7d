"""Raw users of test rows are kept as they were, and so are propensities."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.data.adapters import open_data
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.prepare.held_out_users import (
    OF_ALL,
    OF_CLICKED,
    OF_ROWS,
    TEST_ROW,
    read_held_out_users,
)
from torchrec_adrec.data.prepare.prepare import prepare
from torchrec_adrec.data.request import raw_users
from torchrec_adrec.errors import DataError
from torchrec_adrec.runtime.ranks import SingleProcess
from torchrec_adrec.schema import AD_ID, PROPENSITY, USER_KEY, Side

ROWS = 900
TABLE: dict[str, Any] = {
    "labels": {"click": {}},
    "time": {"column": "ts", "kind": "number"},
    "user_id": "uid",
    "user": {
        "uid": "text",
        "age": "number",
        "history": {"column": "seen", "kind": "sequence", "max_length": 4},
    },
    "ad": {"creative": "text"},
    "propensity": "p",
}


def raw_rows() -> pl.DataFrame:
    """Rows of three files whose times overlap: test rows lie in all of them."""
    rng = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "ts": rng.permutation(ROWS),
            "uid": [f"u{i}" for i in rng.integers(60, size=ROWS)],
            "age": rng.integers(90, size=ROWS),
            "seen": [
                " ".join(rng.choice(["a", "b"], n)) for n in rng.integers(6, size=ROWS)
            ],
            "creative": [f"ad {i}" for i in rng.integers(20, size=ROWS)],
            "click": rng.integers(2, size=ROWS),
            "p": 1 - rng.random(ROWS),
        }
    )


def prepared(folder: Path, rows: pl.DataFrame, **table: Any) -> Path:
    for i in range(3):
        rows[i * 300 : (i + 1) * 300].write_csv(folder / f"part_{i}.csv")
    settings = {"adapter": "table", "raw": f"{folder}/part_*.csv", "min_count": 2}
    config = DataConfig.model_validate({**settings, "table": {**TABLE, **table}})
    out = folder / "data"
    out.mkdir()
    prepare(config, open_data(config, 0, out, SingleProcess()), out)
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("held"), raw_rows())


def test_users_are_those_of_their_test_rows(data: Path) -> None:
    encoder, kept = Encoder.load(data), read_held_out_users(data)
    test = pl.read_parquet(data / "test/*.parquet")
    raw = kept.select(n for n in kept.columns if not n.startswith("test:"))
    assert raw.columns == ["age", "uid", "history"]
    encoded = encoder.encode(raw_users(raw, encoder.schema), Side.USER)
    for name, values in encoded.items():
        assert values.tolist() == test[name].gather(kept[TEST_ROW]).to_list(), name


def test_each_draw_holds_whom_it_should(data: Path) -> None:
    kept = read_held_out_users(data)
    test = pl.read_parquet(data / "test/*.parquet").with_row_index("row")
    first = test.group_by(USER_KEY).agg(pl.col("row").min(), pl.col("click").max())
    rows = {n: set(kept.filter(pl.col(n))[TEST_ROW]) for n in (OF_ALL, OF_CLICKED)}
    assert rows[OF_ALL] == set(first["row"])
    assert rows[OF_CLICKED] == set(first.filter(pl.col("click") == 1)["row"])
    assert kept[OF_ROWS].all() and len(kept) == len(test) == 90


def test_propensities_are_those_of_the_rows(data: Path) -> None:
    raw = raw_rows().sort("ts")
    test = pl.read_parquet(data / "test/*.parquet").with_columns(
        pl.col("click").cast(pl.Int64)
    )
    catalog = pl.read_parquet(data / "catalog.parquet")
    shown = test.join(catalog, on=AD_ID)
    rows = raw[-90:].select("p", "creative", "click").sort("p")
    assert shown.select(PROPENSITY, "raw_creative", "click").sort(
        PROPENSITY
    ).rows() == (rows.rows())
    assert PROPENSITY not in catalog.columns


def test_what_is_no_propensity_is_a_bad_row(tmp_path: Path) -> None:
    p = pl.when(pl.col("ts") < 5).then(0.0).otherwise("p")
    wrong = raw_rows().with_columns(p=p)
    with pytest.raises(DataError, match="above 0 and at most 1"):
        prepared(tmp_path, wrong)


def test_a_propensity_is_no_feature(tmp_path: Path) -> None:
    user = {**TABLE["user"], "p": "number"}
    with pytest.raises(ValidationError, match="p is a feature too"):
        prepared(tmp_path, raw_rows(), user=user)


def test_without_propensities_no_rows_are_kept_for_them(tmp_path: Path) -> None:
    out = prepared(tmp_path, raw_rows(), propensity=None, ignore=["p"])
    assert not read_held_out_users(out)[OF_ROWS].any()
    assert PROPENSITY not in pl.read_parquet(out / "test/*.parquet").columns
