"""Batches made by a process of its own, so that reading takes nothing of the trainer's
interpreter, which a GPU's kernels are launched by.

The child writes each batch into the next slot of a ring of shared memory and says so in
its standard output; the trainer copies it out, which needs no interpreter, and says in
the child's standard input that the slot is free. So no slot is written over while
anything still reads it, be it a copy to a device that is under way.

When the trainer ends, however it ends, that input ends, and so does the child. The
memory has no name and goes with the last of the two.
"""

import contextlib
import mmap
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from logging import LogRecord, getLogger
from logging.handlers import QueueHandler
from typing import IO, Any

import torch
from torch import Tensor

from torchrec_adrec.batch import Batch
from torchrec_adrec.data.loader.bounds import RepairCounts
from torchrec_adrec.data.loader.collate import Memory
from torchrec_adrec.data.loader.feed import Feed, Taken
from torchrec_adrec.errors import AdRecError, ReaderError

SLOTS = 4
PATIENCE_S = 5.0  # until a child that was told to end is killed
ALONE = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def read_in_process(
    feed: Feed, first: int, memory: Memory, repaired: RepairCounts
) -> Iterator[tuple[Taken, Batch]]:
    """As `feed.read`, by a child process.

    Raises:
        DataError: as there.
        ReaderError: the child died.
    """
    with nameless_memory(SLOTS * feed.most_bytes) as file:
        ring, child = _ring(file, feed.most_bytes), _Child(file)
    try:
        child.tell(pickle.dumps((feed, first)))
        number = 0
        layout: Any = None  # the first batch brings one, a later one only a new one
        while (told := child.hear()) is not None:
            if isinstance(told, AdRecError):
                raise told
            if isinstance(told, LogRecord):
                getLogger(told.name).handle(told)
                continue
            taken, changed, repaired.counts = told
            layout = changed or layout
            slot = ring[number % SLOTS][: layout.nbytes]
            buffer = memory(layout.nbytes)
            buffer.numpy()[:] = slot.numpy()  # torch would wake threads for it
            batch = Batch(buffer, layout)
            child.tell(b".")
            number += 1
            yield taken, batch
    finally:
        child.end()


def nameless_memory(size: int) -> IO[bytes]:
    """Memory of a file that nobody can find, and nobody needs to remove."""
    if hasattr(os, "memfd_create"):
        file: IO[bytes] = os.fdopen(os.memfd_create("adrec-batches"), "r+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115
    file.truncate(size)
    return file


def _ring(file: IO[bytes], size: int) -> tuple[Tensor, ...]:
    """Its slots, (bytes,) uint8 each."""
    shared = torch.frombuffer(mmap.mmap(file.fileno(), SLOTS * size), dtype=torch.uint8)
    return torch.split(shared, size)


class _Child:
    """The process that reads, seen by the trainer. Not forked: a process that has
    threads or a CUDA context must not be.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(file.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(file.fileno(),),
            env=os.environ | ALONE | {"PYTHONPATH": os.pathsep.join(sys.path)},
            # A signal to the trainer's group is for the trainer: it takes the step that
            # it has begun to its end, and for that it may need a batch.
            start_new_session=True,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.input, self.output = self.process.stdin, self.process.stdout

    def tell(self, message: bytes) -> None:
        """Write to its standard input."""
        try:
            self.input.write(message)
            self.input.flush()
        except BrokenPipeError:
            raise self._died() from None

    def hear(self) -> Any:
        """The next of its messages; None: it has read all."""
        try:
            return pickle.load(self.output)
        except (EOFError, pickle.UnpicklingError):
            raise self._died() from None

    def _died(self) -> ReaderError:
        code = self.process.wait()
        return ReaderError(
            f"the process that reads training rows ahead (pid {self.process.pid}) ended"
            f" with exit code {code}, expected all rows; -9 says that it was killed,"
            " mostly for memory; the same command goes on from the last checkpoint,"
            " with train.reader=thread without such a process"
        )

    def end(self) -> None:
        """Let it end, whatever it does."""
        with contextlib.suppress(BrokenPipeError):  # it had ended, words unread
            self.input.close()
        self.output.close()
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class _Messages:
    """The child's words to the trainer, of any thread."""

    def __init__(self) -> None:
        self.file, self.lock = os.fdopen(os.dup(1), "wb"), threading.Lock()
        os.dup2(2, 1)  # what a library prints is no message

    def put_nowait(self, message: Any) -> None:
        """Send one, also for a `QueueHandler`."""
        with self.lock:
            pickle.dump(message, self.file)
            self.file.flush()


def main() -> None:
    """The child: read until all is read, or until the trainer has ended."""
    messages = _Messages()
    getLogger().addHandler(QueueHandler(messages))  # type: ignore[arg-type]
    torch.set_num_threads(1)
    feed, first = pickle.load(sys.stdin.buffer)
    free = threading.Semaphore(SLOTS)
    threading.Thread(target=_watch, args=(free,), daemon=True).start()
    with os.fdopen(int(sys.argv[1]), "r+b") as file:
        ring = _ring(file, feed.most_bytes)
    try:
        _send(feed, first, ring, free, messages)
    except AdRecError as error:
        messages.put_nowait(error)
    threading.Event().wait()  # until the trainer has heard all and closes our input


def _send(
    feed: Feed,
    first: int,
    ring: tuple[Tensor, ...],
    free: threading.Semaphore,
    messages: _Messages,
) -> None:
    number, layout, repaired = 0, None, RepairCounts()
    batches = feed.read(first, lambda size: ring[number % SLOTS][:size], repaired)
    free.acquire()
    for taken, batch in batches:
        changed = None if batch.layout is layout else batch.layout
        messages.put_nowait((taken, changed, repaired.counts))
        number, layout = number + 1, batch.layout
        free.acquire()
    messages.put_nowait(None)


def _watch(free: threading.Semaphore) -> None:
    """A byte of the trainer frees a slot; its end is ours."""
    while sys.stdin.buffer.read(1):
        free.release()
    os._exit(0)


if __name__ == "__main__":
    main()
