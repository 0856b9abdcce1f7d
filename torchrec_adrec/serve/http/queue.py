"""Users wait in one bounded queue for the one thread that computes.

Users are not gathered into batches. On a CPU most of a request is the ranker's, whose
cost is per candidate, and the first of two users would wait for the second.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Generic, TypeVar

T = TypeVar("T")
MEMORY = 0.9  # share of the old mean that stays when a new time of computing comes in


class OverloadError(Exception):
    """Raised where a user cannot have its turn in time.

    Attributes:
        retry_after: whole seconds after which the queue will have been worked off.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(
            f"the server is busy; ask again in {retry_after} s (Retry-After)"
        )
        self.retry_after = retry_after


class Queue(Generic[T]):
    """Computes one job after another on a thread, and refuses what would wait too long.

    The thread leaves the event loop free, which must go on reading and refusing.

    Args:
        length: the most jobs that wait or are computed.
        deadline_seconds: how long a job may wait for its turn.

    Attributes:
        waiting: number of jobs that wait or are computed.
    """

    def __init__(self, length: int, deadline_seconds: float) -> None:
        self.length, self.deadline_seconds = length, deadline_seconds
        self.waiting = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="recommend")
        self._seconds = 0.0  # running mean of one job

    async def compute(self, jobs: Sequence[Callable[[float], T]]) -> list[T]:
        """Run the jobs of one request, all or none of which are let in.

        Args:
            jobs: each gets the milliseconds that it waited.

        Raises:
            OverloadError: the queue is full, or the deadline passed before its turn.
        """
        if self.waiting + len(jobs) > self.length:
            raise OverloadError(self._retry_after())
        loop = asyncio.get_running_loop()
        entered = time.perf_counter()
        futures = []
        for job in jobs:
            run = partial(self._run, job, entered)
            future = loop.run_in_executor(self._thread, run)
            self.waiting += 1
            # Called also for a job that is cancelled, as its client has gone.
            future.add_done_callback(self._leave)
            futures.append(future)
        try:
            return await asyncio.gather(*futures)
        finally:
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """End the thread after the job that it is at; the others are cancelled."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _run(self, job: Callable[[float], T], entered: float) -> T:
        started = time.perf_counter()
        if started - entered > self.deadline_seconds:
            raise OverloadError(self._retry_after())
        result = job((started - entered) * 1e3)
        seconds = time.perf_counter() - started
        self._seconds = MEMORY * self._seconds + (1 - MEMORY) * seconds
        return result

    def _leave(self, _: "asyncio.Future[T]") -> None:
        self.waiting -= 1

    def _retry_after(self) -> int:
        return max(1, math.ceil(self.waiting * self._seconds))
