"""Windows that the ranks of one machine decode together, each row group once.

Every rank takes rows of every window. If each decoded all of it, eight ranks would read
every file eight times. Here the row groups are dealt out: each rank decodes its own
into memory that all of them see, and takes its rows when the others are done too:

    rank 0    decodes groups 0, 2 of window 5 | waits for all | takes rows of window 5
    rank 1    decodes groups 1, 3 of window 5 | waits for all | takes rows of window 5

Each rank counts the windows that it has decoded its share of, and those that it has
released. A window is complete when all have counted it as decoded; its memory is
written again when all have released it. The counters are read and written by system
calls, around which Python gives its lock away and takes it back: so the rows are
written before the counter and read after it on any processor.

Nobody depends on a neighbour that has gone. A rank that stops early, fails or dies is
noticed by those that wait for it: from then on they decode whole windows themselves.
What is wrong with a file is thereby found and said by every rank, as if it were alone.
"""

import mmap
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from torchrec_adrec.data.loader.row_groups import Split
from torchrec_adrec.data.loader.windows import OwnWindows
from torchrec_adrec.data.prepare.row_buffer import RowBuffer
from torchrec_adrec.errors import ReaderError

DECODED, RELEASED, LEFT = range(3)  # the counters of a rank, int64 each
FIELDS = 3
SLOTS = 2
PAGE = mmap.ALLOCATIONGRANULARITY
# Between two looks at the counters. Windows take seconds, those of tests milliseconds.
SHORTEST_S, LONGEST_S = 0.0002, 0.01


