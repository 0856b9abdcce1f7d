"""The figures of the data report, made from what was counted and measured."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Float64s, Int64s
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.prepare.held_ads import HeldAd
from torchrec_adrec.data.prepare.leaks import Dependency, column_aucs, future_columns
from torchrec_adrec.data.prepare.odd_columns import hardly_recurring
from torchrec_adrec.data.prepare.spill import ChunkStore
from torchrec_adrec.data.prepare.split_counts import SplitCounts, total
from torchrec_adrec.data.prepare.splits import SPLITS
from torchrec_adrec.data.prepare.varying import Varying
from torchrec_adrec.data.prepare.vocabulary import FIRST, MISSING, UNKNOWN
from torchrec_adrec.schema import Schema, Side

PAIRS_KEPT = 20  # strongest dependencies and held ads
DRIFT_VALUES = 50  # most frequent values that are compared one by one

Report = dict[str, Any]


@dataclass(frozen=True)
class Findings:
    """What was measured on the raw rows.

    Attributes:
        dependencies: how well user columns determine ad columns.
        held_ads: how often user columns hold their own row's ad.
        joined_ids: sequences whose ids hold a separator.
        varying: how the values of ads vary, if they do.
        repeats: held-out rows that equal a training row.
    """

    dependencies: list[Dependency]
    held_ads: list[HeldAd]
    joined_ids: list[Report]
    varying: Varying | None
    repeats: Report


def report_figures(
    store: ChunkStore,
    encoder: Encoder,
    ads: pl.DataFrame,
    tally: SplitCounts,
    findings: Findings,
) -> Report:
    """Collect everything that is known about the data, ready for JSON.

    Args:
        store: the chunks and the bad rows.
        encoder: the fitted encoder.
        ads: the catalog.
        tally: the counts of all splits.
        findings: what was measured on the raw rows.
    """
    schema, bad, varying = encoder.schema, store.bad, findings.varying
    aucs = column_aucs(tally)
    held_ads = findings.held_ads[:PAIRS_KEPT]
    dependencies = findings.dependencies[:PAIRS_KEPT]
    return {
        "rows_in": bad.rows_read + bad.count,
        "bad_rows": {"count": bad.count, "first": bad.first},
        "unmatched_rows": {"tables": bad.unmatched, "first": bad.first_unmatched},
        "repaired": tally.repaired(),
        "ads": {"all": len(ads), "in_train": int((ads["impressions"] > 0).sum())},
        "num_embeddings": {f.name: f.num_embeddings for f in schema.bags},
        "vectors": _vectors(schema, len(ads)),
        "schema": schema.fingerprint,
        "splits": {name: _split_figures(tally, name) for name in SPLITS},
        "side_dependencies": [d.model_dump() for d in dependencies],
        "column_auc": aucs,
        "drift": {name: _drift(tally, name) for name in aucs},
        "future_columns": [f.model_dump() for f in future_columns(tally, aucs)],
        "hardly_recurring": hardly_recurring(tally),
        "binary_labels": [f.name for f in schema.labels if not f.rule.is_open],
        "rows_in_two_splits": findings.repeats,
        "label_periods": {name: _periods(tally, name) for name in schema.label_names},
        "held_ads": [h.model_dump() for h in held_ads],
        "varying_ads": varying and varying.model_dump() | {"line": varying.line},
        "joined_ids": findings.joined_ids,
    }


def _vectors(schema: Schema, ads: int) -> Report:
    """Return the size of each vector, and the bytes that the catalog needs of it."""
    return {
        f.name: {
            "size": f.size,
            "encoder": f.encoder,
            "catalog_bytes": ads * f.width * 4 if f.side == Side.AD else 0,
        }
        for f in schema.vectors
    }


def _periods(tally: SplitCounts, label: str) -> list[list[float]]:
    """Return the rows and the label's sum in each period."""
    rows = tally.counts[f"period_rows:{label}"].tolist()
    return [rows, total(tally.counts[f"period_labels:{label}"])]


def _split_figures(tally: SplitCounts, split: str) -> Report:
    rows, hashes = tally.counts.get(f"size:{split}", (0, 0))
    labels = {name: tally.label(split, name) for name in tally.schema.label_names}
    return {
        "rows": int(rows),
        "hash": f"{int(hashes):016x}",
        "observed": {name: rows for name, (rows, _) in labels.items()},
        "label_rate": {name: mean for name, (_, mean) in labels.items()},
        "missing": _shares(tally, split, MISSING),
        "unknown": _shares(tally, split, UNKNOWN),
    }


def _shares(tally: SplitCounts, split: str, number: int) -> dict[str, float]:
    """Return, by feature, the share of rows that have the id `number`.

    For a sequence this is the share of rows whose first id it is. Its counts begin with
    the empty rows, so those of its ids stand one place further on.
    """
    positions = {f.name: number for f in tally.schema.sparse}
    positions |= {
        f.name: 0 if number == MISSING else UNKNOWN + 1 for f in tally.schema.sequences
    }
    if number == MISSING:
        others = (*tally.schema.dense_alone, *tally.schema.vectors)
        positions |= {f.name: MISSING for f in others}
    shares = {}
    for name, position in positions.items():
        rows = tally.counts.get(f"rows:{split}:{name}")
        share = 0.0 if rows is None else float(rows[position] / max(rows.sum(), 1))
        shares[name] = share
    return shares


def _drift(tally: SplitCounts, name: str) -> float:
    """Return the population stability index, sum (p - q) log(p / q), of test to train.

    p are the shares of a column's values in the training rows, q in the test rows.
    """
    train = _known_rows(tally, "train", name)
    p, q = _coarse(train, train), _coarse(_known_rows(tally, "test", name), train)
    return float(((p - q) * np.log(p / q)).sum())


def _known_rows(tally: SplitCounts, split: str, name: str) -> Int64s:
    """Return the rows without a value, then those of every known value.

    Unknown values are left out. Training has only few of them, the rare values, so
    they would outweigh all other drift; their shares are reported on their own.
    """
    empty = np.zeros_like(tally.counts[f"rows:train:{name}"])
    rows = tally.counts.get(f"rows:{split}:{name}", empty)
    if name in {f.name for f in tally.schema.sparse}:
        return np.append(rows[MISSING], rows[FIRST:])
    if name in {f.name for f in tally.schema.sequences}:  # empty rows come first
        return np.append(rows[: MISSING + 2].sum(), rows[FIRST + 1 :])
    return np.asarray(rows)  # a number without ids: missing, then its bins


def _coarse(rows: Int64s, train: Int64s) -> Float64s:
    """Return the shares of missing, of training's frequent values, and of all others.

    Single rare values differ by chance, which would look like drift.
    """
    frequent = np.argsort(-train[1:], kind="stable")[:DRIFT_VALUES] + 1
    kept = rows[np.append(0, frequent)]
    # Half a row more for each, so that a value that is gone does not make the index
    # infinite.
    smoothed = np.append(kept, rows.sum() - kept.sum()) + 0.5
    return np.asarray(smoothed / smoothed.sum())
