"""Every line becomes a row or a bad row, named with file and line."""

import gzip
from pathlib import Path

import polars as pl
import pytest
from conftest import criteo_line
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrec_adrec.config.run import load_config
from torchrec_adrec.data.adapters import criteo
from torchrec_adrec.data.adapters.text_blocks import Block
from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.errors import DataError, SchemaError

CHUNK = 1000  # bytes: a few lines, so that lines are cut at block borders


def read(path: Path, bad: BadRows, chunk: int = CHUNK) -> pl.DataFrame:
    layout = criteo.Layout.of(path, labelled=True)
    return pl.concat(criteo.read_file(path, layout, bad, chunk))


def test_values_are_read(tmp_path: Path) -> None:
    fields = ["1", "-2", *[""] * 12, "68fd1e64", *[""] * 25]
    path = tmp_path / "a.tsv"
    path.write_text("\t".join(fields) + "\n")
    row = read(path, BadRows()).row(0, named=True)
    assert (row["click"], row["I1"], row["I2"]) == (1, -2, None)
    assert (row["C1"], row["C2"]) == (0x68FD1E64, None)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1\t2\t3", "3 fields, expected 40"),
        (criteo_line(0) + "\textra", "41 fields, expected 40"),
        ("", "click is ''"),
        (criteo_line(0).replace("0\t0", "0\tx", 1), "I1 is 'x', expected an integer"),
        (criteo_line(0).replace("0\t0", "0\t1.5", 1), "I1 is '1.5'"),
        (criteo_line(0, c1="zzzzzzzz"), "C1 is 'zzzzzzzz', expected eight hex"),
        (criteo_line(0, c1="abc"), "C1 is 'abc'"),
        (criteo_line(0, click=2), "click is '2', expected 0 or 1"),
        (criteo_line(0, c1="\xff\xff\xff\xff"), "C1 is"),
        (criteo_line(0, c1="0000\r000"), "C1 is '0000?000'"),
        (criteo_line(0).replace("0\t0", "0\t9999999999999999999", 1), "I1 is '99999"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    lines = [criteo_line(i) for i in range(20)]
    lines[12] = line
    path = tmp_path / "a.tsv"
    path.write_bytes(("\n".join(lines) + "\n").encode("latin-1"))
    bad = BadRows()
    assert len(read(path, bad)) == 19
    assert bad.count == 1
    bad.rows_read = 19
    assert bad.first[0].startswith(f"{path}:13: {reason}")
    bad.check(0.05)
    with pytest.raises(DataError, match="1 of 20 rows cannot be used"):
        bad.check(0.001)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_and_gzip(tmp_path: Path, end: str, last: bool) -> None:
    text = end.join(criteo_line(i) for i in range(30)) + (end if last else "")
    path = tmp_path / "a.tsv.gz"
    path.write_bytes(gzip.compress(text.encode()))
    bad = BadRows()
    assert len(read(path, bad)) == 30 and bad.count == 0


def test_a_cut_gzip_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    text = "\n".join(criteo_line(i * 7919) for i in range(600))
    path = tmp_path / "a.tsv.gz"
    path.write_bytes(gzip.compress(text.encode(), 1)[:-2000])
    bad = BadRows()
    with pytest.raises(DataError, match=r"a\.tsv\.gz:\d+: the gzip stream is damaged"):
        read(path, bad)
    assert bad.count == 1


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").touch()
    with pytest.raises(DataError, match=r"a\.tsv:1: the file is empty"):
        read(tmp_path / "a.tsv", BadRows())


Field = st.text('019af+-. \t\r\0"\xff', max_size=9)
Line = st.one_of(
    st.integers(0, 99).map(criteo_line),
    st.tuples(st.integers(0, 39), Field).map(lambda x: spoiled(*x)),
    st.text("01\tabx\xff\r\0 ", max_size=12),
)


def spoiled(field: int, text: str) -> str:
    """A good row but for one field."""
    fields = criteo_line(3).split("\t")
    fields[field] = text
    return "\t".join(fields)


def whole(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode("latin-1")


@settings(max_examples=60, deadline=None)
@given(lines=st.lists(Line, min_size=1, max_size=30), chunk=st.integers(50, 3000))
def test_rows_in_are_rows_out_plus_bad(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], chunk: int
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.tsv"
    path.write_bytes(whole(lines))
    bad = BadRows()
    out = len(read(path, bad, chunk))
    assert out + bad.count == len(lines)
    assert out >= sum(line in GOOD for line in lines)


GOOD = {criteo_line(i) for i in range(100)}


@settings(max_examples=150, deadline=None)
@given(lines=st.lists(Line, min_size=1, max_size=4))
def test_the_fast_way_reads_what_the_exact_way_reads(lines: list[str]) -> None:
    """Fails when the fast way takes what the exact way calls bad, or reads it anew."""
    block = Block.of(whole(lines), "a.tsv")
    layout = criteo.Layout(criteo.COLUMNS, "\t", header=False)
    quick = criteo.fast(block, layout)
    bad = BadRows()
    exact = criteo.exact(block, layout, bad)
    if quick is not None:
        assert bad.count == 0 and quick.equals(exact)


def test_a_number_behind_a_space_is_bad_whatever_stands_beside_it() -> None:
    line = criteo_line(3).replace("3\t", " 3\t", 1)
    block = Block.of(whole([line, criteo_line(4)]), "a.tsv")
    layout, bad = criteo.Layout(criteo.COLUMNS, "\t", header=False), BadRows()
    assert len(criteo.parse(block, layout, bad)) == 1
    assert bad.first == ["a.tsv:1: I1 is ' 3', expected an integer or nothing"]


def test_good_rows_go_the_fast_way() -> None:
    block = Block.of(whole([criteo_line(i) for i in range(50)]), "a.tsv")
    layout = criteo.Layout(criteo.COLUMNS, "\t", header=False)
    rows = criteo.fast(block, layout)
    assert rows is not None and len(rows) == 50


VARIANTS = {
    "header": (",".join(("label", *criteo.COLUMNS[1:])), ",", False),
    "header and Id": ("\t".join(("Id", "Label", *criteo.COLUMNS[1:])), "\t", True),
    "no header": ("", "\t", False),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(tmp_path: Path, variant: str) -> None:
    header, separator, has_id = VARIANTS[variant]
    rows = [criteo_line(i, i % 2).split("\t") for i in range(40)]
    rows = [[str(i), *row] if has_id else row for i, row in enumerate(rows)]
    text = [header] * bool(header) + [separator.join(row) for row in rows]
    text[-1] = "rubbish"
    path = tmp_path / "a.csv"
    path.write_text("\n".join(text) + "\n")
    (tmp_path / "plain.tsv").write_text(
        "\n".join(criteo_line(i, i % 2) for i in range(39))
    )
    bad = BadRows()
    assert read(path, bad).equals(read(tmp_path / "plain.tsv", BadRows()))
    assert bad.first[0].startswith(f"{path}:{len(text)}: 1 fields, expected")


def test_rows_without_a_label(tmp_path: Path) -> None:
    lines = [criteo_line(i).partition("\t")[2] for i in range(5)]
    (tmp_path / "a.tsv").write_text("\n".join(lines))
    layout = criteo.Layout.of(tmp_path / "a.tsv", labelled=False)
    frame = pl.concat(criteo.read_file(tmp_path / "a.tsv", layout, BadRows(), CHUNK))
    assert frame["click"].null_count() == 5 and frame["C1"].null_count() == 0


def test_a_strange_header(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("\t".join(["label", "I1", "C1"]) + "\n")
    with pytest.raises(SchemaError, match=r"a\.tsv:1: expected a header of I1"):
        criteo.Layout.of(tmp_path / "a.tsv", labelled=True)


def test_files_of_a_pattern_stand_in_name_order(tmp_path: Path) -> None:
    """day_10 before day_2 would put the future into training."""
    for day in (10, 2, 1):
        (tmp_path / f"day_{day}.tsv").write_text(criteo_line(day))
    config = load_config(None, [f"data.raw={tmp_path}/day_*.tsv"]).data
    names = [path.stem for path in criteo.open_data(config).files]
    assert names == ["day_1", "day_2", "day_10"]


def test_rows_of_the_terabyte_logs(real_data: Path) -> None:
    bad = BadRows()
    frame = read(real_data / "criteo_1tb/day_0.part_10000.tsv.gz", bad, 1 << 20)
    assert len(frame) == 10_000 and bad.count == 0
    assert round(float(frame["click"].mean()), 4) == 0.0265  # type: ignore[arg-type]
    assert frame["I8"].min() == -1


def test_real_rows_are_all_good(real_data: Path) -> None:
    bad = BadRows()
    frame = read(real_data / "criteo_kaggle/head_8000.tsv", bad, 1 << 20)
    assert len(frame) == 8000 and bad.count == 0
    assert frame["I2"].min() == -2
    assert round(float(frame["click"].mean()), 3) == 0.216  # type: ignore[arg-type]
