"""What a request must be before it is read: allowed, small, and whole in time."""

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from torchrec_adrec.config.serve import ServeConfig

OPEN_PATHS = ("/health", "/ready")  # for whoever watches the server; no token needed
# A client that sends a little too much can read why, as its body is read to its end;
# one that sends more than this multiple is cut off.
READ_AND_DROPPED = 16
LONGEST_PAUSE = 5.0  # seconds by which a refusal is delayed
HELD = "held"  # key of the scope's state: only a refusal is still to be sent
CHEAPEST = 0.0005  # seconds that it takes to refuse a request by its head
CREDIT = 0.5  # seconds of pauses that are left out after a quiet time


class RefusalError(Exception):
    """Raised for a request that is answered without being read.

    Attributes:
        status: of the answer.
        detail: its text, which never repeats what the client sent.
    """

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


class Pace:
    """Spaces refusals, so that a flood of them leaves the processor to others.

    Whoever sends wrong requests on many connections gets every answer, at this pace:
    a client that waits for its answer cannot send the next wrong request meanwhile.
    Times are measured and not set, as a busy machine needs many times as long.

    Args:
        share: of the time, that refused requests may take.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._slot = 0.0

    async def wait(self, seconds: float) -> None:
        """Sleep until a refusal may leave, `LONGEST_PAUSE` at most.

        Args:
            seconds: that the request took, in which nothing else was computed.
        """
        now = time.monotonic()
        slot = max(self._slot, now - CREDIT) + seconds / self._share
        self._slot = min(slot, now + LONGEST_PAUSE)
        if self._slot > now:
            await asyncio.sleep(self._slot - now)


class Limits:
    """Reads the body of a request within its bounds, then hands the request on.

    Args:
        app: gets requests whose body is complete.
        bounds: settings.
        token: that requests carry as `Authorization: Bearer`; None: they need none.
    """

    def __init__(self, app: ASGIApp, bounds: ServeConfig, token: str | None) -> None:
        self.app, self.bounds = app, bounds
        self._authorization = None if token is None else f"Bearer {token}".encode()
        self._pace = Pace(bounds.refusal_share)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens to it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self._check_token(scope)
            body = await self._body(scope, receive)
        except RefusalError as refusal:
            await self._hold(scope, CHEAPEST)
            await refuse(send, refusal.status, refusal.detail)
        except asyncio.CancelledError:  # the server ends, and this body never came
            await refuse(send, 503, "the server is being stopped; ask another one")
        else:
            if body is not None:
                send = self._paced(scope, send)
                await _unless_gone(self.app(scope, _replay(body), send), receive)

    async def _hold(self, scope: Scope, seconds: float) -> None:
        scope.setdefault("state", {})[HELD] = True
        await self._pace.wait(seconds)

    def _check_token(self, scope: Scope) -> None:
        if self._authorization is None or scope["path"] in OPEN_PATHS:
            return
        header = dict(scope["headers"]).get(b"authorization", b"")
        # Not `==`, whose time tells how many of the first letters were right.
        if not hmac.compare_digest(header, self._authorization):
            raise RefusalError(401, "this server needs Authorization: Bearer TOKEN")

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Read the whole body; None if the client has gone.

        Raises:
            RefusalError: it is too large or too slow.
        """
        most = self.bounds.body_bytes
        too_large = RefusalError(413, f"the body has more than {most} bytes")
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if int(length) > READ_AND_DROPPED * most:
            raise too_large
        body, size = bytearray(), 0
        try:
            async with asyncio.timeout(self.bounds.receive_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    size += len(message.get("body", b""))
                    if size <= most:
                        body += message.get("body", b"")
                    if size > READ_AND_DROPPED * most or not message.get("more_body"):
                        break
        except TimeoutError:
            seconds = self.bounds.receive_seconds
            raise RefusalError(
                408, f"the body did not arrive within {seconds:g} s"
            ) from None
        if size > most:
            raise too_large
        return bytes(body)

    def _paced(self, scope: Scope, send: Send) -> Send:
        started = time.monotonic()

        async def paced(message: Message) -> None:
            if 400 <= message.get("status", 0) < 500:
                seconds = time.monotonic() - started
                # A user that waited for its turn cost next to nothing meanwhile.
                is_overload = message["status"] == 429
                await self._hold(scope, CHEAPEST if is_overload else seconds)
            await send(message)

        return paced


async def refuse(send: Send, status: int, detail: str) -> None:
    """Answer with an error and close the connection, as its body may go on."""
    body = json.dumps({"detail": detail}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _unless_gone(answer: Awaitable[None], receive: Receive) -> None:
    """Answer a request, and give it up when its client goes.

    The server tells an application that the client has gone, but lets it go on: users
    whom nobody waits for any more would be computed before those who do wait.

    Args:
        answer: the work.
        receive: gives its next message only when the client has gone.
    """
    work = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(receive())
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
    finally:
        work.cancel()
        gone.cancel()


def _replay(body: bytes) -> Receive:
    """Return a `receive` that gives a body that was read already, then nothing."""
    messages: list[Message] = [
        {"type": "http.request", "body": body, "more_body": False}
    ]

    async def replayed() -> Message:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop()

    return replayed
