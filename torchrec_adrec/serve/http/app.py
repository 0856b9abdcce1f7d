"""The routes: POST /recommend and /batch, GET /health, /ready, /metrics and /docs."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.security import HTTPBearer
from starlette.types import ASGIApp

from torchrec_adrec import __version__
from torchrec_adrec.config.serve import ServeConfig
from torchrec_adrec.errors import AdRecError, DataError
from torchrec_adrec.serve.http.access_log import STAGES, AccessLog
from torchrec_adrec.serve.http.docs_page import docs_page
from torchrec_adrec.serve.http.hot_swap import HotSwap, Served
from torchrec_adrec.serve.http.limits import Limits
from torchrec_adrec.serve.http.metrics import Metrics
from torchrec_adrec.serve.http.queue import OverloadError, Queue
from torchrec_adrec.serve.http.schema_model import (
    LONGEST_DETAIL,
    Bodies,
    Fault,
    Version,
)

SHOW_SECONDS = 1.0  # by which the gauges of a worker may be out of date
RETRY = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": Fault, "description": "The body is no text, or nested too deeply."},
    401: {"model": Fault, "description": "The bearer token is missing or wrong."},
    408: {"model": Fault, "description": "The body did not arrive in time."},
    413: {"model": Fault, "description": "The body is too large."},
    422: {"model": Fault, "description": "A value is not what its column expects."},
    429: {"model": Fault, "description": "The queue is full.", "headers": RETRY},
    500: {"model": Fault, "description": "A number is not finite, or a bug."},
}
DENIED: dict[int | str, dict[str, Any]] = {401: ERRORS[401]}


class App:
    """The application around one served run.

    Args:
        load: opens the version of the run that is published now.
        state: names the published version.
        bounds: settings.
        token: that requests must carry; None: they need none.

    Attributes:
        asgi: what a server runs.
        swap: the version that is served.
    """

    def __init__(
        self,
        load: Callable[[], Served],
        state: Callable[[], str],
        bounds: ServeConfig,
        token: str | None = None,
    ) -> None:
        self.bounds, self.token, self.metrics = bounds, token, Metrics()
        self.swap = HotSwap(load, state, self._is_like)
        self.bodies = self._bodies(self.swap.served)
        self.queue: Queue[dict[str, Any]] = Queue(
            bounds.queue_length, bounds.deadline_seconds
        )
        routes = self._routes()
        paths = frozenset(route.path for route in routes.routes)  # type: ignore[attr-defined]
        limited = Limits(routes, bounds, token)
        self.asgi: ASGIApp = AccessLog(limited, paths, self.metrics)

    def _bodies(self, served: Served) -> Bodies:
        recommender = served.recommender
        candidates = min(
            recommender.settings.candidates, recommender.retriever.index.count
        )
        return Bodies(served.schema, self.bounds, candidates, served.examples)

    def _is_like(self, served: Served) -> bool:
        """Whether a new version takes and gives the columns that OpenAPI names."""
        return self._columns(served) == self._columns(self.swap.served)

    def _columns(self, served: Served) -> list[Any]:
        bodies = Bodies(served.schema, self.bounds, candidates=1, examples=[])
        return [body.model_json_schema() for body in (bodies.recommend, bodies.answer)]

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        seconds = self.bounds.watch_seconds
        tasks = [asyncio.create_task(self._keep_showing())]
        if seconds:
            tasks.append(asyncio.create_task(self.swap.watch(seconds)))
        yield
        for task in tasks:
            task.cancel()
        self.queue.close()

    async def _keep_showing(self) -> None:
        """Keep the gauges true; GET /metrics may be answered by another worker."""
        while True:
            self._show()
            await asyncio.sleep(SHOW_SECONDS)

    def _show(self) -> None:
        self.metrics.waiting.set(self.queue.waiting)
        self.metrics.swaps.set(self.swap.swaps)
        self.metrics.is_newest.set(self.swap.refusal is None)
        self.metrics.show_version(self.swap.served.version)

    def _routes(self) -> FastAPI:
        app = FastAPI(
            title="torchrec_adrec",
            version=__version__,
            # The pages of FastAPI load their scripts from a foreign host.
            docs_url=None,
            redoc_url=None,
            # Their address would repeat the Host that the client names.
            redirect_slashes=False,
            lifespan=self._lifespan,
            # `Limits` checks the token, before the body is read; this only names it.
            dependencies=[Depends(HTTPBearer(auto_error=False))] if self.token else [],
        )
        add_error_handlers(app, self.bodies)
        self._add_recommending(app)
        self._add_watching(app)
        return app

    def _add_recommending(self, app: FastAPI) -> None:
        bodies: Any = self.bodies

        @app.post("/recommend", response_model=bodies.answer, responses=ERRORS)
        async def recommend(request: Request, body: bodies.recommend) -> Response:
            """Rank ads for one user."""
            return await self._answer(request, [body.user], body.top)

        @app.post("/batch", response_model=bodies.answers, responses=ERRORS)
        async def batch(request: Request, body: bodies.batch) -> Response:
            """Rank ads for several users, each as `/recommend` would."""
            return await self._answer(request, body.users, body.top, is_batch=True)

    async def _answer(
        self,
        request: Request,
        users: list[Any],
        top: int | None,
        is_batch: bool = False,
    ) -> Response:
        # One version for the whole request, also if another one is swapped in now.
        served = self.swap.served
        jobs = [partial(served.answer, user, top) for user in users]
        answers = await self.queue.compute(jobs)
        request.scope["state"][STAGES] = [a["milliseconds"] for a in answers]
        version = served.version.model_dump()
        if is_batch:
            return JSONResponse({"answers": answers, "version": version})
        return JSONResponse({**answers[0], "version": version})

    def _add_watching(self, app: FastAPI) -> None:
        @app.get("/health")
        async def health() -> dict[str, str]:
            """Tell that the process answers."""
            return {"status": "ok"}

        @app.get("/ready")
        async def ready() -> dict[str, Version | str | None]:
            """Tell what is served, and why a newer version is not."""
            return {"version": self.swap.served.version, "refused": self.swap.refusal}

        @app.get("/metrics", response_class=Response, responses=DENIED)
        async def metrics() -> Response:
            """Give the numbers that Prometheus reads."""
            self._show()
            return self.metrics.answer()

        page = HTMLResponse(docs_page(app.openapi()))

        @app.get("/docs", include_in_schema=False)
        async def docs() -> HTMLResponse:
            return page


def add_error_handlers(app: FastAPI, bodies: Bodies) -> None:
    """Give every error one form, which repeats nothing of the request."""

    def fault(status: int, detail: str, headers: Any = None) -> Response:
        return JSONResponse({"detail": detail}, status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return fault(422, bodies.explain(error.errors()))

    @app.exception_handler(OverloadError)
    async def overload(_: Request, error: OverloadError) -> Response:
        return fault(429, str(error), {"Retry-After": str(error.retry_after)})

    @app.exception_handler(DataError)
    async def unusable(_: Request, error: DataError) -> Response:
        # The types of the body let through what fits no transform, or a `top` that is
        # too large for a new index; the error's own text would repeat the value.
        return fault(422, "a value of the user, or top, is out of range")

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:
        # It is raised again after the answer, so that the log has the traceback.
        return fault(500, "an unexpected error; the log of the server has it")

    @app.exception_handler(AdRecError)
    async def failed(_: Request, error: AdRecError) -> Response:
        return fault(500, str(error)[:LONGEST_DETAIL])
