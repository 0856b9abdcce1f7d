"""Bodies are bounded in size and time, and a flood of refusals is slowed down."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fake_run import FakeRun, make_app

from torchrec_adrec.serve.http import limits
from torchrec_adrec.serve.http.limits import Pace

Messages = list[dict[str, Any]]


async def never() -> dict[str, Any]:
    await asyncio.sleep(60)
    raise AssertionError


def ask(parts: list[bytes], length: int | None = None, **bounds: Any) -> Messages:
    """Send a body in parts, of which the last may be followed by more."""
    app = make_app(FakeRun(), **bounds)
    headers = [(b"content-type", b"application/json")]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    scope = {
        **{"type": "http", "method": "POST", "path": "/recommend", "headers": headers},
        **{"query_string": b"", "http_version": "1.1", "asgi": {"version": "3.0"}},
        **{"scheme": "http", "server": ("h", 1), "client": ("c", 1), "root_path": ""},
    }
    messages: Messages = []

    async def feed() -> AsyncIterator[dict[str, Any]]:
        for part in parts[:-1]:
            yield {"type": "http.request", "body": part, "more_body": True}
        if parts[-1] is LEFT:
            yield {"type": "http.disconnect"}
        if parts[-1] is not HALF:
            yield {"type": "http.request", "body": parts[-1], "more_body": False}
        yield await never()

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)

    stream = feed()
    asyncio.run(app.asgi(scope, stream.__anext__, send))  # type: ignore[arg-type]
    return messages


HALF, LEFT = b"half", b"left"
RIGHT = b'{"user": {}}'


def test_a_body_in_many_parts_is_read_whole() -> None:
    messages = ask([bytes([byte]) for byte in RIGHT])
    assert messages[0]["status"] == 200


@pytest.mark.parametrize("length", [None, 65_537])
def test_one_byte_too_many_is_refused(length: int | None) -> None:
    body = RIGHT.ljust(65_537)
    assert ask([body[:40_000], body[40_000:]], length)[0]["status"] == 413
    body = body[:65_536]
    assert ask([body[:40_000], body[40_000:]], len(body))[0]["status"] == 200


def test_ten_megabytes_are_not_read() -> None:
    (start, _) = ask([HALF], length=10**7)
    assert start["status"] == 413
    assert (b"connection", b"close") in start["headers"]
    # Without a length: reading stops soon after the bound.
    parts = [b"x" * 65_536] * 200
    assert ask([*parts, HALF])[0]["status"] == 413


def test_half_a_body_is_refused_in_time_and_a_client_that_left_is_dropped() -> None:
    messages = ask([b'{"us', HALF], receive_seconds=0.05)
    assert messages[0]["status"] == 408
    assert (b"connection", b"close") in messages[0]["headers"]
    assert ask([b'{"us', LEFT]) == []


def test_a_flood_of_refusals_is_spaced_and_no_wait_is_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    clock = [100.0]

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    pace = Pace(share=0.1)

    def refuse(count: int) -> None:
        waits.clear()
        for _ in range(count):
            # Not by an event loop, which reads the same clock.
            with contextlib.suppress(StopIteration):
                pace.wait(0.001).send(None)

    refuse(49)
    assert not waits, "a few at once leave at once"
    refuse(1_000)  # as a flood that does not wait for its answers
    assert waits[1:3] == pytest.approx([0.01, 0.02]), "a tenth of the time"
    assert max(waits) == pytest.approx(limits.LONGEST_PAUSE)
    clock[0] += 10
    refuse(49)
    assert not waits, "after a pause they leave at once again"


def test_refusals_are_paced_and_answers_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paced: list[int] = []

    async def wait(_: Pace, seconds: float) -> None:
        assert 0 < seconds < 10
        paced.append(1)

    monkeypatch.setattr(Pace, "wait", wait)
    for count, body in enumerate((b"[]", b"nope", b"x" * 70_000), 1):
        assert ask([body])[0]["status"] in (413, 422)
        assert len(paced) == count
    assert ask([RIGHT])[0]["status"] == 200
    assert len(paced) == 3
