from pathlib import Path

import polars as pl
import pytest
from conftest import REPOSITORY

from torchrec_adrec.config import load_config
from torchrec_adrec.data.adapters import criteo
from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.data.leaks import dependencies, refuse_leaky_sides
from torchrec_adrec.data.prepare import prepare
from torchrec_adrec.errors import DataError
from torchrec_adrec.schema import Schema, Side, SparseFeature

SCHEMA = Schema(
    dense=(),
    sparse=(
        SparseFeature(name="u", side=Side.USER, source="u"),
        SparseFeature(name="a", side=Side.AD, source="a"),
    ),
    labels=(),
)


def test_by_hand() -> None:
    # u = 1: a is 7 in six of eight rows; u = 2 was seen too seldom; one u is missing.
    rows = pl.DataFrame(
        {"u": [1] * 8 + [2] * 4 + [None], "a": [7] * 6 + [8] * 2 + [9] * 5}
    )
    (found,) = dependencies(rows.lazy(), SCHEMA)
    assert (found.determined, found.base_rate, found.rows) == (0.75, 0.75, 8)
    assert not found.leaks


def test_a_column_that_names_the_ad_is_refused() -> None:
    rows = pl.DataFrame({"u": [i % 3 for i in range(60)]})
    found = dependencies(rows.with_columns(a=pl.col("u") + 5).lazy(), SCHEMA)
    with pytest.raises(DataError, match=r"u -> a \(1\.000\); put both ends"):
        refuse_leaky_sides(found)


def test_an_ad_column_that_hardly_varies_is_no_leak() -> None:
    rows = pl.DataFrame({"u": [i % 3 for i in range(60)], "a": [1] * 59 + [2]})
    refuse_leaky_sides(dependencies(rows.lazy(), SCHEMA))


def real(path: Path, ads: tuple[str, ...]) -> dict[tuple[str, str], float]:
    frame = pl.concat(criteo.read([path], BadRows(), 64 << 20))
    found = dependencies(frame.lazy(), criteo.schema(ads))
    return {(d.user, d.ad): d.determined for d in found}


def test_real_rows(real_data: Path, tmp_path: Path) -> None:
    path = real_data / "criteo_kaggle/train_109711.tsv.gz"
    creative = real(path, ("C2", "C14", "C18"))
    assert [round(creative["C15", ad], 3) for ad in ("C2", "C14", "C18")] == [1, 1, 1]
    assert real(path, ("C12",))["C3", "C12"] == 1
    split = load_config(REPOSITORY / "configs/criteo_kaggle_leaky_sides.yaml").data
    with pytest.raises(DataError, match="give an ad column away: C3 -> C1"):
        prepare(split, [path], tmp_path)
