"""The server at 80% of what it can do, above it, killed, and with new versions.

    python benchmarks/server_load.py --run runs/demo --minutes 10

Requests come at a fixed pace whatever the server does, as those of many clients would;
each is timed from when it should have been sent. The client shares the machine with the
server. A new version is a new build of the index in a copy of the run.
"""

import argparse
import asyncio
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

from server_process import Connection, ServerProcess, percentiles, serving
from timing import keep_result

from torchrec_adrec.runs.versions import CURRENT, VERSIONS

SLICES = 10  # of the long run, whose first and last are compared
CLIENTS = 4  # that ask without a pause, to see how much the server can do
LONGEST_SWAP = 300  # seconds in which a new version must be served


@dataclass
class Outcome:
    """What came of a stretch of requests.

    Attributes:
        seconds: of answers with 200.
        statuses: how often each came; `lost` are those without an answer.
        versions: of the index, in answers.
    """

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    versions: set[str] = field(default_factory=set)

    def figures(self) -> dict[str, Any]:
        """Return them for the table."""
        times = percentiles(self.seconds) if self.seconds else {}
        return {"statuses": dict(self.statuses), **times}


class Load:
    """Sends users of the data to one server.

    Args:
        port: of the server.
        users: bodies, taken in turns.
    """

    def __init__(self, port: int, users: list[bytes]) -> None:
        self.users, self.numbers = users, count()
        self.port, self.idle = port, list[Connection]()

    async def one(self, outcome: Outcome, due: float) -> None:
        """Send one request that was due at a time of `perf_counter`."""
        connection = self.idle.pop() if self.idle else Connection(self.port)
        body = self.users[next(self.numbers) % len(self.users)]
        try:
            status, answer = await connection.post(body)
        except OSError:
            outcome.statuses["lost"] += 1
            return
        outcome.statuses[str(status)] += 1
        if status == 200:
            outcome.seconds.append(time.perf_counter() - due)
            outcome.versions.add(json.loads(answer)["version"]["index"])
        self.idle.append(connection)

    async def saturate(self, seconds: float) -> float:
        """Return the requests a second of clients that never pause."""
        outcome, ends = Outcome(), time.perf_counter() + seconds

        async def client() -> None:
            while time.perf_counter() < ends:
                await self.one(outcome, time.perf_counter())

        await asyncio.gather(*(client() for _ in range(CLIENTS)))
        # A busy machine may be too slow even for these few.
        assert set(outcome.statuses) <= {"200", "429"}, outcome.statuses
        return len(outcome.seconds) / seconds

    async def paced(self, rate: float, seconds: float) -> Outcome:
        """Send `rate` requests a second, however long their answers take."""
        outcome, begin = Outcome(), time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(int(rate * seconds)):
                due = begin + number / rate
                await asyncio.sleep(max(0, due - time.perf_counter()))
                group.create_task(self.one(outcome, due))
        return outcome


def publish(run: Path) -> str:
    """Make a new version: a build of the index with another name."""
    index, build_id = run / "index", uuid4().hex[:16]
    current = (index / CURRENT).read_text().strip()
    name = f"{int(current[:6]) + 1:06}-{build_id}"
    version = index / VERSIONS / name
    shutil.copytree(index / VERSIONS / current, version, copy_function=os.link)
    _replace(version / "stage.json", {"build_id": build_id})
    partial = index / "CURRENT.partial"
    partial.write_text(name + "\n")
    partial.rename(index / CURRENT)
    return build_id


def _replace(path: Path, changes: dict[str, Any]) -> None:
    # By renaming: the file itself is linked to that of another version.
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(json.loads(path.read_text()) | changes))
    partial.rename(path)


async def steady(
    server: ServerProcess, load: Load, rate: float, seconds: float
) -> dict[str, Any]:
    """Measure slices of a long run at a fixed rate."""
    slices = []
    for _ in range(SLICES):
        outcome = await load.paced(rate, seconds / SLICES)
        slices.append(outcome.figures() | {"megabytes": round(server.megabytes(), 1)})
    errors = sum(
        number
        for part in slices
        for status, number in part["statuses"].items()
        if status != "200"
    )
    return {"seconds": seconds, "errors": errors, "slices": slices}


async def overload(load: Load, rate: float, seconds: float) -> dict[str, Any]:
    """Send three times what the server can do, then a little again."""
    over = await load.paced(3 * rate, seconds)
    await asyncio.sleep(2)
    after = await load.paced(0.5 * rate, seconds)
    return {"three_times": over.figures(), "after": after.figures()}


async def swaps(load: Load, run: Path, rate: float, count: int) -> dict[str, Any]:
    """Publish new versions under load, each until it is served."""
    outcomes, waits = [], []
    for _ in range(count):
        name, started = await asyncio.to_thread(publish, run), time.perf_counter()
        outcomes.append(Outcome())
        while name not in outcomes[-1].versions:
            outcomes.append(await load.paced(0.5 * rate, 2))
            assert time.perf_counter() - started < LONGEST_SWAP, "it was not swapped in"
        waits.append(round(time.perf_counter() - started, 1))
    statuses = sum((outcome.statuses for outcome in outcomes), Counter[str]())
    times = percentiles([t for outcome in outcomes for t in outcome.seconds])
    return {
        "statuses": dict(statuses),
        **times,
        "seconds_to_swap": waits,
    }


def killed(server: ServerProcess) -> dict[str, float]:
    """Kill the server and start it again at the same address."""
    server.process.kill()
    server.process.wait()
    return {"seconds_to_ready": round(server.start(), 1)}


def main() -> None:
    """Measure and keep."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--run", type=Path, required=True, help="a finished run")
    arguments.add_argument("--minutes", type=float, default=10, help="at 80%%")
    arguments.add_argument("--seconds", type=float, default=10, help="of other parts")
    arguments.add_argument("--swaps", type=int, default=3, help="new versions")
    args = arguments.parse_args()
    users = json.loads((args.run / "data/example_users.json").read_text())
    bodies = [json.dumps({"user": user}).encode() for user in users]
    with tempfile.TemporaryDirectory(dir=args.run.parent) as folder:
        run, log = Path(folder) / "run", Path(folder) / "server.log"
        shutil.copytree(args.run, run, copy_function=os.link)
        with serving(run, log) as server:
            load = Load(server.port, bodies)

            async def measure() -> dict[str, Any]:
                await load.saturate(2)
                rate = await load.saturate(args.seconds)
                parts: dict[str, Callable[[], Awaitable[dict[str, Any]]]] = {
                    "at_80_percent": lambda: steady(
                        server, load, 0.8 * rate, args.minutes * 60
                    ),
                    "overload": lambda: overload(load, rate, args.seconds),
                    "swaps": lambda: swaps(load, run, rate, args.swaps),
                }
                figures = {name: await part() for name, part in parts.items()}
                return {"saturation_qps": round(rate, 1), **figures}

            figures = asyncio.run(measure())
            figures["killed"] = killed(server)
            again = Load(server.port, bodies)
            figures["after_the_kill"] = asyncio.run(again.paced(5, 2)).figures()
        figures["tracebacks"] = log.read_text().count("Traceback")
    keep_result("server_load", figures)


if __name__ == "__main__":
    main()
