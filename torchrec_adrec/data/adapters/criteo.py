"""Criteo display logs: a line holds a label, 13 integers and 26 hashes.

Format: https://ailab.criteo.com/ressources/ (the Kaggle Display Advertising Challenge
and the 1TB click logs share it). Also read: files without a label (the challenge's test
file), files with a header and maybe an Id, with tabs or commas, and `.gz` of all these.
Rows stand in time order. The logs name neither users nor ads, so which columns describe
the ad is a setting (`data.ad_features`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.data.adapters.adapter import Adapter, RawFiles
from torchrec_adrec.data.adapters.text_blocks import (
    Block,
    blocks,
    count,
    first_line,
    split_fields,
)
from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.data.dataset import DataSet, raw_files
from torchrec_adrec.errors import ConfigError, SchemaError
from torchrec_adrec.schema import DenseFeature, Label, Schema, Side, SparseFeature

LABEL = "click"
INTEGERS = tuple(f"I{i}" for i in range(1, 14))
HASHES = tuple(f"C{i}" for i in range(1, 27))
COLUMNS = (LABEL, *INTEGERS, *HASHES)
ID = "Id"


def open_data(config: DataConfig) -> DataSet:
    """Open the files of `data.raw`, which stand in time order.

    Raises:
        ConfigError: `data.ad_features` names a column that is no hash column, or a file
            is missing.
        SchemaError: a header that does not name the columns.
    """
    files = raw_files(config)
    layouts = {path: Layout.of(path, config.labelled) for path in files}

    def read(path: Path, bad: BadRows) -> Iterator[pl.DataFrame]:
        return read_file(path, layouts[path], bad, config.chunk_megabytes << 20)

    return DataSet(schema(config), files, read, sides="data.ad_features")


ADAPTER: Adapter = RawFiles(open_data)


def schema(config: DataConfig) -> Schema:
    """The columns and their sides; table sizes are filled in by `prepare`.

    Every integer becomes two features: a number, and an id of its bucket, so that
    models can tell a missing value from a zero.

    Raises:
        ConfigError: `data.ad_features` names a column that is no hash column.
    """
    ad = config.ad_features
    if not ad or not set(ad) <= set(HASHES):
        raise ConfigError(
            f"data.ad_features: expected some of C1 ... C26, found {list(ad)}"
        )
    numbers, user = config.numbers, Side.USER
    buckets = [
        SparseFeature(
            name=f"{name}_bucket",
            side=user,
            source=name,
            kind="number",
            buckets=numbers.buckets,
        )
        for name in INTEGERS
        if numbers.buckets is not None
    ]
    hashes = [
        SparseFeature(name=n, side=Side.AD if n in ad else user, source=n)
        for n in HASHES
    ]
    dense = [
        DenseFeature(name=n, side=user, source=n, transform=numbers.transform)
        for n in INTEGERS
    ]
    return Schema(
        dense=tuple(dense),
        sparse=(*buckets, *hashes),
        labels=(Label(name=LABEL),),
    )


@dataclass(frozen=True)
class Layout:
    """The columns of one file and how its lines are divided.

    Attributes:
        columns: in the file's order.
        separator: the sign between two fields.
        header: whether the first line names the columns.
    """

    columns: tuple[str, ...]
    separator: Literal["\t", ","]
    header: bool

    @classmethod
    def of(cls, path: Path, labelled: bool) -> "Layout":
        """Read a file's layout from its first line.

        Args:
            path: the file, text or `.gz`.
            labelled: whether a file without a header has the label in front; a header
                says so itself.

        Raises:
            SchemaError: a header that lacks a column or names an unknown one.
        """
        text = first_line(path).decode("latin-1")
        separator: Literal["\t", ","] = "\t" if "\t" in text or "," not in text else ","
        names = [_column_name(name) for name in text.split(separator)]
        if not {"I1", "C1"} & set(names):
            return cls(COLUMNS if labelled else COLUMNS[1:], separator, header=False)
        features = [name for name in names if name not in (ID, LABEL)]
        if sorted(features) != sorted(COLUMNS[1:]) or len(set(names)) < len(names):
            raise SchemaError(
                f"{path}:1: expected a header of I1 ... I13 and C1 ... C26, perhaps"
                f" with a label and an Id, found {names}"
            )
        return cls(tuple(names), separator, header=True)


def _column_name(title: str) -> str:
    """The name in `COLUMNS` of a column that a header names in its own way."""
    lower = title.strip().strip('"').lower()
    if lower in ("label", "click"):
        return LABEL
    return ID if lower == "id" else lower.upper()


def read_file(
    path: Path, layout: Layout, bad: BadRows, block_bytes: int
) -> Iterator[pl.DataFrame]:
    """Read the good rows of one file, in order; see `DataSet.read`.

    Args:
        path: the file, text or `.gz`.
        layout: its columns.
        bad: counts every other line.
        block_bytes: raw text held at a time.
    """
    for block in blocks(path, block_bytes, bad):
        if layout.header and block.first_line == 1:
            block = block.without_first_line()
        if block.text:
            yield parse(block, layout, bad)


def parse(block: Block, layout: Layout, bad: BadRows) -> pl.DataFrame:
    """Turn every line of a block into a row or a bad row.

    A block goes through `fast` as a whole. One with anything odd in it is read again by
    `exact`, which names the lines. Both give the same rows, and a test holds it.
    """
    rows = fast(block, layout)
    return exact(block, layout, bad) if rows is None else rows


def fast(block: Block, layout: Layout) -> pl.DataFrame | None:
    """The rows of a block in which every line is good, else None."""
    text = block.text
    # polars fills up short lines and skips empty ones without a warning. So the
    # separators are counted here, and the lines below.
    separators = count(text, layout.separator)
    if separators != block.lines * (len(layout.columns) - 1):
        return None
    # The CSV reader of polars takes these signs otherwise than `exact` does (it skips
    # spaces, for one), and both must give the same rows.
    if any(sign in text for sign in (b"\r", b"+", b" ")):
        return None
    try:
        raw = pl.read_csv(
            text,
            separator=layout.separator,
            has_header=False,
            schema={
                n: pl.Int64 if n in INTEGERS else pl.String for n in layout.columns
            },
            quote_char=None,
        )
    except (pl.exceptions.PolarsError, UnicodeDecodeError):
        return None
    typed = raw.select(_typed(layout))
    eight_digits = raw.select((pl.col(n).str.len_bytes() == 8).all() for n in HASHES)
    good = all(eight_digits.row(0)) and len(raw) == block.lines
    # A field that was text and is null once typed was no hexadecimal number.
    good &= all(raw[n].null_count() == typed[n].null_count() for n in HASHES)
    if LABEL in layout.columns:
        good &= typed[LABEL].null_count() == 0
    return typed if good else None


def _typed(layout: Layout) -> list[pl.Expr]:
    """Expressions from text to the types of `dataset.raw_types`; null if unreadable."""
    if LABEL in layout.columns:
        text = pl.col(LABEL)
        label = pl.when(text.is_in(["0", "1"])).then(text == "1").cast(pl.Float32)
    else:
        label = pl.lit(None, dtype=pl.Float32)
    integers = [pl.col(name).cast(pl.Int64, strict=False) for name in INTEGERS]
    hashes = [
        pl.col(name).str.to_integer(base=16, strict=False, dtype=pl.UInt32)
        for name in HASHES
    ]
    return [label.alias(LABEL), *integers, *hashes]


def exact(block: Block, layout: Layout, bad: BadRows) -> pl.DataFrame:
    """Read a block line by line: the good rows; every other line is counted in `bad`.

    Args:
        block: whole lines.
        layout: their columns.
        bad: is given file, line and the first column that cannot be read.
    """
    raw, lines = split_fields(block, layout.columns, layout.separator, bad)
    hashes = [
        pl.when(pl.col(n).str.contains(r"^[0-9a-fA-F]{8}$")).then(pl.col(n)).alias(n)
        for n in HASHES
    ]
    typed = raw.with_columns(hashes).select(_typed(layout))
    # A field that is not empty and still became null could not be read.
    unreadable = {
        name: typed[name].is_null() & (raw[name].str.len_bytes() > 0)
        for name in (*INTEGERS, *HASHES)
    }
    if LABEL in layout.columns:
        unreadable = {LABEL: typed[LABEL].is_null()} | unreadable
    faulty = pl.DataFrame(unreadable).select(pl.any_horizontal(pl.all())).to_series()
    for i in faulty.arg_true().to_list():
        column = next(name for name, rows in unreadable.items() if rows[i])
        value = raw[column][i][:40]
        reason = f"{column} is {value!r}, {_expected(column)}"
        bad.add(block.file, int(lines[i]), reason)
    return typed.filter(~faulty)


def _expected(column: str) -> str:
    if column == LABEL:
        return "expected 0 or 1"
    if column in INTEGERS:
        return "expected an integer or nothing"
    return "expected eight hexadecimal digits or nothing"
