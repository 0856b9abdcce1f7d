"""Exported vectors judged on held-out clicks, beside popularity and the context."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import DataError
from torchrec_adrec.evaluation.context import (
    MAX_TUNING,
    ContextBaseline,
    ImpressionCounts,
    choose,
)
from torchrec_adrec.evaluation.exact_search import (
    BlockScorer,
    SearchResult,
    search,
)
from torchrec_adrec.evaluation.ranking_metrics import cuts_of
from torchrec_adrec.evaluation.retrieval import RetrievalProtocol, retrieval_metrics
from torchrec_adrec.evaluation.scorers import InnerProduct, by_popularity
from torchrec_adrec.schema import AD_ID, Schema

MAX_CLICKS = 20_000  # held-out clicks that recall is measured on


def clicks_of(
    data: Path, schema: Schema, split: str, most: int, seed: int
) -> tuple[pl.DataFrame, int]:
    """Clicked rows of a split in file order, at most `most`; and how many there are."""
    label = schema.labels[0].name
    if not list((data / split).glob("*.parquet")):
        return pl.DataFrame(), 0
    rows = pl.scan_parquet(data / f"{split}/*.parquet").filter(pl.col(label) == 1)
    clicks = rows.collect()
    if len(clicks) <= most:
        return clicks, len(clicks)
    kept = np.random.default_rng(seed).choice(len(clicks), most, replace=False)
    return clicks[np.sort(kept)], len(clicks)


def held_out_clicks(data: Path, schema: Schema, seed: int) -> tuple[pl.DataFrame, int]:
    """`clicks_of` the test split.

    Raises:
        DataError: there are none.
    """
    clicks, total = clicks_of(data, schema, "test", MAX_CLICKS, seed)
    if not total:
        raise DataError(
            f"{data / 'test'} has no row with {schema.labels[0].name} = 1: neither"
            " recall nor the index can be measured; give more data or a larger"
            " data.split.test"
        )
    return clicks, total


def judge(
    ads: Float32s,
    own: slice,
    queries: Float32s,
    data: Path,
    schema: Schema,
    seed: int,
    process: Process,
) -> dict[str, Any]:
    """Figures and protocol on the first rank, nothing on the others. Collective.

    Args:
        ads: (n, D) vectors of this rank's `own` ads, in catalog order.
        queries: (Q, D) of the users of `held_out_clicks`, in their order.
    """
    catalog = load_catalog(data)
    clicks, total = held_out_clicks(data, schema, seed)
    ids, impressions = (catalog[n].to_numpy() for n in (AD_ID, "impressions"))
    clicked = np.searchsorted(ids, clicks[AD_ID].to_numpy())
    context, settings = _context(data, schema, ids, own, clicks, seed, process)
    scorers: dict[str, BlockScorer] = {
        "towers": InnerProduct.of(queries, ads, own.start, process.device),
        "context": context,
    }
    cuts = cuts_of(len(ids))
    longest = max(cuts, default=1)
    ways: dict[str, SearchResult] = {
        name: search(scorer, clicked, longest, process)
        for name, scorer in scorers.items()
    }
    ways["popularity"] = by_popularity(impressions, clicked, longest)
    if not process.is_first:
        return {}
    protocol = RetrievalProtocol(
        split_by=json.loads((data / "report.json").read_text())["split_by"],
        queries=len(clicks),
        clicks=total,
        seed=seed,
        catalog=len(ids),
        cuts=cuts,
        context=settings,
    )
    return {
        "protocol": protocol.model_dump(mode="json"),
        "catalog": len(ids),
        **retrieval_metrics(ways, clicked, impressions, seed),
    }


def _context(
    data: Path,
    schema: Schema,
    ids: Int64s,
    own: slice,
    clicks: pl.DataFrame,
    seed: int,
    process: Process,
) -> tuple[ContextBaseline, dict[str, float | int | None]]:
    """The baseline for the test clicks, chosen on the valid split, and how."""
    shown = ImpressionCounts.count(data, schema, ids, own)
    valid, _ = clicks_of(data, schema, "valid", MAX_TUNING, seed)
    at = np.searchsorted(ids, valid[AD_ID].to_numpy())
    chosen = choose(shown, valid, at, process)
    hot = shown.one_hot(clicks)
    context = ContextBaseline.of(shown, hot, chosen.smoothing, chosen.weight)
    return context, asdict(chosen) | {"training_rows": shown.rows}
