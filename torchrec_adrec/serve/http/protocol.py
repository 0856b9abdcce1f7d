"""Connections that neither half a request nor a slow reader can hold.

uvicorn bounds the time between two requests of a connection, but not the time that the
head of a request, or the reading of an answer, may take.
"""

import asyncio
import time
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from torchrec_adrec.config.serve import ServeConfig
from torchrec_adrec.serve.http.limits import HELD

READ = 4_096  # bytes at a time: h11 parses a head of any size that comes in one read


class ServerConfig(uvicorn.Config):
    """The configuration of uvicorn, with our bounds.

    Args:
        bounds: read by every connection.
        arguments: those of uvicorn.
    """

    def __init__(self, bounds: ServeConfig, **arguments: Any) -> None:
        # The loop whose transports can be told how much to read at a time.
        super().__init__(http=BoundedProtocol, loop="asyncio", **arguments)
        self.bounds = bounds


class BoundedProtocol(H11Protocol):
    """One connection, which is closed when its client takes too long.

    Attributes:
        idle_since: when it was opened, or its last answer had been given.
    """

    config: ServerConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.idle_since = time.monotonic()
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether the server owes nothing but, maybe, a refusal that it holds back."""
        return (
            self.cycle is None
            or self.cycle.response_complete
            or self.cycle.more_body
            or HELD in self.cycle.scope["state"]
        )

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room for the connection, and wait for its first head."""
        is_full = len(self.connections) >= self.config.bounds.connections
        super().connection_made(transport)
        transport.max_size = READ  # type: ignore[attr-defined]
        self._await_head()
        if is_full:
            # The new one itself, if the server owes all others an answer.
            self._slowest().transport.abort()

    def data_received(self, data: bytes) -> None:
        """Read on; the timer of a head that goes on arriving is not set back."""
        if self._head_timer is None and self.conn.their_state is h11.IDLE:
            self._await_head()
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            _cancel(self._head_timer)
            self._head_timer = None

    def on_response_complete(self) -> None:
        """Count as idle from now on."""
        self.idle_since = time.monotonic()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        _cancel(self._head_timer)
        _cancel(self._write_timer)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Wait for a client that does not read its answers, but not for ever."""
        super().pause_writing()
        self._abort_later()

    def resume_writing(self) -> None:
        """Stop waiting, as the client reads again."""
        super().resume_writing()
        _cancel(self._write_timer)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, also one whose client leaves answers unread."""
        super().timeout_keep_alive_handler()
        # `close` first sends what is left, for which it would wait without an end.
        self._abort_later()

    def _await_head(self) -> None:
        seconds = self.config.bounds.receive_seconds
        self._head_timer = self.loop.call_later(seconds, self.transport.abort)

    def _abort_later(self) -> None:
        _cancel(self._write_timer)
        seconds = self.config.bounds.receive_seconds
        self._write_timer = self.loop.call_later(seconds, self.transport.abort)

    def _slowest(self) -> "BoundedProtocol":
        """Find the connection that has been waiting longest for its client."""
        waiting = [
            connection
            for connection in self.connections
            if isinstance(connection, BoundedProtocol) and connection.is_waiting
        ]
        return min(waiting, key=lambda connection: connection.idle_since)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