class NodeWindows:
    """This rank's part in the windows of all ranks of its machine.

    Args:
        split: the row groups.
        columns: the names of those to read.
        rows: of the largest window of all epochs.
        file: shared by the ranks, `NodeWindows.nbytes` long and zeros at first.
        rank: of this process among those of the machine.
        pids: of all of them.
    """

    is_shared = True

    def __init__(
        self,
        split: Split,
        columns: Sequence[str],
        rows: int,
        file: IO[bytes],
        rank: int,
        pids: Sequence[int],
    ) -> None:
        self.split, self.columns, self.rows = split, columns, rows
        self.file, self.rank, self.pids = file, rank, tuple(pids)
        self.decoded = self.released = self._dealt = 0
        self._closed = threading.Event()
        self._own: OwnWindows | None = None
        # Made by whoever decodes: perhaps a process of its own.
        self._buffers: list[RowBuffer] = []

    @staticmethod
    def nbytes(split: Split, columns: Sequence[str], rows: int, ranks: int) -> int:
        """The size of the file, of which only what is written takes memory.

        Args:
            split, columns, rows: as of `NodeWindows`.
            ranks: of the machine.
        """
        header, slot = _sizes(split, columns, rows, ranks)
        return header + SLOTS * slot

    def decode(self, groups: Sequence[int]) -> RowBuffer:
        """See `Windows`: this rank's share, and what the neighbours decoded.

        Raises:
            ReaderError: `leave` was called.
        """
        if self._own is None and not self._decode_together(groups):
            self._go_alone()
        return self._own.decode(groups) if self._own else self._next_buffer()

    def release(self) -> None:
        """See `Windows`: a window of which all say so is overwritten."""
        self.released += 1
        self._write(RELEASED, self.released)

    def leave(self) -> None:
        """See `Windows`: the neighbours go on without this rank."""
        self._closed.set()
        self._write(LEFT, 1)

    def _decode_together(self, groups: Sequence[int]) -> bool:
        """Decode this rank's share and wait for the others'; False: one has left."""
        # The slot held the window before last.
        if not self._wait(RELEASED, self.decoded + 1 - SLOTS):
            return False
        try:
            self._decode_share(groups, self._buffer(self.decoded))
        except Exception:
            self._write(LEFT, 1)
            raise
        self._write(DECODED, self.decoded + 1)
        return self._wait(DECODED, self.decoded + 1)

    def _decode_share(self, groups: Sequence[int], buffer: RowBuffer) -> None:
        """Decode this rank's row groups to where all ranks expect their rows."""
        firsts = np.cumsum([0, *(self.split.groups[group][2] for group in groups)])
        places = self._deal(len(groups))
        share = [groups[place] for place in places]
        for place, columns in zip(
            places, self.split.read(share, self.columns), strict=True
        ):
            buffer.put(int(firsts[place]), columns)

    def _deal(self, count: int) -> range:
        """Which of a window's row groups are this rank's."""
        # Dealt on from window to window: a window may have fewer groups than ranks.
        ranks = len(self.pids)
        places = range((self.rank - self._dealt) % ranks, count, ranks)
        self._dealt += count
        return places

    def _next_buffer(self) -> RowBuffer:
        self.decoded += 1
        return self._buffer(self.decoded - 1)

    def _go_alone(self) -> None:
        # The shared windows stay as they are: a neighbour may still read them, and this
        # rank the one before.
        self._write(LEFT, 1)
        self._own = OwnWindows(self.split, self.columns, self.rows)

    def _wait(self, field: int, least: int) -> bool:
        """Wait until a counter of all ranks is at least so large.

        Returns:
            Whether it is; False: a rank has gone before.
        """
        pause = SHORTEST_S
        while not self._all_have(field, least):
            if self._closed.is_set():
                raise ReaderError("reading has been ended, expected to go on")
            if self._someone_has_gone():
                # It may have counted between the two looks.
                return self._all_have(field, least)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_S)
        return True

    def _all_have(self, field: int, least: int) -> bool:
        return bool((self._counters()[:, field] >= least).all())

    def _someone_has_gone(self) -> bool:
        return bool(self._counters()[:, LEFT].any()) or not all(map(_lives, self.pids))

    def _counters(self) -> Any:
        """The counters of all ranks, (ranks, FIELDS)."""
        count = len(self.pids) * FIELDS
        data = os.pread(self.file.fileno(), 8 * count, 0)
        return np.frombuffer(data, np.int64).reshape(-1, FIELDS)

    def _write(self, field: int, value: int) -> None:
        place = 8 * (self.rank * FIELDS + field)
        os.pwrite(self.file.fileno(), np.int64(value).tobytes(), place)

    def _buffer(self, window: int) -> RowBuffer:
        """The memory of a window, counted from 0."""
        if not self._buffers:
            types, columns, ranks = self.split.types, self.columns, len(self.pids)
            header, slot = _sizes(self.split, columns, self.rows, ranks)
            memory = np.frombuffer(mmap.mmap(self.file.fileno(), 0), np.uint8)
            for start in range(header, header + SLOTS * slot, slot):
                part = memory[start : start + slot]
                self._buffers.append(RowBuffer(types, columns, self.rows, part))
        return self._buffers[window % SLOTS]

    def __reduce__(self) -> tuple[Any, ...]:
        # A process that reads for this one opens the file that this one holds open.
        path = shared_path(self.file)
        return _reopened, (
            *(self.split, self.columns, self.rows, path, self.rank, self.pids),
        )


def shared_path(file: IO[bytes]) -> str:
    """Where another process of this machine can open a file that this one has open."""
    return f"/proc/{os.getpid()}/fd/{file.fileno()}"


def _reopened(
    split: Split,
    columns: Sequence[str],
    rows: int,
    path: str,
    rank: int,
    pids: Sequence[int],
) -> NodeWindows:
    """What was sent to another process; the arguments are those of `NodeWindows`."""
    file = Path(path).open("r+b", buffering=0)  # noqa: SIM115
    return NodeWindows(split, columns, rows, file, rank, pids)


def _sizes(
    split: Split, columns: Sequence[str], rows: int, ranks: int
) -> tuple[int, int]:
    """The bytes of the counters and of a slot, both in whole pages."""
    slot = RowBuffer.nbytes(split.types, columns, rows)
    header = 8 * FIELDS * ranks
    return -(-header // PAGE) * PAGE, -(-slot // PAGE) * PAGE


def _lives(pid: int) -> bool:
    """Whether a process of this machine has not ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
