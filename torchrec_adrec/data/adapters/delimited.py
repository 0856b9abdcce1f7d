"""CSV and TSV, plain or .gz: every line becomes a row or a bad row.

Fields may be quoted (RFC 4180), but a quoted field ends on its line. A file can then be
cut at any line, and a quote that is missing costs one line, not the rest of the file.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv

from torchrec_adrec.arrays import Int64s
from torchrec_adrec.data.adapters.rows import RawRows
from torchrec_adrec.data.adapters.text_blocks import blocks, first_line
from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.errors import ConfigError, DataError, SchemaError

SEPARATORS = {".csv": ",", ".tsv": "\t"}
# GroupLens divides by two colons, in Latin-1 and without a header.
COLONS, COLONS_ENDING = b"::", ".dat"
SIGNS = {";": "semicolons", "|": "bars", "\t": "tabs", ",": "commas"}
FEW = 10_000  # lines that plain Python parses in 0.3 s, one by one
BROKEN = "\0"  # replaces bytes that are no UTF-8 and a CR within a line


def is_text(path: Path) -> bool:
    """Whether the file's ending, without `.gz`, is that of CSV, TSV or GroupLens."""
    return _kind(path) in (*SEPARATORS, COLONS_ENDING)


def header(path: Path) -> tuple[str, ...]:
    """The column names in the first line.

    Raises:
        ConfigError: the file cannot be read, or is of a kind that has no header.
        DataError: it is empty, or its first line is no UTF-8.
        SchemaError: two columns share a name, or another sign divides them.
    """
    if _kind(path) == COLONS_ENDING:
        raise ConfigError(
            f"{path}: a .dat file has no header; name its columns in `names`"
        )
    raw = first_line(path).removeprefix(b"\xef\xbb\xbf")
    line = _utf8(raw).decode()
    if not line.strip() or BROKEN in line:
        fault = f"expected the columns' names, found {line[:40]!r}"
        raise DataError(f"{path}:1: {fault}{_fix_of(raw)}")
    _check_separator(path, line)
    names = next(csv.reader([line], delimiter=SEPARATORS[_kind(path)]))
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise SchemaError(f"{path}:1: columns {repeated} stand there twice")
    return tuple(names)


def _fix_of(line: bytes) -> str:
    """The most likely reason why a first line cannot be read, and how to fix it."""
    if line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line:
        is_big_endian = line.startswith((b"\xfe\xff", b"\0"))
        name = "UTF-16BE" if is_big_endian else "UTF-16LE"
        return f": most likely {name}; make UTF-8 of it: iconv -f {name} -t UTF-8 OLD"
    if b"\r" in line:
        old, new = "'\\r'", "'\\n'"
        return (
            ": most likely the line ends of old Macs, CR alone; make newlines of them:"
            f" tr {old} {new} < OLD"
        )
    if line.strip():
        return (
            ": no UTF-8, most likely Latin-1; make some of it: iconv -f LATIN1 -t UTF-8"
            " OLD"
        )
    return ""


def _check_separator(path: Path, line: str) -> None:
    """Refuse one column whose name holds another separator than the ending says."""
    separator = SEPARATORS[_kind(path)]
    sign = max(SIGNS, key=line.count)
    if separator in line or sign not in line:
        return
    endings = {separator: ending for ending, separator in SEPARATORS.items()}
    fix = (
        f"name the file {endings[sign]}"
        if sign in endings
        else f"polars.read_csv(OLD, separator={sign!r}).write_csv(NEW) fixes it"
    )
    raise SchemaError(
        f"{path}:1: found one column {line[:60]!r}, expected {SIGNS[separator]}"
        f" between columns; these seem to be divided by {SIGNS[sign]}: {fix}"
    )


def batches(
    path: Path,
    names: Sequence[str],
    chunk_bytes: int,
    bad: BadRows,
    all_names: Sequence[str] = (),
) -> Iterator[RawRows]:
    """Read the rows in order, as columns of text, about `chunk_bytes` at a time.

    Args:
        path: the file.
        names: the columns that are read.
        chunk_bytes: text held at a time.
        bad: counts every line with a wrong number of fields, a quoted field that does
            not close, or bytes that are no UTF-8.
        all_names: those of all columns, of a file without a header.

    Raises:
        DataError: a gzip stream is damaged; how many rows are lost is unknown.
    """
    columns = tuple(all_names) or header(path)
    layout = _Layout(columns, tuple(names), SEPARATORS.get(_kind(path), "\t"))
    for block in blocks(path, chunk_bytes, bad):
        has_header = block.first_line == 1 and not all_names
        lines = block.without_first_line() if has_header else block
        if lines.text:
            text = lines.text.removesuffix(b"\n") + b"\n"
            if _kind(path) == COLONS_ENDING:
                text = text.decode("latin-1").encode().replace(COLONS, b"\t")
            for parsed in _parse(_utf8(text), lines.first_line, layout):
                yield _whole_rows(parsed, path, bad)


