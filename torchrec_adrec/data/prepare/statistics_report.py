"""The part of the report that says how well statistics predict validation rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from torchrec_adrec.data.prepare.fit_statistics import ChosenPairs
from torchrec_adrec.data.prepare.leaks import grouped_auc
from torchrec_adrec.schema import DenseFeature, Schema

ROWS = 200_000  # of validation; an AUC to about 0.002
SHOWN = 20  # columns in report.md; report.json has all

Report = dict[str, Any]


def statistics_figures(schema: Schema, out: Path, chosen: ChosenPairs) -> Report:
    """Measure each column's and pair's rate as a score of the first validation rows.

    Args:
        schema: with the statistics.
        out: the folder of the prepared data.
        chosen: the pairs with their gains.

    Returns:
        `auc`: by the name of a statistic, its AUC for its own label, NaN where it could
        not be measured; `pairs`: the dumped gains, each with the pair's AUC and the
        better AUC of its two columns, crosses that stay behind the others; `cross`:
        whether crosses were kept, and why; None: none were asked for.
    """
    auc = {feature.name: _auc(feature, out) for feature in _rates(schema)}
    click = schema.labels[0].name
    by_sources = {
        f.sources: auc[f.name]
        for f in _rates(schema)
        if f.statistic and f.statistic.label == click
    }
    figures = []
    for pair in (*chosen.pairs, *chosen.crosses):
        apart = max(by_sources[(pair.first,)], by_sources[(pair.second,)])
        together = by_sources[(pair.first, pair.second)]
        figures.append(pair.model_dump() | {"auc": together, "auc_apart": apart})
    cross = chosen.cross
    return {
        "auc": auc,
        "pairs": figures,
        "cross": cross and cross.model_dump() | {"kept": cross.is_kept},
    }


def _rates(schema: Schema) -> Iterator[DenseFeature]:
    """Yield one rate of every column, pair and label: that of the first strength."""
    done = set()
    for feature in (*schema.dense, *schema.cross):
        statistic = feature.statistic
        if statistic is not None and statistic.strength is not None:
            kind = (feature.sources, statistic.label)
            if kind not in done:
                done.add(kind)
                yield feature


def _auc(feature: DenseFeature, out: Path) -> float:
    assert feature.statistic is not None
    label = feature.statistic.label
    files = sorted((out / "valid").glob("*.parquet"))
    if not files:
        return float("nan")
    rows = pl.scan_parquet(files).select(feature.name, label).head(ROWS).collect()
    observed = rows.filter(pl.col(label).is_not_nan())
    clicks = observed[label].to_numpy().astype(np.float64)
    return grouped_auc(observed[feature.name].to_numpy(), np.ones_like(clicks), clicks)


def statistics_lines(figures: Report | None) -> Iterator[str]:
    """Yield the section of `report.md`; nothing where there are no statistics."""
    if figures is None:
        return
    yield from ("## Statistics of values", "")
    yield "*AUC* says how well the rate of a value in training predicts the label of"
    yield f"validation rows on its own. The first {SHOWN}:"
    yield from ("", "| statistic | AUC |", "|---|---|")
    strongest = sorted(figures["auc"].items(), key=lambda item: -np.nan_to_num(item[1]))
    yield from (f"| {name} | {auc:.3f} |" for name, auc in strongest[:SHOWN])
    yield ""
    if figures["pairs"]:
        yield "Pairs, chosen on training rows: *gain* is the log loss of the best of"
        yield "either column and the sum of both, minus the pair's, out of fold; *AUC*"
        yield "is that of the pair and of the better column on validation rows."
        yield from ("", "| pair | gain | AUC of the pair | of the better column |")
        yield "|---|---|---|---|"
        for pair in figures["pairs"]:
            name = f"{pair['first']} x {pair['second']}"
            aucs = f"{pair['auc']:.3f} | {pair['auc_apart']:.3f}"
            yield f"| {name} | {pair['gain']:.5f} | {aucs} |"
        yield ""
    if figures["cross"]:
        yield from (_cross_line(figures["cross"]), "")


def _cross_line(cross: Report) -> str:
    """Say whether the pairs across the sides were kept."""
    names = [f"{pair['first']} x {pair['second']}" for pair in cross["pairs"]]
    verdict = "kept" if cross["kept"] else "dropped, for that is no more than noise"
    return (
        f"Across the sides, {len(names)} pairs ({', '.join(names)}) change the log loss"
        f" of {cross['rows']:,} validation rows by {-cross['gain']:+.5f} (standard"
        f" error {cross['error']:.5f}) beside everything else: {verdict}."
    )
