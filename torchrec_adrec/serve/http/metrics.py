"""What Prometheus reads from GET /metrics."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.responses import Response

from torchrec_adrec.serve.http.schema_model import Version

# A second number for every counter, which nobody reads.
disable_created_metrics()  # type: ignore[no-untyped-call]
SHARED = "PROMETHEUS_MULTIPROC_DIR"  # where the workers' numbers meet; by the library
SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05),
    *(0.1, 0.2, 0.3, 0.5, 1, 2.5, 5, 10),
)


class Metrics:
    """Counts of one application, or of all workers where there are several."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "adrec_requests",
            "Answers by path and status.",
            ["path", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "adrec_request_seconds",
            "From the head of a request to the end of its answer.",
            ["path"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "adrec_stage_seconds",
            "Stages of a user: queue, encode, retrieve, rank.",
            ["stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.waiting = self._gauge(
            "adrec_queue_users", "Users that wait or are computed."
        )
        self.swaps = self._gauge("adrec_swaps", "Versions that were swapped in.")
        self.is_newest = self._gauge(
            "adrec_newest_version_served",
            "0: the newest version was refused, by one worker or more.",
            mode="livemin",
        )
        self._shown: Gauge | None = None
        self.version = self._gauge(
            "adrec_version_info", "What is served.", ["towers", "ranker", "index"]
        )

    def _gauge(
        self,
        name: str,
        text: str,
        labels: Sequence[str] = (),
        mode: Literal["livesum", "livemin"] = "livesum",
    ) -> Gauge:
        # Of several workers that live the sum is shown, as of counters.
        return Gauge(name, text, labels, registry=self.registry, multiprocess_mode=mode)

    def show_version(self, version: Version) -> None:
        """Show one version as served, and the one before it no more."""
        if self._shown is not None:
            self._shown.set(0)
        self._shown = self.version.labels(**version.model_dump())
        self._shown.set(1)

    def answer(self) -> Response:
        """Return the answer to GET /metrics."""
        registry = self.registry
        if SHARED in os.environ:
            _forget_dead_workers(Path(os.environ[SHARED]))
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def _forget_dead_workers(folder: Path) -> None:
    """Drop what workers that were killed showed last; their counts stay."""
    for path in folder.glob("gauge_live*_*.db"):
        pid = int(path.stem.rpartition("_")[2])
        if not Path(f"/proc/{pid}").exists():
            path.unlink(missing_ok=True)  # by another worker at the same time
