"""Criteo display logs: label, 13 integers, 26 hashes, tab separated, no header.

Format: https://ailab.criteo.com/ressources/ (Kaggle Display Advertising Challenge and
the 1TB click logs share it). Rows stand in time order; nothing is said of users or ads,
so which columns describe the ad is a setting (`data.ad_features`).
"""

import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.errors import ConfigError, DataError
from torchrec_adrec.schema import DenseFeature, Schema, Side, SparseFeature

LABEL = "click"
INTEGERS = tuple(f"I{i}" for i in range(1, 14))
HASHES = tuple(f"C{i}" for i in range(1, 27))
COLUMNS = (LABEL, *INTEGERS, *HASHES)


def schema(ad_features: Sequence[str]) -> Schema:
    """The columns and their sides; table sizes are filled in by `prepare`.

    Every integer is there twice: as a number, and bucketed as an id, so that models can
    tell a missing value from a zero.

    Raises:
        ConfigError: `ad_features` names a column that is no hash column.
    """
    strange = [name for name in ad_features if name not in HASHES]
    if strange or not ad_features:
        raise ConfigError(
            f"data.ad_features: expected some of C1 ... C26, found {list(ad_features)}"
        )
    sides = {name: Side.AD if name in ad_features else Side.USER for name in HASHES}
    buckets = [
        SparseFeature(name=f"{name}_bucket", side=Side.USER, source=name, bucketed=True)
        for name in INTEGERS
    ]
    hashes = [SparseFeature(name=n, side=sides[n], source=n) for n in HASHES]
    return Schema(
        dense=tuple(DenseFeature(name=name, side=Side.USER) for name in INTEGERS),
        sparse=(*buckets, *hashes),
        labels=(LABEL,),
    )


def read(
    paths: Sequence[Path], bad: BadRows, chunk_bytes: int
) -> Iterator[pl.DataFrame]:
    """Yield the good rows of raw files, in order, and count the bad ones.

    Args:
        paths: text or `.gz` files, read one after the other.
        bad: collects every line that cannot be used, by file and line.
        chunk_bytes: raw text held at a time.

    Yields:
        Frames of `click` Int8, `I1..I13` Int64 and `C1..C26` Int64 (the hash as a
        number); null where the field is empty.

    Raises:
        DataError: a file is empty or ends inside a gzip stream: how many rows are lost
            is unknown, so no share of bad rows can excuse it.
    """
    for path in paths:
        first_line = 1
        for text in _blocks(path, chunk_bytes, bad):
            parsed = _parse(text, str(path), first_line, bad)
            first_line = parsed.next_line
            bad.rows_read += len(parsed.frame)
            if len(parsed.frame):
                yield parsed.frame
        if first_line == 1:
            bad.add(str(path), 1, "the file is empty")
            raise DataError(f"{path}:1: the file is empty; remove it or restore it")


def as_text(column: pl.Series) -> pl.Series:
    """A hash column as it stands in the raw file."""
    text = [None if value is None else f"{value:08x}" for value in column]
    return pl.Series(column.name, text, dtype=pl.String)


@dataclass(frozen=True)
class _Parsed:
    frame: pl.DataFrame
    next_line: int


def _open(path: Path) -> BinaryIO:
    try:
        if path.suffix == ".gz":
            return cast(BinaryIO, gzip.open(path, "rb"))
        return path.open("rb")
    except OSError as error:
        raise ConfigError(f"data.raw: cannot read {path}: {error.strerror}") from None


def _blocks(path: Path, chunk_bytes: int, bad: BadRows) -> Iterator[bytes]:
    """Cut a file into blocks of whole lines."""
    rest, lines = b"", 0
    with _open(path) as file:
        while True:
            try:
                read = file.read(chunk_bytes)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                reason = f"the gzip stream is damaged or cut off here ({error})"
                bad.add(str(path), lines + 1, reason)
                raise DataError(
                    f"{path}:{lines + 1}: {reason}; restore the file: how many rows are"
                    " missing is unknown"
                ) from None
            if not read:
                break
            text, newline, rest = (rest + read).rpartition(b"\n")
            lines += text.count(b"\n") + len(newline)
            if newline:
                yield text + newline
    if rest:
        yield rest


def _plain(text: bytes) -> bytes:
    """The same lines without what pyarrow would trip over; such a row stays bad."""
    if not text.isascii():
        text = text.decode("latin-1").encode()  # pyarrow cannot pass on other bytes
    if b"\r" in text:
        # A carriage return inside a line would be taken for the end of the line.
        text = text.replace(b"\r\n", b"\n").replace(b"\r", b"?")
    return text


def _parse(text: bytes, file: str, first_line: int, bad: BadRows) -> _Parsed:
    """Parse whole lines; every line becomes a row or a bad row."""
    strange: list[int] = []
    text = _plain(text)

    def wrong_number_of_fields(row: pa_csv.InvalidRow) -> str:
        line = first_line + row.number - 1
        strange.append(line)
        reason = f"{row.actual_columns} fields, expected {row.expected_columns}"
        bad.add(file, line, reason)
        return "skip"

    table = pa_csv.read_csv(
        pa.BufferReader(text),
        read_options=pa_csv.ReadOptions(
            # Row numbers reach the handler only without threads.
            use_threads=False,
            column_names=COLUMNS,
            block_size=len(text) + 1,
        ),
        parse_options=pa_csv.ParseOptions(
            delimiter="\t",
            quote_char=False,
            ignore_empty_lines=False,
            invalid_row_handler=wrong_number_of_fields,
        ),
        convert_options=pa_csv.ConvertOptions(
            column_types={name: pa.string() for name in COLUMNS},
        ),
    )
    total = table.num_rows + len(strange)
    lines = np.setdiff1d(np.arange(first_line, first_line + total), strange)
    frame = _convert(cast(pl.DataFrame, pl.from_arrow(table)), file, lines, bad)
    return _Parsed(frame, first_line + total)


def _convert(
    raw: pl.DataFrame, file: str, lines: NDArray[np.int64], bad: BadRows
) -> pl.DataFrame:
    label = pl.when(pl.col(LABEL).is_in(["0", "1"])).then(pl.col(LABEL))
    integers = [pl.col(name).cast(pl.Int64, strict=False) for name in INTEGERS]
    hashes = [_hash(name) for name in HASHES]
    typed = raw.select(label.cast(pl.Int8), *integers, *hashes)
    # A field that is not empty and still became null could not be read.
    filled = raw.select(pl.all().str.len_bytes() > 0)
    broken = [typed[name].is_null() & filled[name] for name in COLUMNS[1:]]
    broken.insert(0, typed[LABEL].is_null())
    faulty = pl.DataFrame(broken).select(pl.any_horizontal(pl.all())).to_series()
    for i in faulty.arg_true().to_list():
        column = next(n for n, b in zip(COLUMNS, broken, strict=True) if b[i])
        value = raw[column][i][:40]
        bad.add(file, int(lines[i]), f"{column} is {value!r}, {_expected(column)}")
    return typed.filter(~faulty)


def _hash(name: str) -> pl.Expr:
    text = pl.col(name)
    hexadecimal = text.str.contains(r"^[0-9a-fA-F]{8}$")
    value = text.str.to_integer(base=16, strict=False, dtype=pl.Int64)
    return pl.when(hexadecimal).then(value).alias(name)


def _expected(column: str) -> str:
    if column == LABEL:
        return "expected 0 or 1"
    if column in INTEGERS:
        return "expected an integer or nothing"
    return "expected eight hexadecimal digits or nothing"
