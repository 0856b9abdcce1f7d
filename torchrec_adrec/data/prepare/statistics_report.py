"""The part of the report that says how well statistics predict validation rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from torchrec_adrec.data.prepare.leaks import grouped_auc
from torchrec_adrec.data.prepare.pairs import PairGain
from torchrec_adrec.schema import DenseFeature, Schema

ROWS = 200_000  # of validation; an AUC to about 0.002
SHOWN = 20  # columns in report.md; report.json has all

Report = dict[str, Any]


def statistics_figures(schema: Schema, out: Path, pairs: list[PairGain]) -> Report:
    """Measure each column's and pair's rate as a score of the first validation rows.

    Args:
        schema: with the statistics.
        out: the folder of the prepared data.
        pairs: the chosen pairs with their gains.

    Returns:
        `auc`: by the name of a statistic, its AUC for its own label, NaN where it could
        not be measured; `pairs`: the dumped gains, each with the pair's AUC and the
        better AUC of its two columns.
    """
    auc = {feature.name: _auc(feature, out) for feature in _rates(schema)}
    click = schema.labels[0].name
    by_sources = {
        f.sources: auc[f.name]
        for f in _rates(schema)
        if f.statistic and f.statistic.label == click
    }
    figures = []
    for pair in pairs:
        apart = max(by_sources[(pair.first,)], by_sources[(pair.second,)])
        together = by_sources[(pair.first, pair.second)]
        figures.append(pair.model_dump() | {"auc": together, "auc_apart": apart})
    return {"auc": auc, "pairs": figures}


def _rates(schema: Schema) -> Iterator[DenseFeature]:
    """Yield one rate of every column, pair and label: that of the first strength."""
    done = set()
    for feature in schema.dense:
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