@dataclass(frozen=True)
class _Layout:
    columns: tuple[str, ...]
    names: tuple[str, ...]
    separator: str


@dataclass(frozen=True)
class _Parsed:
    frame: pl.DataFrame
    numbers: Int64s
    faults: list[tuple[int, str]]


def _kind(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix


def _utf8(text: bytes) -> bytes:
    """The same lines in UTF-8; `BROKEN` replaces other bytes and a CR within a line."""
    text = text.replace(b"\r\n", b"\n").replace(b"\r", BROKEN.encode())
    try:
        text.decode()
    except UnicodeDecodeError:
        marked = text.decode(errors="surrogateescape")
        return re.sub("[\udc80-\udcff]", BROKEN, marked).encode()
    return text


def _parse(text: bytes, first: int, layout: _Layout) -> Iterator[_Parsed]:
    """Parse whole lines, the first of which has the number `first`."""
    # A quote that does not close swallows the lines below it, so that rows and faults
    # are fewer than lines. The text is then halved until few enough lines are left to
    # be parsed one by one, so that one bad line does not slow the whole file down.
    parsed, count = _together(text, first, layout), text.count(b"\n")
    if len(parsed.frame) + len(parsed.faults) == count:
        yield parsed
    elif count <= FEW:
        yield _one_by_one(text, first, layout)
    else:
        half = len(text) // 2
        cut = text.rfind(b"\n", 0, half) + 1 or text.find(b"\n", half) + 1
        yield from _parse(text[:cut], first, layout)
        yield from _parse(text[cut:], first + text.count(b"\n", 0, cut), layout)


def _one_by_one(text: bytes, first: int, layout: _Layout) -> _Parsed:
    width = len(layout.columns)
    rows, numbers, faults = [], [], []
    for number, line in enumerate(text.decode().split("\n")[:-1], first):
        reader = csv.reader([line + "\n"], delimiter=layout.separator)
        fields = next(reader) or [""] * width
        if len(fields) == width:
            rows.append(fields)
            numbers.append(number)
        else:
            faults.append((number, f"{len(fields)} fields, expected {width}"))
    types = dict.fromkeys(layout.columns, pl.String)
    frame = pl.DataFrame(rows, schema=types, orient="row").select(layout.names)
    return _Parsed(frame, np.asarray(numbers, dtype=np.int64), faults)


def _together(text: bytes, first: int, layout: _Layout) -> _Parsed:
    faults: list[tuple[int, str]] = []

    def wrong_number_of_fields(row: pa_csv.InvalidRow) -> str:
        reason = f"{row.actual_columns} fields, expected {row.expected_columns}"
        faults.append((first + row.number - 1, reason))
        return "skip"

    table = pa_csv.read_csv(
        pa.BufferReader(text),
        read_options=pa_csv.ReadOptions(
            use_threads=False,  # with threads the handler is not told row numbers
            column_names=layout.columns,
            block_size=len(text) + 1,
        ),
        parse_options=pa_csv.ParseOptions(
            delimiter=layout.separator,
            ignore_empty_lines=False,
            invalid_row_handler=wrong_number_of_fields,
        ),
        convert_options=pa_csv.ConvertOptions(
            column_types={name: pa.string() for name in layout.names},
            include_columns=layout.names,
        ),
    )
    lines = np.arange(first, first + table.num_rows + len(faults))
    numbers = np.delete(lines, [line - first for line, _ in faults])
    return _Parsed(cast(pl.DataFrame, pl.from_arrow(table)), numbers, faults)


def _whole_rows(parsed: _Parsed, path: Path, bad: BadRows) -> RawRows:
    """The rows whose text is whole; all other lines are counted in `bad`, in order."""
    is_broken = pl.any_horizontal(pl.all().str.contains(f"[\n{BROKEN}]"))
    broken = parsed.frame.select(is_broken).to_series()
    reason = "a quoted field does not close on its line, or bytes are no UTF-8"
    faults = [(int(line), reason) for line in parsed.numbers[broken.to_numpy()]]
    for line, why in sorted(parsed.faults + faults):
        bad.add(str(path), line, why)
    whole = ~broken
    return RawRows(
        parsed.frame.filter(whole), path, parsed.numbers[whole.to_numpy()], "line"
    )
