"""The queue is bounded in length and time, and one job's fate is its own."""

import asyncio
import threading
import time
from collections.abc import Callable

import pytest
from fake_run import FakeRun, client_of, make_app

from torchrec_adrec.serve.http.queue import OverloadError, Queue


def waits_for(event: threading.Event) -> Callable[[float], float]:
    def job(waited: float) -> float:
        event.wait(10)
        return waited

    return job


def test_one_more_than_fits_is_refused_and_those_inside_are_answered() -> None:
    async def scenario() -> None:
        queue: Queue[float] = Queue(3, deadline_seconds=60)
        event = threading.Event()
        inside = [asyncio.create_task(queue.compute([waits_for(event)])) for _ in "ab"]
        await asyncio.sleep(0)
        # All or none of a batch: its first user alone would have had room.
        with pytest.raises(OverloadError):
            await queue.compute([waits_for(event)] * 2)
        assert queue.waiting == 2
        event.set()
        assert len(await asyncio.gather(*inside)) == 2
        assert queue.waiting == 0
        await queue.compute([waits_for(event)] * 3)  # there is room again

    asyncio.run(scenario())


def test_who_waited_too_long_is_not_computed() -> None:
    async def scenario() -> None:
        queue: Queue[float] = Queue(9, deadline_seconds=0.05)
        computed: list[int] = []

        def slow(_: float) -> float:
            time.sleep(0.2)
            return 0.0

        def late(_: float) -> float:
            computed.append(1)
            return 0.0

        first = asyncio.create_task(queue.compute([slow]))
        await asyncio.sleep(0)
        with pytest.raises(OverloadError):
            await queue.compute([late])
        await first
        assert not computed and queue.waiting == 0

    asyncio.run(scenario())


def test_a_client_that_goes_leaves_the_queue() -> None:
    async def scenario() -> None:
        queue: Queue[float] = Queue(9, deadline_seconds=60)
        event = threading.Event()
        first = asyncio.create_task(queue.compute([waits_for(event)]))
        second = asyncio.create_task(queue.compute([waits_for(event)] * 4))
        await asyncio.sleep(0)
        assert queue.waiting == 5
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        await asyncio.sleep(0)
        assert queue.waiting == 1
        event.set()
        await first

    asyncio.run(scenario())


def test_an_overload_is_429_with_the_seconds_to_wait() -> None:
    run = FakeRun()
    with client_of(run, queue_length=2) as client:
        answer = client.post("/batch", json={"users": [{}] * 3})
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert not run.users
        assert client.post("/batch", json={"users": [{}] * 2}).status_code == 200


def test_the_event_loop_goes_on_while_a_user_is_computed() -> None:
    app = make_app(FakeRun(seconds=0.3))
    served = app.swap.served

    async def scenario() -> None:
        job = asyncio.create_task(
            app.queue.compute([lambda waited: served.answer({}, 1, waited)])
        )
        ticks = 0
        while not job.done():
            await asyncio.sleep(0.01)
            ticks += 1
        assert ticks > 3

    asyncio.run(scenario())
