"""Updates of a run's ads, and what is served after them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from named_ads import ids_of, rows_of

from torchrec_adrec.export.ad_file import AdIds, AdRows
from torchrec_adrec.export.update import Update, Updater
from torchrec_adrec.pipeline.job import run_stages
from torchrec_adrec.runs.stage_settings import stage_settings
from torchrec_adrec.runs.stages import INDEX
from torchrec_adrec.serve.recommender import Recommender

USER = {"user": "u1", "city": "c1"}


def update(updater: Updater, *lines: str, remove: tuple[int, ...] = ()) -> Update:
    """Add rows and remove ids, by way of files."""
    folder, schema = updater.run.parent, updater.ads.encoder.schema
    rows = AdRows.read(rows_of(folder, *lines), schema) if lines else None
    ids = AdIds.read(ids_of(folder, *remove)) if remove else None
    return updater.apply(rows, ids)


def items(served: Recommender, **arguments: Any) -> dict[str, dict[str, Any]]:
    """What is served of every ad, by its name."""
    top = served.retriever.index.count
    settings = served.settings.model_copy(update={"candidates": top})
    served.parts = replace(served.parts, settings=settings)
    return {ad["item"]: ad for ad in served.recommend(USER, **arguments).ads.to_dicts()}


def answers(served: Recommender) -> dict[str, dict[str, Any]]:
    return items(served, top=served.retriever.index.count)


def alike(
    actual: dict[str, dict[str, Any]], expected: dict[str, dict[str, Any]]
) -> None:
    """Compare what is served of some ads, up to rounding."""
    for item, ad in expected.items():
        numbers = {n: x for n, x in ad.items() if isinstance(x, float)}
        texts = {n: x for n, x in ad.items() if n not in numbers}
        assert {n: actual[item][n] for n in texts} == texts
        for name, number in numbers.items():
            np.testing.assert_allclose(actual[item][name], number, rtol=1e-4)


def rebuild(run: Path, *overrides: str) -> None:
    """Build the index as `adrec index compact` does."""
    settings = stage_settings(run / "data", overrides)
    run_stages([INDEX], settings, run, again=True)
