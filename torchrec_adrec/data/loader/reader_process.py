"""Batches made by a child process, so that reading takes no time of the trainer.

The trainer's Python interpreter launches the GPU's kernels one by one, and a thread
that makes batches in the same interpreter delays every launch. The two processes share
a ring of `SLOTS` pieces of memory:

    child      waits for a free slot, writes a batch into it, sends a message (stdout)
    trainer    receives it, copies the batch out, sends a byte: slot is free (stdin)

So no slot is overwritten before its batch is copied. The messages say what a batch
holds; its bytes travel through the shared memory alone.

Neither process outlives the other. When the trainer ends, even by SIGKILL, the kernel
closes its end of the child's input; the child reads the end of that file and exits. If
the child dies, its output ends, and the trainer raises a `ReaderError`. The memory is a
file without a name, which the kernel frees when the last of the two has ended.
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
from torchrec_adrec.data.loader.batch_memory import Memory
from torchrec_adrec.data.loader.bounds import RepairCounts
from torchrec_adrec.data.loader.feed import BatchOrigin, Feed
from torchrec_adrec.errors import AdRecError, ReaderError

SLOTS = 4
KILL_AFTER_S = 5.0  # a child whose input is closed has this long to end
# The child needs no GPU, and one core: the others are the trainer's.
CHILD_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "PYTHONFAULTHANDLER": "1",
}


def read_in_process(
    feed: Feed, first: int, memory: Memory, repaired: RepairCounts
) -> Iterator[tuple[BatchOrigin, Batch]]:
    """The batches of `feed.read(first, ...)`, made by a child process.

    Args:
        feed: is sent to the child.
        first: the steps that were done before.
        memory: allocates what a batch is copied to.
        repaired: counts the values that the child repaired.

    Raises:
        DataError: rows that cannot be read or used, as in the child.
        ReaderError: the child died.
    """
    with nameless_memory(SLOTS * feed.most_bytes) as file:
        ring, child = _ring(file, feed.most_bytes), _Child(file)
    try:
        child.send(pickle.dumps((feed, first)))
        number = 0
        layout: Any = None
        while (message := child.receive()) is not None:
            if isinstance(message, AdRecError):
                raise message
            if isinstance(message, LogRecord):
                getLogger(message.name).handle(message)
                continue
            # A layout is sent only when it differs from the one before it.
            origin, new_layout, repaired.counts = message
            layout = new_layout or layout
            slot = ring[number % SLOTS][: layout.nbytes]
            buffer = memory(layout.nbytes)
            # numpy copies in this thread and without the interpreter's lock; torch
            # would wake threads for it.
            buffer.numpy()[:] = slot.numpy()
            child.send(b".")
            number += 1
            yield origin, Batch(buffer, layout)
    finally:
        child.end()


def nameless_memory(size: int) -> IO[bytes]:
    """A file in memory that has no path, so that nobody has to remove it."""
    if hasattr(os, "memfd_create"):
        file: IO[bytes] = os.fdopen(os.memfd_create("adrec-batches"), "r+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115
    file.truncate(size)
    return file


def _ring(file: IO[bytes], size: int) -> tuple[Tensor, ...]:
    """The slots of the shared memory, (size,) uint8 each."""
    shared = torch.frombuffer(mmap.mmap(file.fileno(), SLOTS * size), dtype=torch.uint8)
    return torch.split(shared, size)


class _Child:
    """The trainer's end of the process that reads.

    It is started anew and not forked: the trainer has threads and perhaps a CUDA
    context, and neither survives a fork.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(file.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(file.fileno(),),
            env=os.environ
            | CHILD_ENVIRONMENT
            | {"PYTHONPATH": os.pathsep.join(sys.path)},
            # Ctrl-C or a job's SIGTERM reaches the trainer's whole process group. The
            # trainer finishes its step and may need a batch for it, so the child is in
            # a group of its own and ends when the trainer closes its input.
            start_new_session=True,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.input, self.output = self.process.stdin, self.process.stdout

    def send(self, message: bytes) -> None:
        """Write to its standard input."""
        try:
            self.input.write(message)
            self.input.flush()
        except BrokenPipeError:
            raise self._died() from None

    def receive(self) -> Any:
        """The next of its messages; None when it has read all rows."""
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
        """Close its input and wait until it has ended; kill it if it does not."""
        # It may have ended before it read everything that was written to it.
        with contextlib.suppress(BrokenPipeError):
            self.input.close()
        self.output.close()
        try:
            self.process.wait(KILL_AFTER_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class _Messages:
    """The child's messages to the trainer; any thread may send one."""

    def __init__(self) -> None:
        self.file, self.lock = os.fdopen(os.dup(1), "wb"), threading.Lock()
        # From now on file 1 is standard error: what a library prints would otherwise
        # lie between the messages.
        os.dup2(2, 1)

    def put_nowait(self, message: Any) -> None:
        """Send one message; `QueueHandler` asks for a method of this name."""
        with self.lock:
            pickle.dump(message, self.file)
            self.file.flush()


def main() -> None:
    """Run the child, until all rows are read and the trainer has ended."""
    messages = _Messages()
    getLogger().addHandler(QueueHandler(messages))  # type: ignore[arg-type]
    torch.set_num_threads(1)
    feed, first = pickle.load(sys.stdin.buffer)
    free_slots = threading.Semaphore(SLOTS)
    threading.Thread(target=_watch, args=(free_slots,), daemon=True).start()
    with os.fdopen(int(sys.argv[1]), "r+b") as file:
        ring = _ring(file, feed.most_bytes)
    try:
        _send_batches(feed, first, ring, free_slots, messages)
    except AdRecError as error:
        messages.put_nowait(error)
    # The trainer closes our input when it has received all, and `_watch` ends us then.
    # Ending earlier would look like a death to a trainer that still sends a byte.
    threading.Event().wait()


def _send_batches(
    feed: Feed,
    first: int,
    ring: tuple[Tensor, ...],
    free_slots: threading.Semaphore,
    messages: _Messages,
) -> None:
    number, layout, repaired = 0, None, RepairCounts()
    batches = feed.read(first, lambda size: ring[number % SLOTS][:size], repaired)
    free_slots.acquire()  # for the first batch; the next ones wait at the loop's end
    for origin, batch in batches:
        # Nearly all batches have the layout of the one before them.
        new_layout = None if batch.layout is layout else batch.layout
        messages.put_nowait((origin, new_layout, repaired.counts))
        number, layout = number + 1, batch.layout
        free_slots.acquire()
    messages.put_nowait(None)


def _watch(free_slots: threading.Semaphore) -> None:
    """Free a slot for every byte from the trainer; exit when the trainer has ended."""
    while sys.stdin.buffer.read(1):
        free_slots.release()
    # The main thread may be reading a file or waiting for a slot: `sys.exit` in this
    # thread would not end it.
    os._exit(0)


if __name__ == "__main__":
    main()
