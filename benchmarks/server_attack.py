"""What wrong requests on 200 connections do to an innocent client.

    python benchmarks/server_attack.py --run runs/demo

The innocent client asks one user after the other, in turns without and with an attack.
The attackers share the machine's processor with the server, so part of what they cost
is their own work. Then 100,000 malformed requests: none may end in a 5xx, nor in a
traceback of the server.
"""

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from server_process import Connection, percentiles, serving
from timing import keep_result

NAN = b'{"user": {"I1": NaN, "I2": Infinity, "age": NaN}}'
HALF = b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{"


def keys(count: int) -> bytes:
    """Return a body with so many unknown columns."""
    return json.dumps({"user": {f"key{i}": i for i in range(count)}}).encode()


BODIES: dict[str, Callable[[], bytes]] = {
    "1,000 keys": lambda: keys(1_000),
    "4,000 keys": lambda: keys(4_000),
    "600,000 keys": lambda: keys(600_000),
    "10 MB text": lambda: json.dumps({"user": {"C1": "x" * 10**7}}).encode(),
    "deep JSON": lambda: b'{"user": ' + b"[" * 60_000,
    "NaN": lambda: NAN,
    "half a body": lambda: HALF,
}
MALFORMED = (
    *(b"", b"nope", b"[]", b"{}", b'{"user": 3}', b'{"user": {"zz": 1}}', NAN),
    *(b'{"user": {}, "top": -1}', b"\xff\xfe", b"[" * 3_000, keys(100)),
    *(b'{"user": {}, "x": 1}', b'{"user": {}', b'{"user": {"C1": {"a": []}}}'),
)


async def attack(port: int, body: bytes, connections: int, seconds: float) -> int:
    """Send one body from many connections, again as soon as it is answered."""
    ends, count = time.monotonic() + seconds, 0

    async def attacker() -> None:
        nonlocal count
        connection = Connection(port)
        while time.monotonic() < ends:
            with contextlib.suppress(OSError):
                if body is HALF:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.write(HALF)
                    await asyncio.wait_for(reader.read(), ends - time.monotonic())
                else:
                    await connection.post(body)
            count += 1

    tasks = [asyncio.create_task(attacker()) for _ in range(connections)]
    await asyncio.wait(tasks, timeout=seconds)
    for task in tasks:
        task.cancel()
    return count


async def ask(port: int, users: list[bytes], seconds: float) -> list[float]:
    """Ask one user after the other; returns the seconds of each answer."""
    connection, times = Connection(port), []
    ends, number = time.monotonic() + seconds, 0
    while time.monotonic() < ends:
        started = time.perf_counter()
        status, _ = await connection.post(users[number % len(users)])
        times.append(time.perf_counter() - started)
        assert status == 200, status
        number += 1
    return times


def measure(
    port: int, name: str, users: list[bytes], args: argparse.Namespace
) -> dict[str, Any]:
    """Take turns without and with one attack."""
    quiet: list[float] = []
    attacked: list[float] = []
    ratios = []
    for _ in range(args.rounds):
        calm = asyncio.run(ask(port, users, args.seconds))
        command = [sys.executable, __file__, "--attack", name, "--port", str(port)]
        options = ["--seconds", str(args.seconds + 2)]
        attacker = subprocess.Popen(
            [*command, *options, "--connections", str(args.connections)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert attacker.stdout is not None
        attacker.stdout.readline()  # it has made its body
        time.sleep(0.5)
        under = asyncio.run(ask(port, users, args.seconds))
        sent = attacker.communicate()[0].split()
        ratios.append(percentiles(under)["p99"] / percentiles(calm)["p99"])
        quiet, attacked = quiet + calm, attacked + under
    return {
        "quiet": percentiles(quiet),
        "attacked": percentiles(attacked),
        "p99_ratio": round(median(ratios), 2),
        "requests": len(attacked),
        "wrong_requests": int(sent[-1]),
    }


async def flood(port: int, count: int) -> dict[str, int]:
    """Send so many malformed requests; returns how often each status came."""
    statuses: Counter[str] = Counter()
    numbers = iter(range(count))

    async def sender() -> None:
        connection = Connection(port)
        for number in numbers:
            path = "/batch" if number % 5 == 0 else "/recommend"
            body = MALFORMED[number % len(MALFORMED)]
            try:
                status, _ = await connection.post(body, path)
                statuses[str(status)] += 1
            except OSError:
                statuses["closed"] += 1

    await asyncio.gather(*(sender() for _ in range(50)))
    return dict(statuses)


def main() -> None:
    """Measure and keep."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--run", type=Path, help="a finished run")
    arguments.add_argument("--rounds", type=int, default=3, help="0: no attacks")
    arguments.add_argument("--seconds", type=float, default=3, help="of one turn")
    arguments.add_argument("--connections", type=int, default=200)
    arguments.add_argument("--malformed", type=int, default=100_000)
    arguments.add_argument("--attack", choices=BODIES, help="only this, on --port")
    arguments.add_argument("--port", type=int)
    args = arguments.parse_args()
    if args.attack:
        body = HALF if args.attack == "half a body" else BODIES[args.attack]()
        print("begins", flush=True)
        print(asyncio.run(attack(args.port, body, args.connections, args.seconds)))
        return
    examples = json.loads((args.run / "data/example_users.json").read_text())
    users = [json.dumps({"user": user}).encode() for user in examples]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        attacks = {}
        with serving(args.run, log) as server:
            asyncio.run(ask(server.port, users, 2))
            for name in BODIES if args.rounds else ():
                attacks[name] = measure(server.port, name, users, args)
                print(name, attacks[name], flush=True)
        # Without the pace of refusals, which would only make this take longer.
        with serving(args.run, log, "serve.refusal_share=1") as server:
            statuses = asyncio.run(flood(server.port, args.malformed))
            asyncio.run(ask(server.port, users, 1))
        tracebacks = log.read_text().count("Traceback")
    keep_result(
        "server_attack",
        {
            "connections": args.connections,
            "attacks": attacks,
            "malformed": statuses,
            "tracebacks": tracebacks,
        },
    )


if __name__ == "__main__":
    main()
