"""Asks a server of this process over HTTP, as any client would."""

import json
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import uvicorn

from torchrec_adrec.config.run import load_config
from torchrec_adrec.data.request import RawUser
from torchrec_adrec.errors import ManifestError
from torchrec_adrec.runs.stages import CONFIG
from torchrec_adrec.schema import AD_ID
from torchrec_adrec.serve.http import access_log
from torchrec_adrec.serve.http.app import App
from torchrec_adrec.serve.http.hot_swap import Served
from torchrec_adrec.serve.http.server import listen, server_config
from torchrec_adrec.serve.published import published_state

HOST = "127.0.0.1"


def answers_of(run: Path, users: Sequence[RawUser]) -> list[list[dict[str, Any]]]:
    """Ask for the best ads of some users, as the run is set to serve them.

    Args:
        run: folder of the run; a certificate in it need not hold.
        users: raw columns.

    Returns:
        The ads of each user, best first: `ad_id`, predictions, `score`.

    Raises:
        ManifestError: the server refused one of them.
        AdRecError: the run cannot be served.
    """
    with _serving(run) as port:
        connection = HTTPConnection(HOST, port)
        lists = [_ask(connection, row, user) for row, user in enumerate(users)]
        connection.close()
    return lists


@contextmanager
def _serving(run: Path) -> Iterator[int]:
    """Serve the run on a free port of this machine; yield the port."""
    saved = run / CONFIG
    bounds = load_config(saved if saved.exists() else None, []).serve
    # One client that waits: nothing of a server's load is judged here.
    bounds = bounds.model_copy(update={"watch_seconds": 0, "deadline_seconds": 600})
    load = partial(Served.load, run, is_certified=False)
    app = App(load, partial(published_state, run), bounds)
    listener = listen(HOST, 0)
    server = uvicorn.Server(server_config(bounds, app=app.asgi))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    level = access_log.log.level
    access_log.log.setLevel(logging.WARNING)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        access_log.log.setLevel(level)
        listener.close()


def _ask(connection: HTTPConnection, row: int, user: RawUser) -> list[dict[str, Any]]:
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/recommend", json.dumps({"user": user}), headers)
    answer = connection.getresponse()
    content = json.loads(answer.read())
    if answer.status != 200:
        raise ManifestError(
            f"the server answers {answer.status} to the held-out user {row}:"
            f" {content.get('detail')}"
        )
    return [{**ad, AD_ID: int(ad[AD_ID])} for ad in content["ads"]]
