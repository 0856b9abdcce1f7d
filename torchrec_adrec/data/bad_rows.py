"""Lines that cannot be used: they are counted, and the first ones kept by name."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from torchrec_adrec.errors import DataError

# Enough to see what is wrong; a broken file has millions, which would fill the memory.
KEPT = 20

log = logging.getLogger(__name__)


@dataclass
class BadRows:
    """Counts the good and the bad rows of one `prepare`.

    Attributes:
        rows_read: good rows.
        count: bad rows.
        first: the first bad rows as `file:line: reason`.
        unmatched: by side table, the good rows whose id has no row in it.
        first_unmatched: the first of these rows as `file:line: reason`.
    """

    rows_read: int = 0
    count: int = 0
    first: list[str] = field(default_factory=list)
    unmatched: dict[str, int] = field(default_factory=dict)
    first_unmatched: list[str] = field(default_factory=list)

    def add(self, file: str, line: int, reason: str) -> None:
        """Count one line, and keep its reason if it is among the first.

        Args:
            file: the path, for the message.
            line: its number, from 1.
            reason: what was found and what was expected.
        """
        self.count += 1
        if len(self.first) < KEPT:
            self.first.append(f"{file}:{line}: {reason}")

    def add_unmatched(self, table: str, rows: int, reasons: Iterable[str]) -> None:
        """Count good rows whose id has no row in a side table.

        Args:
            table: its file.
            rows: their number.
            reasons: of each row, as `file:line: reason`.
        """
        self.unmatched[table] = self.unmatched.get(table, 0) + rows
        room = KEPT - len(self.first_unmatched)
        self.first_unmatched += islice(reasons, room)

    def extend(self, other: "BadRows") -> None:
        """Add the rows of another file."""
        self.rows_read += other.rows_read
        self.count += other.count
        self.first = (self.first + other.first)[:KEPT]
        for table, rows in other.unmatched.items():
            self.unmatched[table] = self.unmatched.get(table, 0) + rows
        both = self.first_unmatched + other.first_unmatched
        self.first_unmatched = both[:KEPT]

    def check(self, max_share: float) -> None:
        """Refuse the data if more than `max_share` of the rows are bad.

        Raises:
            DataError: names the first bad lines.
        """
        total = self.rows_read + self.count
        if self.count > max_share * total:
            raise DataError(
                f"{self.count} of {total} rows cannot be used, more than"
                f" data.max_bad_rows = {max_share:g}: {'; '.join(self.first[:3])}"
            )

    def check_unmatched(self, max_share: float) -> None:
        """Refuse a side table that more than `max_share` of the rows are not in.

        Raises:
            DataError: names the side table and the first rows.
        """
        for table, rows in self.unmatched.items():
            if rows > max_share * self.rows_read:
                raise DataError(
                    f"{rows} of {self.rows_read} rows have no row in {table}, more than"
                    f" data.max_unmatched_rows = {max_share:g}; are its ids written as"
                    f" in the log? {'; '.join(self.first_unmatched[:3])}"
                )

    def warn(self, source: str = "") -> None:
        """Log how many rows are bad or unmatched, with the first of them.

        Args:
            source: the file that they are in, if it is one.
        """
        where = f"{source}: " if source else ""
        if self.count:
            text = "%s%d bad rows left out; first: %s"
            log.warning(text, where, self.count, self.first[0])
        for table, rows in self.unmatched.items():
            text = "%d rows have no row in %s and go without its values; first: %s"
            log.warning(text, rows, table, self.first_unmatched[0])
