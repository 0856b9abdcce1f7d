"""Lines that cannot be used: counted, the first ones kept by file and line."""

from dataclasses import dataclass, field

from torchrec_adrec.errors import DataError

KEPT = 20


@dataclass
class BadRows:
    """Counts good and bad rows of one `prepare`."""

    rows_read: int = 0
    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, file: str, line: int, reason: str) -> None:
        """Count one line."""
        self.count += 1
        if len(self.first) < KEPT:
            self.first.append(f"{file}:{line}: {reason}")

    def extend(self, other: "BadRows") -> None:
        """Add the rows of another file."""
        self.rows_read += other.rows_read
        self.count += other.count
        self.first = (self.first + other.first)[:KEPT]

    def check(self, max_share: float) -> None:
        """Raise if too many rows were bad.

        Raises:
            DataError: names the first bad lines.
        """
        total = self.rows_read + self.count
        if self.count > max_share * total:
            raise DataError(
                f"{self.count} of {total} rows cannot be used, more than"
                f" data.max_bad_rows = {max_share:g}: {'; '.join(self.first[:3])}"
            )
