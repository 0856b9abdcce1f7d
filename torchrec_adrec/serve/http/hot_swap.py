"""The version that is served, and the watch for a newer one.

A new version is loaded beside the old one and proved like the first; then one
assignment swaps them. Requests that are under way keep the version that they began
with, so none is dropped and none mixes two. One that cannot be loaded changes nothing.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch import nn

from torchrec_adrec.errors import AdRecError, ManifestError, PredictionError
from torchrec_adrec.index.manifest import IndexManifest
from torchrec_adrec.runs.stages import (
    INDEX,
    RANKING,
    load_record,
    stage_folder,
)
from torchrec_adrec.runtime.files import read_json
from torchrec_adrec.schema import AD_ID, Schema
from torchrec_adrec.serve.bundle import EXAMPLE_USERS
from torchrec_adrec.serve.http.schema_model import Version
from torchrec_adrec.serve.published import (
    CHANGED,
    is_same_build,
    loaded_state,
    published_state,
)
from torchrec_adrec.serve.recommender import Recommender
from torchrec_adrec.tasks.sharded import final_checkpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """A version that answers requests.

    Attributes:
        recommender: loaded and proved.
        version: of its parts, for every answer.
        published: the state of the folder that it was loaded from.
        examples: raw users of the data.
    """

    recommender: Recommender
    version: Version
    published: str
    examples: list[dict[str, Any]]

    @classmethod
    def load(
        cls,
        run: Path,
        rank_by: str | None = None,
        engine: str | None = None,
        is_certified: bool = True,
    ) -> "Served":
        """Open the run, and refuse here what would fail with the first request.

        Args:
            run: its folder.
            rank_by: as of `Recommender.load`.
            engine, is_certified: likewise.

        Raises:
            AdRecError: as `Recommender.load`.
            PredictionError: a weight, a prediction or a number of the catalog is not
                finite.
            ManifestError: a stage was built again meanwhile.
        """
        published = published_state(run)
        recommender = Recommender.load(
            run, rank_by=rank_by, engine=engine, is_certified=is_certified
        )
        check_finite(recommender)
        version = Version(
            towers=IndexManifest.load(
                stage_folder(run, INDEX.name)
            ).embeddings.checkpoint.weights,
            ranker=final_checkpoint(run / RANKING.name).origin.weights,
            index=_with_changes(load_record(run, INDEX.name).build_id, recommender),
        )
        examples = read_json(run / EXAMPLE_USERS)
        published = loaded_state(run, published, recommender.changes)
        return cls(recommender, version, published, examples[:100])

    def refreshed(self, run: Path) -> Self:
        """Return this version with the newest changes of the ads, and nothing else new.

        Args:
            run: its folder.

        Raises:
            AdRecError: as `Recommender.refreshed`.
            PredictionError: no ads can be ordered.
            ManifestError: a stage was built again meanwhile.
        """
        recommender = self.recommender.refreshed(run)
        recommender.recommend({})
        published = loaded_state(run, self.published, recommender.changes)
        index = _with_changes(self.version.index.partition(CHANGED)[0], recommender)
        version = self.version.model_copy(update={"index": index})
        return replace(
            self, recommender=recommender, version=version, published=published
        )

    @property
    def schema(self) -> Schema:
        """The schema of its data."""
        return self.recommender.scorer.schema

    def answer(self, user: Any, top: int | None, waited: float) -> dict[str, Any]:
        """Recommend ads, as JSON holds them.

        Args:
            user: raw columns.
            top: number of ads.
            waited: milliseconds in the queue.

        Raises:
            DataError, PredictionError: as of `Recommender.recommend`.
        """
        answer = self.recommender.recommend(user, top)
        ads = [{**ad, AD_ID: str(ad[AD_ID])} for ad in answer.ads.to_dicts()]
        milliseconds = {"queue": waited, **answer.milliseconds}
        return {
            "ads": ads,
            "candidates": answer.candidates,
            "milliseconds": {n: round(ms, 3) for n, ms in milliseconds.items()},
        }


class Loader:
    """Opens what is published now, and only what is new of it.

    Args:
        run: its folder.
        rank_by, engine: as of `Recommender.load`.
    """

    def __init__(
        self, run: Path, rank_by: str | None = None, engine: str | None = None
    ) -> None:
        self.run, self.rank_by, self.engine = run, rank_by, engine
        self._last: Served | None = None

    def __call__(self) -> Served:
        """Load the run, or where only ads have changed, these alone.

        Raises:
            AdRecError: as `Served.load` and `Served.refreshed`.
        """
        last = self._last
        if last and is_same_build(last.published, published_state(self.run)):
            self._last = last.refreshed(self.run)
        else:
            self._last = Served.load(self.run, self.rank_by, self.engine)
        return self._last


def _with_changes(build: str, recommender: Recommender) -> str:
    """Name an index and the changes that it is searched with."""
    return f"{build}{CHANGED}{recommender.changes}" if recommender.changes else build


def check_finite(recommender: Recommender) -> None:
    """Refuse weights, and numbers of the catalog, that are not finite.

    Raises:
        PredictionError: names the model or the column.
    """
    models: tuple[tuple[str, Any], ...] = (
        # Users are encoded by a method of the towers, which has no weights of its own.
        ("towers", getattr(recommender.retriever.tower, "__self__", None)),
        ("ranker", recommender.scorer.ranker),
    )
    for model_name, model in models:
        tensors = model.state_dict() if isinstance(model, nn.Module) else {}
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise PredictionError(
                    f"a weight of the {model_name}, {name}, is not finite; train again"
                )
    shown = recommender.scorer.shown
    for name in shown.columns:
        if shown[name].dtype.is_float():
            numbers = shown[name].drop_nulls().to_numpy()
            if not np.isfinite(numbers).all():
                raise PredictionError(
                    f"the catalog's column {name} holds numbers that are not finite,"
                    " which JSON cannot hold; mend it in the data"
                )
    # A weight that is finite may still be too large to compute with.
    recommender.recommend({})


class HotSwap:
    """Holds the version that is served, and replaces it when a newer one is published.

    Args:
        load: opens the version that is published now.
        state: names the published version without loading it.
        is_like: whether a new version takes and gives the same columns as the first.

    Attributes:
        served: answers requests.
        refusal: why the newest version is not served; None if it is.
        swaps: number of versions that were swapped in.
    """

    def __init__(
        self,
        load: Callable[[], Served],
        state: Callable[[], str],
        is_like: Callable[[Served], bool],
    ) -> None:
        self._load, self._state, self._is_like = load, state, is_like
        self.served = load()
        self.refusal: str | None = None
        self.swaps = 0
        self._tried = self.served.published

    async def watch(self, seconds: float) -> None:
        """Look again and again, until this task is cancelled."""
        while True:
            await asyncio.sleep(seconds)
            await self.look()

    async def look(self) -> None:
        """Swap in what was published since the last look, if it can be loaded."""
        try:
            # It fails too while a stage is being put in its place.
            state = await asyncio.to_thread(self._state)
            if state == self._tried:
                return
            self._tried = state
            # On a thread of its own: requests are answered meanwhile.
            served = await asyncio.to_thread(self._load)
            if not self._is_like(served):
                raise ManifestError(
                    "its users or ads have other columns, so that OpenAPI would change"
                    " under the clients; start the server again"
                )
        except (AdRecError, OSError) as error:
            # While a run is being made again its stages do not fit together; the next
            # stage changes the state, and then it is tried again.
            self.refusal = str(error)
            log.warning("kept the version that is served: %s", error)
            return
        except Exception:
            # A bug must not end the watch without a word, nor the server.
            self.refusal = "an unexpected error, see the log of the server"
            log.exception("kept the version that is served")
            return
        self.served, self.refusal = served, None
        self.swaps += 1
        log.info("serving %s", served.version)
