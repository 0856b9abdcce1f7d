from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from torchrec_adrec.config.data import DataConfig, SyntheticConfig
from torchrec_adrec.data.adapters import criteo, open_data, synthetic
from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.data.column import Chunk
from torchrec_adrec.data.dataset import DataSet
from torchrec_adrec.data.known_world import log as known_log
from torchrec_adrec.data.known_world.law import Shown
from torchrec_adrec.data.prepare.leaks import dependencies, refuse_leaky_sides

SMALL = SyntheticConfig(rows=5000, ads=200, users=300)
AD_COLUMNS = ("C2", "C14", "C15", "C18", "C25")


def read(path: Path) -> pl.DataFrame:
    bad = BadRows()
    layout = criteo.Layout.of(path, labelled=True)
    frame = pl.concat(criteo.read_file(path, layout, bad, 1 << 20))
    assert bad.count == 0
    return frame


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 30,000 rows in `a.tsv` and their `truth`, in several blocks."""
    folder = tmp_path_factory.mktemp("synthetic")
    config = SyntheticConfig(rows=30_000, ads=400, users=500)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known_log, "BLOCK_ROWS", 8192)
        synthetic.write(config, 0, folder / "a.tsv", folder / "truth")
    return folder


@pytest.fixture(scope="module")
def lines(folder: Path) -> pl.DataFrame:
    return read(folder / "a.tsv")


@pytest.fixture(scope="module")
def truth(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "truth/rows.parquet")


def files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        synthetic.write(SMALL, seed, tmp_path / name / "a.tsv", tmp_path / name / "t")
    one, repeated, two = (files(tmp_path / name) for name in ("one", "again", "two"))
    assert one == repeated
    assert set(one) == {
        "a.tsv",
        *(f"t/{kind}" for kind in ("rows.parquet", "users.parquet", "ads.parquet")),
        "t/world.json",
    }
    assert all(one[name] != two[name] for name in one)


def test_every_line_has_its_own_truth(lines: pl.DataFrame, truth: pl.DataFrame) -> None:
    """Fails when the truth is shifted by one row."""
    assert len(lines) == len(truth) == 30_000
    assert (lines["click"] == truth["engagement"].is_not_null()).all()
    for column, source in (("C3", "user"), ("C13", "position"), ("C23", "device")):
        pairs = pl.DataFrame({"raw": lines[column], "law": truth[source]})
        pairs = pairs.drop_nulls().unique()
        assert pairs["raw"].is_unique().all() and pairs["law"].is_unique().all()
    hours = pl.DataFrame({"raw": lines["C17"], "hour": truth["time"] % 1 * 24 // 1})
    assert len(hours.unique()) == 24


def test_the_creative_determines_the_ad(
    folder: Path, lines: pl.DataFrame, truth: pl.DataFrame
) -> None:
    ads = pl.read_parquet(folder / "truth/ads.parquet")
    assert ads["C15"].is_unique().all() and ads["C15"].dtype == pl.UInt32
    joined = truth.select("ad").join(ads, on="ad", maintain_order="left")
    for name in AD_COLUMNS:
        assert (joined[name] == lines[name]).all()


def test_the_world_can_be_made_again_from_its_file(
    folder: Path, truth: pl.DataFrame
) -> None:
    world = synthetic.read_world(folder / "truth")
    parts = (truth[name].to_numpy() for name in Shown._fields)
    assert np.array_equal(world.truth(Shown(*parts)).p_click, truth["p_click"])
    users = pl.read_parquet(folder / "truth/users.parquet")
    assert (users["vector"].to_numpy() == world.users.vector).all()


def test_no_user_column_gives_the_ad_away(lines: pl.DataFrame) -> None:
    data = DataSet(criteo.schema(DataConfig()), (), lambda path, bad: iter(()))
    chunk = Chunk.of(lines, data, ThreadPoolExecutor(1))
    every = np.ones(chunk.num_rows, dtype=bool)
    pairs = dependencies([(chunk, every)], data.schema)
    refuse_leaky_sides(pairs)
    assert max(d.determined for d in pairs) < 0.6


def test_gaps_and_negatives_are_as_in_the_real_rows(lines: pl.DataFrame) -> None:
    missing = {name: lines[name].null_count() / len(lines) for name in lines.columns}
    expected = {"I1": 0.45, "I2": 0, "I12": 0.77, "C3": 0.04, "C20": 0.44, "C22": 0.76}
    for name, share in expected.items():
        assert missing[name] == pytest.approx(share, abs=0.015), name
    assert lines["I2"].min() == -2
    assert lines["I1"].is_null().equals(lines["I10"].is_null())


def test_numbers_and_segments_tell_of_the_user(
    folder: Path, lines: pl.DataFrame, truth: pl.DataFrame
) -> None:
    users = pl.read_parquet(folder / "truth/users.parquet")
    joined = truth.select("user").join(users, on="user", maintain_order="left")
    for name in ("I1", "I2", "I6"):
        pairs = pl.DataFrame({"x": lines[name], "y": joined["activity"]}).drop_nulls()
        assert pairs.select(pl.corr("x", "y", method="spearman")).item() > 0.6
    segments = pl.DataFrame({"raw": lines["C1"], "group": joined["group"]}).unique()
    assert len(segments) == joined["group"].n_unique()
    quarter = pl.DataFrame({"raw": lines["C4"], "x": joined["vector"].arr.get(0)})
    bounds = quarter.drop_nulls().group_by("raw").agg(pl.col("x").max())
    assert bounds["x"].sort()[:3].to_list() == pytest.approx([-0.24, 0, 0.24], abs=0.02)


def test_hex_is_that_of_python() -> None:
    codes = np.array([0, 1, 0xDEADBEEF, 2**32 - 1, 0x0A0B0C0D], dtype=np.uint32)
    assert synthetic._text(codes).to_list() == [f"{code:08x}" for code in codes]


def test_the_smallest_world(tmp_path: Path) -> None:
    config = SyntheticConfig(rows=1, ads=1, users=1)
    synthetic.write(config, 0, tmp_path / "a.tsv", tmp_path / "truth")
    assert len(read(tmp_path / "a.tsv")) == 1


class Rank:
    """One of two ranks, which records whether the rows are there when it waits."""

    world_size = 2

    def __init__(self, rank: int, folder: Path) -> None:
        self.rank, self.folder = rank, folder
        self.files_at_barrier: list[bool] = []

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        self.files_at_barrier.append((self.folder / synthetic.TSV).exists())


def test_the_first_rank_makes_the_rows_and_the_others_wait(tmp_path: Path) -> None:
    """Fails when a second rank writes over what the first one made."""
    config = DataConfig(adapter="synthetic", synthetic=SMALL)
    for number in (1, 0):
        rank = Rank(number, tmp_path)
        data = open_data(config, 0, tmp_path, rank)
        assert rank.files_at_barrier == [number == 0]
    assert data.files == (tmp_path / synthetic.TSV,)
