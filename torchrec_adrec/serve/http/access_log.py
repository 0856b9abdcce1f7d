"""One line of JSON for every request, and its place in the metrics."""

import asyncio
import json
import logging
import sys
import time
from datetime import UTC, datetime
from itertools import chain
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from torchrec_adrec.serve.http.metrics import Metrics

log = logging.getLogger("torchrec_adrec.access")
# Key of the scope's state, set by the routes: milliseconds by stage, of each user.
STAGES = "stages"
GONE = 499  # the client closed the connection before it was answered; as nginx has it


class AccessLog:
    """Times every request and writes it down.

    Nothing that a client sent is written, but the method and a path that exists.

    Args:
        app: answers the requests.
        paths: those that exist; all others are counted as one.
        metrics: counts requests.
    """

    def __init__(self, app: ASGIApp, paths: frozenset[str], metrics: Metrics) -> None:
        self.app, self.paths, self.metrics = app, paths, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id, status = uuid4().hex, GONE
        scope.setdefault("state", {})[STAGES] = []

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                header = (b"x-request-id", request_id.encode())
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except asyncio.CancelledError:
            # The server ends and the client does not take its answer.
            log.debug("cancelled")
        finally:
            self._note(scope, status, time.perf_counter() - started, request_id)

    def _note(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        path = scope["path"] if scope["path"] in self.paths else "other"
        self.metrics.requests.labels(path, str(status)).inc()
        self.metrics.seconds.labels(path).observe(seconds)
        users = scope["state"][STAGES]
        for stage, milliseconds in chain.from_iterable(u.items() for u in users):
            if stage != "total":
                self.metrics.stage_seconds.labels(stage).observe(milliseconds / 1e3)
        log.info(
            json.dumps(
                {
                    "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                    "id": request_id,
                    "client": (scope.get("client") or ("", 0))[0],
                    "method": scope["method"][:16],
                    "path": path,
                    "status": status,
                    "milliseconds": round(seconds * 1e3, 3),
                    "stages": _summary(users),
                }
            )
        )


def _summary(users: list[dict[str, float]]) -> dict[str, float]:
    """Join the stages of all users: they wait together, all else adds up."""
    join = {stage: max if stage == "queue" else sum for stage in chain(*users)}
    return {n: round(f(user[n] for user in users), 3) for n, f in join.items()}


def setup_access_log() -> None:
    """Write the lines to the standard output, and nothing else there."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)
