"""The process, or processes, that listen."""

import contextlib
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from functools import partial
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from torchrec_adrec.config.serve import ServeConfig
from torchrec_adrec.errors import AdRecError, ConfigError
from torchrec_adrec.runtime.logs import setup_logging
from torchrec_adrec.serve.http.access_log import setup_access_log
from torchrec_adrec.serve.http.app import App
from torchrec_adrec.serve.http.hot_swap import Loader
from torchrec_adrec.serve.http.metrics import SHARED
from torchrec_adrec.serve.http.protocol import ServerConfig
from torchrec_adrec.serve.published import published_state

HEAD_BYTES = 16_384  # of a request line and its headers
WORKER_SECONDS = 120  # in which a worker that replaces another must have loaded
END_SECONDS = 2  # that a worker may need to end after the grace of its requests
# A thread that computes holds Python's lock for this long while the loop waits; with
# the default of 5 ms a request that is refused at once could still take 10.
SWITCH_SECONDS = 0.001


@dataclass(frozen=True)
class AppFactory:
    """Makes the application of one process; it is sent to every worker.

    Attributes:
        run: folder of the run.
        rank_by: formula in the place of `recommend.rank_by`.
        engine: name in the place of `recommend.engine`.
        bounds: settings.
        token: that requests must carry; None: they need none.
    """

    run: Path
    rank_by: str | None
    engine: str | None
    bounds: ServeConfig
    token: str | None

    def build(self) -> ASGIApp:
        """Load the models and make the application.

        Raises:
            AdRecError: as of `Served.load`.
        """
        sys.setswitchinterval(SWITCH_SECONDS)
        setup_access_log()
        load = Loader(self.run, self.rank_by, self.engine)
        return App(
            load, partial(published_state, self.run), self.bounds, self.token
        ).asgi

    def __call__(self) -> ASGIApp:
        """Make the application in a worker, whose errors are lines too."""
        setup_logging()
        threading.Thread(target=_stop_with_parent, daemon=True).start()
        try:
            return self.build()
        except (AdRecError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(STARTUP_FAILURE)  # tells the parent that another try is no use


def _stop_with_parent() -> None:
    """Stop a worker whose parent was killed, as it would hold the address for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def listen(host: str, port: int) -> socket.socket:
    """Take the address, before the models are loaded.

    Raises:
        ConfigError: it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    listener.set_inheritable(True)
    return listener


def server_config(bounds: ServeConfig, **arguments: Any) -> ServerConfig:
    """Return the configuration of a server within its bounds.

    Args:
        bounds: settings.
        arguments: those of uvicorn, its application among them.
    """
    return ServerConfig(
        bounds,
        workers=bounds.workers,
        lifespan="on",
        ws="none",
        log_config=None,
        log_level="error",  # every wrong request would be a warning
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_graceful_shutdown=bounds.grace_seconds,
        timeout_worker_healthcheck=WORKER_SECONDS,
        **arguments,
    )


def serve(factory: AppFactory, host: str, port: int) -> None:
    """Answer requests until a signal comes.

    Args:
        factory: makes the application.
        host, port: the address to listen on; port 0: a free one.

    Raises:
        AdRecError: the run cannot be served, or the address cannot be had.
    """
    listener = listen(host, port)
    bounds = factory.bounds
    address = f"http://{host}:{listener.getsockname()[1]}"
    # Ctrl-C is how a server is stopped, so it is no error.
    with contextlib.suppress(KeyboardInterrupt):
        if bounds.workers == 1:
            server = uvicorn.Server(server_config(bounds, app=factory.build()))
            listener.listen()  # whoever reads the next line may connect
            print(f"serving {factory.run} on {address}", file=sys.stderr, flush=True)
            server.run(sockets=[listener])
        else:
            print(f"{bounds.workers} workers on {address}", file=sys.stderr, flush=True)
            config = server_config(bounds, app=factory, factory=True)
            _run_workers(Workers(config, [listener]))


def _run_workers(supervisor: "Workers") -> None:
    with tempfile.TemporaryDirectory(prefix="adrec-metrics-") as folder:
        os.environ[SHARED] = folder  # before a worker imports the library
        supervisor.run()
    if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
        raise ConfigError("the workers could not load the run, as they say above")


class Workers(Multiprocess):
    """Starts the workers, replaces those that die, and ends within the grace.

    uvicorn asks a worker whether it lives and waits for the answer, which one that
    loads its models gives late: a signal would not be heard meanwhile. And it waits for
    the end of every worker for as long as that takes.
    """

    def keep_subprocess_alive(self) -> None:
        """Replace dead workers; stop if one could not load."""
        for number, worker in enumerate(self.processes):
            if worker.process.is_alive():
                continue
            worker.join()
            if worker.exitcode == STARTUP_FAILURE:
                self.should_exit.set()
                return
            self.processes[number] = Process(self.config, self.sockets)
            self.processes[number].start()

    def join_all(self) -> None:
        """Wait for the workers, and kill what goes on after the grace."""
        grace = self.config.timeout_graceful_shutdown or 0
        ends = time.monotonic() + grace + END_SECONDS
        for worker in self.processes:
            worker.process.join(max(0, ends - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
