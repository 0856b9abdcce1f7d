"""A server in a process of its own, and the plainest client that can talk to it."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

# Seconds after which a connection is not used again. The server closes it after five,
# and a request sent just then would be lost, as every client of HTTP has to know.
LONGEST_IDLE = 3
JSON = "Content-Type: application/json\r\n"


class Connection:
    """One connection, kept open between requests.

    Args:
        port: of the server on this machine.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.writer: asyncio.StreamWriter | None = None
        self.used = 0.0

    async def post(self, body: bytes, path: str = "/recommend") -> tuple[int, bytes]:
        """Send a body; returns status and answer. Raises OSError if there is none."""
        if time.monotonic() - self.used > LONGEST_IDLE:
            await self.close()
        self.used = time.monotonic()
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection(
                "127.0.0.1", self.port
            )
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\n{JSON}Content-Length: {len(body)}"
        try:
            self.writer.write(head.encode() + b"\r\n\r\n")
            self.writer.write(body)
            # Not drained: a body that is too large is answered before it is sent.
            return await self._answer()
        except (OSError, EOFError) as error:
            await self.close()
            raise ConnectionError(str(error)) from None

    async def close(self) -> None:
        """Close it; the next request opens another one."""
        if self.writer is not None:
            self.writer.close()
        self.writer = None

    async def _answer(self) -> tuple[int, bytes]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        body = await self.reader.readexactly(length)
        self.used = time.monotonic()
        if "connection: close" in head:
            await self.close()
        return int(head.split()[1]), body


class ServerProcess:
    """`adrec serve` on a free port.

    Args:
        run: folder of a finished run.
        log: file of its errors.
        settings: of `serve`, as `serve.queue_length=9`.
    """

    def __init__(self, run: Path, log: Path, settings: tuple[str, ...] = ()) -> None:
        self.run, self.log, self.settings = run, log, settings
        self.port = 0
        self.start()

    def start(self) -> float:
        """Start it and wait until it is ready; returns the seconds that took."""
        started = time.perf_counter()
        command = [sys.executable, "-m", "torchrec_adrec", "serve"]
        options = ["--out", str(self.run), "--port", str(self.port)]
        with (
            self.log.open("a") as errors,
            self.log.with_suffix(".out").open("a") as out,
        ):
            self.process = subprocess.Popen(
                [*command, *options, *self.settings], stderr=errors, stdout=out
            )
        position = len(self.errors())
        while " on http" not in self.errors()[position:]:
            if self.process.poll() is not None:
                raise SystemExit(self.errors())
            time.sleep(0.05)
        self.port = int(self.errors().split()[-1].rpartition(":")[2])
        return time.perf_counter() - started

    def errors(self) -> str:
        """Return what it has written to its standard error."""
        return self.log.read_text()

    def megabytes(self) -> float:
        """Return its resident memory."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def serving(run: Path, log: Path, *settings: str) -> Iterator[ServerProcess]:
    """Run a server for the length of a block."""
    server = ServerProcess(run, log, settings)
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait()


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Return p50 and p99 in milliseconds."""
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
    return {"p50": round(float(p50), 2), "p99": round(float(p99), 2)}
