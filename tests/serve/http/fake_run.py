"""A run without models, as the server sees it, and the application around it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import polars as pl
import uvicorn
from fastapi.testclient import TestClient

from torchrec_adrec.config.run import RecommendConfig
from torchrec_adrec.config.serve import ServeConfig
from torchrec_adrec.schema import (
    DenseFeature,
    Label,
    Schema,
    SequenceFeature,
    Side,
    SparseFeature,
)
from torchrec_adrec.serve.http.app import App
from torchrec_adrec.serve.http.hot_swap import Served
from torchrec_adrec.serve.http.protocol import ServerConfig
from torchrec_adrec.serve.http.schema_model import Version
from torchrec_adrec.serve.http.server import listen
from torchrec_adrec.serve.parts import naming_columns
from torchrec_adrec.serve.recommendation import Recommendation


def sparse(name: str, side: Side, kind: Any = "text") -> SparseFeature:
    return SparseFeature(name=name, side=side, source=name, kind=kind)


SCHEMA = Schema(
    dense=(DenseFeature(name="age", side=Side.USER, source="age"),),
    sparse=(
        sparse("city", Side.USER),
        sparse("device", Side.USER, "hex"),
        sparse("brand", Side.AD),
    ),
    sequences=(SequenceFeature(name="seen", side=Side.USER, source="seen_brands"),),
    labels=(Label(name="click"),),
)
USER: dict[str, Any] = {
    "age": 34,
    "city": "Delft",
    "device": "68fd1e64",
    "seen_brands": ["a"],
}
IDS = (2**62 + 1, 2**62 + 2, 2**62 + 3)  # JavaScript would round them


@dataclass
class FakeRun:
    """Answers after `seconds`, or raises `error`; `build` counts its versions.

    The brand of every ad is the build that answered, its score the user's age.

    Attributes:
        users: all that it was asked for.
    """

    build: int = 1
    seconds: float = 0.0
    error: Exception | None = None
    schema: Schema = SCHEMA
    users: list[Any] = field(default_factory=list)
    unreadable: Exception | None = None  # why its folder cannot be looked at

    def load(self) -> Served:
        name = str(self.build)
        recommender: Any = SimpleNamespace(
            recommend=partial(self._recommend, name),
            settings=RecommendConfig(top=2, candidates=3),
            retriever=SimpleNamespace(index=SimpleNamespace(count=3)),
            scorer=SimpleNamespace(schema=self.schema),
        )
        version = Version(towers=name, ranker=name, index=name)
        return Served(recommender, version, name, [USER])

    def state(self) -> str:
        if self.unreadable is not None:
            raise self.unreadable
        return str(self.build)

    def _recommend(self, build: str, user: Any, top: int | None) -> Recommendation:
        self.users.append(user)
        time.sleep(self.seconds)
        with naming_columns(user, self.schema):
            if self.error is not None:
                raise self.error
        ads = pl.DataFrame(
            {
                "ad_id": IDS,
                "click": [0.3, 0.2, 0.1],
                "score": [float(user.get("age") or 0)] * 3,
                "brand": [build, build, None],
            }
        )
        times = {"encode": 1.0, "retrieve": 1.0, "rank": 1.0, "total": 3.0}
        return Recommendation(ads.head(top or 2), 3, times)


def make_app(run: FakeRun, token: str | None = None, **bounds: Any) -> App:
    settings = ServeConfig.model_validate({"watch_seconds": 0, **bounds})
    return App(run.load, run.state, settings, token)


@contextmanager
def client_of(run: FakeRun, **arguments: Any) -> Iterator[TestClient]:
    """Talk to the application in this process, without a socket."""
    with TestClient(make_app(run, **arguments).asgi) as client:
        yield client


@contextmanager
def listening(run: FakeRun, **bounds: Any) -> Iterator[tuple[uvicorn.Server, int]]:
    """Serve on a real socket of this process; yields the server and its port."""
    app = make_app(run, **bounds)
    listener = listen("127.0.0.1", 0)
    config = ServerConfig(app.bounds, app=app.asgi, lifespan="on", log_config=None)
    config.timeout_graceful_shutdown = app.bounds.grace_seconds
    config.timeout_keep_alive = 1
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server, listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
