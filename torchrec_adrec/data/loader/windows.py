"""The memory that windows of rows are decoded to.

Two windows are held, whatever the size of the split: one is consumed while the next is
decoded, and the two exchange their memory, because new pages cost a third of the time.
"""

from collections.abc import Sequence
from typing import Protocol

from torchrec_adrec.data.loader.row_groups import Split
from torchrec_adrec.data.prepare.row_buffer import RowBuffer


class Windows(Protocol):
    """Memory for the windows of an epoch, which are decoded and released in order.

    Attributes:
        rows: that the largest window may have.
        is_shared: whether other ranks decode a share of every window, so that this rank
            must decode its own also of those of which it takes no row.
    """

    rows: int
    is_shared: bool

    def decode(self, groups: Sequence[int]) -> RowBuffer:
        """Return the rows of the next window; the window after next overwrites them.

        Raises:
            DataError: a file is damaged, or a column is missing or of another type.
        """

    def release(self) -> None:
        """Give back the oldest window that was not given back yet."""

    def leave(self) -> None:
        """Say that this rank reads no further; any thread may call this."""


class OwnWindows:
    """Memory of this rank alone, which decodes every row group itself.

    Args:
        split: the row groups.
        columns: the names of those to read.
        rows: of the largest window.
    """

    is_shared = False

    def __init__(self, split: Split, columns: Sequence[str], rows: int) -> None:
        self.split, self.columns, self.rows = split, columns, rows
        self._buffers = [RowBuffer(split.types, columns, rows) for _ in range(2)]

    def decode(self, groups: Sequence[int]) -> RowBuffer:
        """See `Windows`."""
        buffer = self._buffers[0]
        self._buffers.reverse()
        first = 0
        for columns in self.split.read(groups, self.columns):
            buffer.put(first, columns)
            first += len(columns[self.columns[0]])
        return buffer

    def release(self) -> None:
        """See `Windows`: nobody waits for it."""

    def leave(self) -> None:
        """See `Windows`: nobody waits for it."""
