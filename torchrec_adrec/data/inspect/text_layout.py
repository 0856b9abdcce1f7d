"""How a text file is laid out: encoding, sign between columns, header."""

import codecs
import csv
import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO, cast

from torchrec_adrec.errors import ConfigError, DataError, reason

# The last one is that of MovieLens; csv takes one sign only, so it is replaced.
SEPARATORS = {
    ",": "commas",
    "\t": "tabs",
    ";": "semicolons",
    "|": "bars",
    "::": "double colons",
}
UNIT = "\x1f"
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
LOOKED_AT = 8 << 20  # bytes that tell the encoding
LINES = 200  # that tell the separator
# What a header never is: a number, or an id of eight hexadecimal digits with a digit.
DATA = re.compile(r"^-?\d+([.,]\d+)?$|^(?=.*\d)[0-9a-f]{8}$")


@dataclass(frozen=True)
class TextLayout:
    """What must be known to cut a text file into fields.

    Attributes:
        encoding: as Python names it.
        separator: one of `SEPARATORS`.
        columns: the names, from the header or `column_1`, `column_2` and so on.
        header: whether the first line names them.
    """

    encoding: str
    separator: str
    columns: tuple[str, ...]
    header: bool

    def rows(self, path: Path) -> Iterator[list[str]]:
        """Cut every line into fields, without the header; they may be of any number."""
        with _opened(path, self.encoding) as file:
            try:
                yield from islice(_fields(file, self.separator), int(self.header), None)
            except (EOFError, zlib.error, OSError, UnicodeDecodeError) as error:
                raise DataError(f"{path} is damaged: {reason(error)}") from None
            except csv.Error as error:
                raise DataError(f"{path}: a line cannot be cut: {error}") from None


def text_layout(path: Path) -> TextLayout:
    """Look at the start of a text file.

    Raises:
        ConfigError: the file cannot be read.
        DataError: it is empty, binary, or has one column only.
    """
    encoding = _encoding(path)
    with _opened(path, encoding) as file:
        lines = list(islice(file, LINES))
    if not any(line.strip() for line in lines):
        raise DataError(f"{path}: expected rows, found an empty file")
    separator, width = _separator(lines)
    if width < 2:
        signs = ", ".join(SEPARATORS.values())
        raise DataError(
            f"{path}: expected columns divided by {signs}, found one column"
            f" {lines[0].strip()[:60]!r}"
        )
    first = next(_fields(iter(lines), separator))
    names = [name.strip() for name in first]
    header = all(names) and not any(DATA.match(name) for name in names)
    if header and len(set(names)) < len(names):
        repeated = sorted(name for name, n in Counter(names).items() if n > 1)
        raise DataError(f"{path}:1: columns {repeated} stand there twice")
    columns = first if header else [f"column_{i + 1}" for i in range(width)]
    return TextLayout(encoding, separator, tuple(columns), header)


def _encoding(path: Path) -> str:
    start = _start(path)
    for mark, name in MARKS.items():
        if start.startswith(mark):
            return name
    if b"\0" in start:
        raise DataError(f"{path}: expected CSV, TSV or Parquet, found binary data")
    # The last bytes may be the first half of a sign.
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(start)
    except UnicodeDecodeError:
        # Latin-1 has control characters where Windows' variant has signs such as €,
        # and reads the five bytes that the variant leaves open.
        has_signs = re.search(rb"[\x80-\x9f]", start)
        has_open = re.search(rb"[\x81\x8d\x8f\x90\x9d]", start)
        return "cp1252" if has_signs and not has_open else "latin-1"
    return "utf-8"


def _start(path: Path) -> bytes:
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as packed:
                return packed.read(LOOKED_AT)
        with path.open("rb") as file:
            return file.read(LOOKED_AT)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged: {reason(error)}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None


def _separator(lines: list[str]) -> tuple[str, int]:
    """The sign that cuts most lines into the same number of columns, and the number."""
    best, best_width, best_share = ",", 1, 0.0
    for sign in SEPARATORS:
        widths = Counter(len(row) for row in _fields(iter(lines), sign))
        width, count = widths.most_common(1)[0]
        share = count / widths.total()
        # Decimal commas cut a few lines into many; semicolons cut all into some.
        if width > 1 and (round(share, 1), width) > (round(best_share, 1), best_width):
            best, best_width, best_share = sign, width, share
    return best, best_width


def _fields(lines: Iterator[str], separator: str) -> Iterator[list[str]]:
    if len(separator) == 1:
        return (row for row in csv.reader(lines, delimiter=separator) if row)
    replaced = (line.replace(separator, UNIT) for line in lines)
    return (row for row in csv.reader(replaced, delimiter=UNIT) if row)


def _opened(path: Path, encoding: str) -> TextIO:
    # A byte that the encoding lacks stays recognisable: `prepare` counts its line.
    if path.suffix == ".gz":
        packed = gzip.open(path, "rt", -1, encoding, "surrogateescape", "")  # noqa: SIM115
        return cast(TextIO, packed)
    return path.open(encoding=encoding, errors="surrogateescape", newline="")
