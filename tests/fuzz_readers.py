"""Throw broken text at the readers for some minutes: rows in = rows out + bad rows.

python tests/fuzz_readers.py --minutes 10        (`make fuzz`)

Good rows are mixed with spoiled ones and with random bytes, cut into blocks of any
size, plain or gzipped; a third have bytes flipped anywhere. Prints how many
files and lines were read; stops at the first that crashes, hangs or loses a row, and
keeps it.
"""

import argparse
import gzip
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from conftest import criteo_line
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from raw_data import table_config

from torchrec_adrec.data.adapters import criteo, table
from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.errors import DataError

HANGS_S = 20
EXAMPLES = 300  # of one round of hypothesis

Field = st.text("019af+-. \t\r\0\"',\xff\xc3\xa9", max_size=9)
GOOD_CSV = ",".join(["u1", "NL", "34", "a1 a2", "a1", "59.9", "1", "5", "77", "x"])
HEADER = "uid,country,age,seen,ad_id,price,clicked,revenue,ts,notes"


def spoiled(line: str, separator: str, position: int, text: str) -> str:
    """A good row but for one field."""
    fields = line.split(separator)
    fields[position % len(fields)] = text
    return separator.join(fields)


def lines_of(good: st.SearchStrategy[str], separator: str) -> st.SearchStrategy[bytes]:
    """The bytes of a file: good, spoiled and random lines, some bytes flipped."""
    bad = st.builds(spoiled, good, st.just(separator), st.integers(0, 50), Field)
    lines = st.lists(st.one_of(good, bad, Field), min_size=1, max_size=40)
    text = lines.map(lambda spoilt: "\n".join(spoilt).encode("latin-1"))
    flips = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=5)
    flipped = st.builds(flip, text, flips)
    return st.one_of(text, text.map(lambda t: t + b"\n"), flipped)


def flip(text: bytes, flips: list[tuple[int, int]]) -> bytes:
    """Other bytes at some places."""
    spoilt = bytearray(text)
    for position, byte in flips:
        if spoilt:
            spoilt[position % len(spoilt)] = byte
    return bytes(spoilt)


@dataclass
class Fuzz:
    """Counts what was thrown, in a folder that keeps the file at work."""

    folder: Path
    counts: Counter[str] = field(default_factory=Counter)

    def criteo(self, text: bytes, chunk: int, zipped: bool) -> None:
        """A Criteo file."""
        path = self._write("rows.tsv", text, zipped)
        bad, layout = BadRows(), criteo.Layout(criteo.COLUMNS, "\t", header=False)
        try:
            frames = criteo.read_file(path, layout, bad, chunk)
            rows = sum(len(frame) for frame in frames)
        except DataError:
            assert not text, "only an empty file may stop"
            return
        self._check("criteo", text, rows, bad)

    def table(self, text: bytes, chunk: int, zipped: bool) -> None:
        """A CSV file behind a good header."""
        path = self._write("rows.csv", HEADER.encode() + b"\n" + text, zipped)
        data, bad = table.open_data(table_config(path)), BadRows()
        rows = sum(len(frame) for frame in data.read(path, bad))
        self._check("table", text, rows, bad)

    def _write(self, name: str, text: bytes, zipped: bool) -> Path:
        path = self.folder / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(text, 1) if zipped else text)
        return path

    def _check(self, reader: str, text: bytes, rows: int, bad: BadRows) -> None:
        lines = text.count(b"\n") + bool(text and not text.endswith(b"\n"))
        assert rows + bad.count == lines, f"{reader}: {rows} + {bad.count} != {lines}"
        self.counts[f"{reader} files"] += 1
        self.counts[f"{reader} lines"] += lines
        self.counts[f"{reader} good rows"] += rows


def throw(
    read: Callable[[bytes, int, bool], None], texts: st.SearchStrategy[bytes], n: int
) -> None:
    """One round at one reader, with a seed of its own."""

    @seed(n)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(text=texts, chunk=st.integers(40, 20_000), zipped=st.booleans())
    def one(text: bytes, chunk: int, zipped: bool) -> None:
        signal.alarm(HANGS_S)  # ends the process: a hang is a failure
        read(text, chunk, zipped)
        signal.alarm(0)

    one()


def main() -> None:
    """Throw until the time is over."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--minutes", type=float, default=10)
    arguments.add_argument("--seed", type=int, default=0)
    words = arguments.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    criteo_texts = lines_of(st.integers(0, 99).map(criteo_line), "\t")
    table_texts = lines_of(st.just(GOOD_CSV), ",")
    fuzz, end, number = Fuzz(folder), time.monotonic() + 60 * words.minutes, words.seed
    print(f"seed {words.seed}, files in {folder}", flush=True)
    while time.monotonic() < end:
        throw(fuzz.criteo, criteo_texts, number)
        throw(fuzz.table, table_texts, number)
        number += 1
    print(f"{words.minutes:g} minutes, seeds {words.seed} to {number - 1}, no loss:")
    for name, count in sorted(fuzz.counts.items()):
        print(f"  {name}: {count:,}")


if __name__ == "__main__":
    main()
