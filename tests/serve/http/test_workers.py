"""Several processes answer on one address, and are counted and stopped as one."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fake_run import FakeRun, make_app
from starlette.types import ASGIApp

from torchrec_adrec.config.serve import ServeConfig
from torchrec_adrec.serve.http.server import AppFactory, serve

SHOWN = 'adrec_version_info{index="1",ranker="1",towers="1"}'
PATIENCE = 240  # seconds: a busy machine needs tens to start a process


class FakeFactory(AppFactory):
    """Makes applications without models."""

    def build(self) -> ASGIApp:
        return make_app(FakeRun()).asgi


class EndlessFactory(AppFactory):
    """Loads models for longer than anybody waits."""

    def build(self) -> ASGIApp:
        print("loading", file=sys.stderr, flush=True)
        time.sleep(10 * PATIENCE)
        return make_app(FakeRun()).asgi


def serve_by(factory: type[AppFactory]) -> None:
    bounds = ServeConfig(workers=2, grace_seconds=1)
    serve(factory(Path(), None, None, bounds, None), "127.0.0.1", 0)


@contextmanager
def serving(factory: type[AppFactory]) -> Iterator[subprocess.Popen[str]]:
    """Start two workers; whatever becomes of the test, none of them stays."""
    call = f"test_workers.serve_by(test_workers.{factory.__name__})"
    process = subprocess.Popen(
        [sys.executable, "-c", f"import test_workers; {call}"],
        cwd=Path(__file__).parent,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        pids = workers(process.pid) if process.poll() is None else set()
        process.kill()
        process.wait()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def line_with(process: subprocess.Popen[str], words: str) -> str:
    assert process.stderr is not None
    return next(line for line in iter(process.stderr.readline, "") if words in line)


def workers(parent: int) -> set[int]:
    """Find the processes that a parent spawned, without its tracker of resources."""
    pids = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    commands = {int(pid): Path(f"/proc/{pid}/cmdline").read_text() for pid in pids}
    return {pid for pid, command in commands.items() if "spawn_main" in command}


def wait_until_shown(address: str, count: int) -> None:
    """Ask for the metrics until so many workers count as serving."""
    ends = time.monotonic() + PATIENCE
    text = ""
    while time.monotonic() < ends:
        with (
            suppress(OSError),
            urllib.request.urlopen(f"{address}/metrics", timeout=PATIENCE) as answer,
        ):
            text = answer.read().decode()
            if f"{SHOWN} {count}.0" in text:
                assert "adrec_newest_version_served 1.0" in text
                return
        time.sleep(0.05)
    raise AssertionError(f"{count} workers were never shown, at last:\n{text}")


def test_a_worker_that_is_killed_is_replaced_and_all_end_together() -> None:
    with serving(FakeFactory) as process:
        address = line_with(process, "workers on").split()[-1]
        wait_until_shown(address, 2)
        first, second = workers(process.pid)
        os.kill(first, signal.SIGKILL)
        wait_until_shown(address, 1)
        wait_until_shown(address, 2)
        pids = workers(process.pid)
        assert second in pids and first not in pids and len(pids) == 2
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_workers_that_load_are_not_waited_for() -> None:
    """SIGTERM while both load: they cannot hear it before they have loaded."""
    with serving(EndlessFactory) as process:
        line_with(process, "loading")
        line_with(process, "loading")
        pids = workers(process.pid)
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert len(pids) == 2
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
