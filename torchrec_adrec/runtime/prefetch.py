"""An iterator works ahead of its consumer, in a thread."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_END = object()


def prefetch(items: Iterator[T], depth: int = 4) -> Generator[T]:
    """Run an iterator in a background thread, never more than `depth` items ahead.

    An error of the thread is raised where the item would have come. A consumer that
    stops early (by `close`, or because the last reference to the generator goes) ends
    the thread and the iterator.

        for batch in prefetch(read_batches(), depth=2):
            train_on(batch)  # while the next two are being read
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        ahead = deque(thread.submit(next, items, _END) for _ in range(depth))
        while (item := ahead.popleft().result()) is not _END:
            ahead.append(thread.submit(next, items, _END))
            yield item  # type: ignore[misc]
    finally:
        thread.shutdown(cancel_futures=True)
        # After the thread has ended: a generator that runs cannot be closed. It may run
        # a thread of its own, which would otherwise live as long as this process.
        if isinstance(items, Generator):
            items.close()
