"""Lines that cannot be used: they are counted, and the first ones kept by name."""

from dataclasses import dataclass, field

from torchrec_adrec.errors import DataError

# Enough to see what is wrong; a broken file has millions, which would fill the memory.
KEPT = 20


@dataclass
class BadRows:
    """Counts the good and the bad rows of one `prepare`.

    Attributes:
        rows_read: good rows.
        count: bad rows.
        first: the first bad rows as `file:line: reason`.
    """

    rows_read: int = 0
    count: int = 0
    first: list[str] = field(default_factory=list)

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

    def extend(self, other: "BadRows") -> None:
        """Add the rows of another file."""
        self.rows_read += other.rows_read
        self.count += other.count
        self.first = (self.first + other.first)[:KEPT]

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
