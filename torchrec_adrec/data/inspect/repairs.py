"""Values that are rewritten, because the table adapter refuses them as they are."""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from torchrec_adrec.data.inspect.forms import FLAGS
from torchrec_adrec.data.inspect.sample import Sample
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.runtime.files import put

ROWS = 50_000  # of Parquet that are rewritten at a time


@dataclass(frozen=True)
class Repair:
    """One column that is rewritten.

    Attributes:
        source: the column that is read.
        column: the column that is written, the same or a new one.
        change: the text of a value to the new text. What cannot be read stays as it is,
            so that `prepare` counts and names its row.
        description: the change in words.
    """

    source: str
    column: str
    change: Callable[[str], str]
    description: str


def whole(text: str) -> str:
    """7.0 is 7: 7.0 would be another id."""
    try:
        number = float(text)
    except ValueError:
        return text
    # Digits are kept where a float would round them.
    head = text.partition(".")[0]
    return head if head.lstrip("-").isdigit() else str(int(number))


def point(text: str) -> str:
    """1.234,50 is 1234.50."""
    return text.replace(".", "").replace(",", ".")


def flag(text: str) -> str:
    """Yes, true and the like are 1, their opposites 0."""
    return FLAGS.get(text.lower(), text)


def moment(form: str) -> Callable[[str], str]:
    """Return a function that writes times of this format as ISO text."""

    def change(text: str) -> str:
        try:
            return datetime.strptime(text, form).isoformat(" ")
        except ValueError:
            return text

    return change


def items(separator: str) -> Callable[[str], str]:
    """Return a function that takes brackets and quotes from a printed list."""

    def change(text: str) -> str:
        inside = text.strip()
        if inside[:1] in "[({" and inside[-1:] in "])}":
            inside = inside[1:-1]
        parts = inside.split() if separator == " " else inside.split(separator)
        return "|".join(part.strip().strip("'\"") for part in parts)

    return change


def rewrite(sample: Sample, repairs: list[Repair], target: Path) -> None:
    """Write a copy of the whole file that the table adapter reads.

    A line with too few or too many fields is copied as it is, so that `prepare` counts
    it. The file has its name only when it is whole.

    Args:
        sample: names the file and its layout.
        repairs: the columns that are changed.
        target: a .csv or, of Parquet, a .parquet, that is not there yet.

    Raises:
        ConfigError: there is such a file.
    """
    if target.exists():
        raise ConfigError(f"{target} exists already; remove it, or name another --to")
    partial = target.with_name(target.name + ".partial")
    if sample.layout is None:
        _rewrite_parquet(sample.path, repairs, partial)
    else:
        columns = list(sample.layout.columns)
        new = [r.column for r in repairs if r.column not in columns]
        # A byte that the encoding lacked is written back as it was.
        with partial.open("w", newline="", errors="surrogateescape") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns + new)
            for row in sample.layout.rows(sample.path):
                writer.writerow(_repaired(row, columns, repairs))
    put(partial, target)


def _repaired(row: list[str], columns: list[str], repairs: list[Repair]) -> list[str]:
    if len(row) != len(columns):
        return row
    values = dict(zip(columns, row, strict=True))
    changed = {
        r.column: r.change(values[r.source]) if values[r.source] else ""
        for r in repairs
    }
    return list((values | changed).values())


def repaired(rows: pl.DataFrame, repairs: list[Repair]) -> pl.DataFrame:
    """The same rows with the columns rewritten, which are text then."""
    return rows.with_columns(
        rows[r.source]
        .cast(pl.String)
        .map_elements(r.change, return_dtype=pl.String)
        .alias(r.column)
        for r in repairs
    )


def _rewrite_parquet(path: Path, repairs: list[Repair], target: Path) -> None:
    writer: pq.ParquetWriter | None = None
    for rows in _batches(path):
        table = repaired(rows, repairs).to_arrow()
        writer = writer or pq.ParquetWriter(target, table.schema)
        writer.write_table(table.cast(writer.schema))
    if writer is not None:
        writer.close()


def _batches(path: Path) -> Iterator[pl.DataFrame]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=ROWS):
            frame = pl.from_arrow(pa.Table.from_batches([batch]))
            assert isinstance(frame, pl.DataFrame)
            yield frame
