"""Judge exported vectors on held-out clicks, compared with popularity and context."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Bools, Float32s, Int64s
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.data.vectors import FOLDER, expand
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
from torchrec_adrec.evaluation.known_ads import known_ads, new_clicks
from torchrec_adrec.evaluation.ranking_metrics import cuts_of, one_relevant
from torchrec_adrec.evaluation.retrieval import (
    KNOWN_LEFT_OUT,
    NOTHING_LEFT_OUT,
    RetrievalProtocol,
    retrieval_metrics,
)
from torchrec_adrec.evaluation.scorers import (
    InnerProduct,
    Popularity,
    by_popularity,
)
from torchrec_adrec.evaluation.shown import shown_counts
from torchrec_adrec.schema import AD_ID, Schema, Side


def clicks_of(
    data: Path, schema: Schema, split: str, most: int, seed: int
) -> tuple[pl.DataFrame, int]:
    """Read clicked rows of a split, in file order.

    Args:
        data: a prepared data set.
        schema: its columns; the first label is the click.
        split: its folder.
        most: how many rows are kept, drawn at random.
        seed: of the draw.

    Returns:
        The rows, and how many clicks the split has.
    """
    label = schema.labels[0].name
    if not list((data / split).glob("*.parquet")):
        return pl.DataFrame(), 0
    rows = pl.scan_parquet(data / f"{split}/*.parquet").filter(pl.col(label) == 1)
    clicks = rows.collect()
    total = len(clicks)
    if total > most:
        # File order is the order of the exported queries; the draw must not change it.
        kept = np.random.default_rng(seed).choice(total, most, replace=False)
        clicks = clicks[np.sort(kept)]
    # Towers encode the users; the ads of these rows are found by their ids.
    vectors = expand(schema.vectors_of(Side.USER), clicks, data / FOLDER)
    return clicks.with_columns(pl.Series(n, v) for n, v in vectors.items()), total


def held_out_clicks(
    data: Path, schema: Schema, most: int, seed: int
) -> tuple[pl.DataFrame, int]:
    """Read the clicks of the test split that retrieval is measured on.

    Args:
        data: a prepared data set.
        schema: its columns.
        most: how many rows are kept, `evaluation.queries`.
        seed: of the draw.

    Raises:
        DataError: there are none.
    """
    clicks, total = clicks_of(data, schema, "test", most, seed)
    if not total:
        raise DataError(
            f"{data / 'test'} has no row with {schema.labels[0].name} = 1: neither"
            " recall nor the index can be measured; give more data or a larger"
            " data.split.test"
        )
    return clicks, total


def judge(
    ads: Float32s,
    local: slice,
    queries: Float32s,
    data: Path,
    schema: Schema,
    seed: int,
    process: Process,
    exclude_known: bool = False,
) -> dict[str, Any]:
    """Measure retrieval over the whole catalog. Collective.

    Args:
        ads: (n, D) vectors of this rank's ads, in catalog order.
        local: which positions of the catalog these are.
        queries: (Q, D) of the users of `held_out_clicks`, in their order.
        data: a prepared data set.
        schema: its columns.
        seed: of the draws.
        process: this rank.
        exclude_known: leave out of each user's candidates what he is known to have
            clicked, and do not ask for clicks on that.

    Returns:
        Metrics and protocol on the first rank, nothing on the others.
    """
    catalog = load_catalog(data)
    clicks, total = held_out_clicks(data, schema, len(queries), seed)
    ids, impressions = catalog[AD_ID].to_numpy(), shown_counts(data, catalog)
    clicked = np.searchsorted(ids, clicks[AD_ID].to_numpy())
    excluded, exported = None, len(clicks)
    if exclude_known:
        known = known_ads(clicks, catalog, schema, data, "test")
        is_new, excluded = new_clicks(known, clicked)
        clicks, clicked, queries = _new(is_new, clicks, clicked, queries)
    context, settings = _context(data, schema, ids, local, clicks, seed, process)
    scorers: dict[str, BlockScorer] = {
        "towers": InnerProduct.of(queries, ads, local.start, process.device),
        "context": context,
    }
    cuts = cuts_of(len(ids))
    longest = max(cuts, default=1)
    if excluded is not None:
        scorers["popularity"] = Popularity.of(impressions, local, process.device)
    results: dict[str, SearchResult] = {
        name: search(scorer, clicked, longest, process, excluded)
        for name, scorer in scorers.items()
    }
    if excluded is None:
        results["popularity"] = by_popularity(impressions, clicked, longest)
    if not process.is_first:
        return {}
    protocol = RetrievalProtocol(
        split_by=json.loads((data / "report.json").read_text())["split_by"],
        queries=len(clicks),
        repeated=exported - len(clicks),
        clicks=total,
        seed=seed,
        catalog=len(ids),
        cuts=cuts,
        context=settings,
        filtered=KNOWN_LEFT_OUT if exclude_known else NOTHING_LEFT_OUT,
    )
    return {
        "protocol": protocol.model_dump(mode="json"),
        "catalog": len(ids),
        **retrieval_metrics(results, clicked, impressions, seed),
    }


def judge_towers(
    ads: Float32s,
    local: slice,
    queries: Float32s,
    clicks: pl.DataFrame,
    data: Path,
    process: Process,
    schema: Schema | None = None,
) -> dict[str, float]:
    """Measure the towers on validation clicks, over the whole catalog. Collective.

    Args:
        ads, local: as of `judge`.
        queries: (Q, D) of the users.
        clicks: the rows of these users, as `clicks_of` returns them.
        data: a prepared data set.
        process: this rank.
        schema: of the data, where the ads that each user is known to have clicked are
            to be left out; None: all ads are candidates.

    Returns:
        Means over the clicks on the first rank, nothing on the others.
    """
    catalog = load_catalog(data)
    ids, clicked = catalog[AD_ID].to_numpy(), clicks[AD_ID].to_numpy()
    places, cuts = np.searchsorted(ids, clicked), cuts_of(len(ids))
    excluded = None
    if schema is not None:
        known = known_ads(clicks, catalog, schema, data, "valid")
        is_new, excluded = new_clicks(known, places)
        clicks, places, queries = _new(is_new, clicks, places, queries)
    scorer = InnerProduct.of(queries, ads, local.start, process.device)
    result = search(scorer, places, max(cuts, default=1), process, excluded)
    if not process.is_first:
        return {}
    means = {name: v.mean() for name, v in one_relevant(result.ranks, cuts).items()}
    return {name: float(mean) for name, mean in means.items()} | {"clicks": len(places)}


def _new(
    is_new: Bools, clicks: pl.DataFrame, clicked: Int64s, queries: Float32s
) -> tuple[pl.DataFrame, Int64s, Float32s]:
    """Keep the clicks that are asked for.

    Raises:
        DataError: there is none.
    """
    if not is_new.any():
        raise DataError(
            f"evaluation.exclude_known is true, and all {len(clicks)} clicks are on ads"
            " that their users are known to have clicked: there is nothing to ask for;"
            " set it to false"
        )
    return clicks.filter(pl.Series(is_new)), clicked[is_new], queries[is_new]


def _context(
    data: Path,
    schema: Schema,
    ids: Int64s,
    local: slice,
    clicks: pl.DataFrame,
    seed: int,
    process: Process,
) -> tuple[ContextBaseline, dict[str, float | int | None]]:
    """Make the context baseline of the test clicks; returns how it was tuned too."""
    shown = ImpressionCounts.count(data, schema, ids, local)
    # Whoever asks for fewer queries in a large catalog must not wait for the tuning.
    most = min(MAX_TUNING, len(clicks))
    valid, _ = clicks_of(data, schema, "valid", most, seed)
    # Tuned on the valid split: the test clicks must not choose their own baseline.
    clicked = np.searchsorted(ids, valid[AD_ID].to_numpy())
    tuned = choose(shown, valid, clicked, process)
    hot = shown.one_hot(clicks)
    context = ContextBaseline.of(shown, hot, tuned.smoothing, tuned.weight)
    return context, asdict(tuned) | {"training_rows": shown.rows}
