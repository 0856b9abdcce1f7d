"""Text files in blocks of whole lines, and the lines of a block that cannot be used."""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv

from torchrec_adrec.arrays import Int64s
from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.errors import ConfigError, DataError


@dataclass(frozen=True)
class Block:
    """Some whole lines of a file.

    Attributes:
        text: every line ends with a newline, except perhaps the file's last.
        file: its path, for messages.
        first_line: number of the first line in the file, from 1.
        lines: their number.
    """

    text: bytes
    file: str
    first_line: int
    lines: int

    @classmethod
    def of(cls, text: bytes, file: str, first_line: int = 1) -> "Block":
        """Make a block of whole lines, which are counted here."""
        last = not text.endswith(b"\n")
        return cls(text, file, first_line, count(text, "\n") + last)

    def without_first_line(self) -> "Block":
        """The lines behind a header."""
        _, _, rest = self.text.partition(b"\n")
        return Block(rest, self.file, self.first_line + 1, self.lines - 1)


def count(text: bytes, sign: str) -> int:
    """How often an ASCII sign stands in a text; twice as fast as `bytes.count`."""
    return int(np.count_nonzero(np.frombuffer(text, dtype=np.uint8) == ord(sign)))


def first_line(path: Path) -> bytes:
    """The first line of a text or `.gz` file, without its end.

    Raises:
        ConfigError: the file cannot be opened.
    """
    try:
        with _open(path) as file:
            return file.readline().rstrip(b"\r\n")
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return b""  # `blocks` names the fault, with its line


def blocks(path: Path, block_bytes: int, bad: BadRows) -> Iterator[Block]:
    """Cut a text or `.gz` file into blocks of whole lines.

    Args:
        path: the file.
        block_bytes: text that is read at a time.
        bad: is given the line at which the file is damaged.

    Raises:
        ConfigError: the file cannot be opened.
        DataError: the file is empty or ends inside a gzip stream: how many rows are
            lost is unknown, so no share of bad rows can excuse it.
    """
    rest, line = b"", 1
    with _open(path) as file:
        while text := _read(file, path, block_bytes, line, bad):
            # A block ends at the last newline; what follows it begins the next block.
            end = text.rfind(b"\n") + 1
            parts = rest, memoryview(text)[:end]  # one copy, not three
            rest = text[end:] if end else rest + text
            if end:
                block = Block.of(b"".join(parts), str(path), line)
                line += block.lines
                yield block
    if rest:
        yield Block.of(rest, str(path), line)
    elif line == 1:
        bad.add(str(path), 1, "the file is empty")
        raise DataError(f"{path}:1: the file is empty; remove it or restore it")


def _read(file: BinaryIO, path: Path, size: int, line: int, bad: BadRows) -> bytes:
    try:
        return file.read(size)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        reason = f"the gzip stream is damaged or cut off here ({error})"
        bad.add(str(path), line, reason)
        raise DataError(
            f"{path}:{line}: {reason}; restore the file: how many rows are missing is"
            " unknown"
        ) from None


def _open(path: Path) -> BinaryIO:
    try:
        if path.suffix == ".gz":
            return cast(BinaryIO, gzip.open(path, "rb"))
        return path.open("rb")
    except OSError as error:
        raise ConfigError(f"data.raw: cannot read {path}: {error.strerror}") from None


def split_fields(
    block: Block, columns: tuple[str, ...], separator: str, bad: BadRows
) -> tuple[pl.DataFrame, Int64s]:
    """Split every line that has the right number of fields; count the others in `bad`.

    Args:
        block: whole lines.
        columns: the names of the fields.
        separator: the sign between two fields.
        bad: is given every line with another number of fields.

    Returns:
        The fields as text, and the line number of each row, (rows,).
    """
    invalid: list[int] = []

    def wrong_number_of_fields(row: Any) -> str:
        line = block.first_line + row.number - 1
        invalid.append(line)
        reason = f"{row.actual_columns} fields, expected {row.expected_columns}"
        bad.add(block.file, line, reason)
        return "skip"

    text = _plain(block.text)
    table = pa_csv.read_csv(
        pa.BufferReader(text),
        # Without threads, because with them the handler is not given line numbers.
        read_options=pa_csv.ReadOptions(
            use_threads=False, column_names=columns, block_size=len(text) + 1
        ),
        parse_options=pa_csv.ParseOptions(
            delimiter=separator,
            quote_char=False,
            ignore_empty_lines=False,
            invalid_row_handler=wrong_number_of_fields,
        ),
        convert_options=pa_csv.ConvertOptions(
            column_types={name: pa.string() for name in columns}
        ),
    )
    total = table.num_rows + len(invalid)
    numbers = np.arange(block.first_line, block.first_line + total)
    return cast(pl.DataFrame, pl.from_arrow(table)), np.delete(
        numbers, np.array(invalid, dtype=np.int64) - block.first_line
    )


def _plain(text: bytes) -> bytes:
    """The same lines without bytes that pyarrow cannot read; a bad row stays bad."""
    if not text.isascii():
        text = text.decode("latin-1").encode()  # pyarrow cannot pass on other bytes
    if b"\r" in text:
        # A carriage return inside a line would be taken for the end of the line.
        text = text.replace(b"\r\n", b"\n").replace(b"\r", b"?")
    return text
