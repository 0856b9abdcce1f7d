"""Columns and labels that can hardly be what was meant: named, so that none is silent.

Ids that look like several ids in one, columns in which hardly a value comes back, or
whose values the test rows do not share with training, and splits whose label is
always the same.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Bools
from torchrec_adrec.data.column import Chunk, JaggedColumn
from torchrec_adrec.data.prepare.split_counts import SplitCounts
from torchrec_adrec.data.prepare.vocabulary import FIRST, UNKNOWN
from torchrec_adrec.schema import Schema

SAMPLE_ROWS = 200_000
SEPARATORS = (",", ";", "|", "\t")
JOINED = 0.05  # of the ids; a history of one item holds no separator, so few may
UNIQUE = 0.9  # of the training rows
MOSTLY = 0.5  # of the test rows

Report = dict[str, Any]
Chunks = Iterable[tuple[Chunk, Bools]]


def joined_ids(chunks: Chunks, schema: Schema) -> list[Report]:
    """Sequences whose ids hold a separator: probably several ids that were not divided.

    Args:
        chunks: chunks with their training rows, of which `SAMPLE_ROWS` are looked at.

    Returns:
        `name`, `sign`, `share` of the ids that hold it, an `example`.
    """
    features = {f.source: f for f in schema.sequences}
    if not features:
        return []
    parts: dict[str, list[pl.DataFrame]] = {name: [] for name in features}
    longest, rows = dict.fromkeys(features, 0), 0
    for chunk, train in chunks:
        for name, found in parts.items():
            bags = chunk.columns[name]
            assert isinstance(bags, JaggedColumn), name
            ids = {"id": bags.items.values, "count": bags.count(train)}
            found.append(pl.DataFrame(ids).filter(pl.col("count") > 0))
            lengths = np.diff(bags.offsets)[train]
            longest[name] = max(longest[name], int(lengths.max(initial=0)))
        rows += int(train.sum())
        if rows >= SAMPLE_ROWS:
            break
    joined = []
    for name, feature in features.items():
        # A space stands in many names; that no row has two ids gives it away.
        is_whole = longest[name] == 1 and feature.max_length > 1
        signs = (*SEPARATORS, " ") if is_whole else SEPARATORS
        joined += [
            {"name": feature.name} | about
            for about in (_joined_by(pl.concat(parts[name]), sign) for sign in signs)
            if about["share"] > JOINED
        ]
    return joined


def _joined_by(ids: pl.DataFrame, sign: str) -> Report:
    holding = ids.filter(pl.col("id").str.contains(sign, literal=True))
    share = int(holding["count"].sum()) / max(int(ids["count"].sum()), 1)
    example = holding["id"][0] if len(holding) else ""
    return {"sign": sign, "share": share, "example": example}


def hardly_recurring(tally: SplitCounts) -> dict[str, float]:
    """Id columns in which hardly a value comes back, by feature.

    Returns:
        Share of the training rows (of those with a value) whose value stands in one row
        alone or is rarer than `data.min_count`, where it is above `UNIQUE`.
    """
    starts = {f.name: 0 for f in tally.schema.sparse if f.buckets is None}
    starts |= {f.name: 1 for f in tally.schema.sequences}  # behind the empty rows
    shares = {}
    for name, start in starts.items():
        rows = tally.counts[f"rows:train:{name}"][start:]
        alone = int(rows[UNKNOWN]) + int((rows[FIRST:] == 1).sum())
        shares[name] = alone / max(int(rows[UNKNOWN:].sum()), 1)
    return {name: share for name, share in shares.items() if share > UNIQUE}


def odd_lines(report: Report) -> Iterator[str]:
    """What is odd in a report, one sentence each."""
    for j in report["joined_ids"]:
        yield (
            f"{j['name']}: {j['share']:.2f} of its ids hold {j['sign']!r}, as"
            f" {j['example']!r}: if it divides ids, set it as the column's `separator`,"
            " or write a list (Parquet)"
        )
    unique = report["hardly_recurring"]
    if unique:
        yield (
            "hardly a value comes back often enough in training (data.min_count):"
            f" {_shares(unique)}; nothing can be learnt of them"
        )
    known = {c["name"] for c in report["future_columns"]} | set(unique)
    unknown = {
        name: share
        for name, share in report["splits"]["test"]["unknown"].items()
        if share > MOSTLY and name not in known
    }
    if unknown:
        yield f"mostly unknown in the test rows: {_shares(unknown)}"
    yield from _one_sided(report)


def _one_sided(report: Report) -> Iterator[str]:
    """Held-out splits in which a label is never, or always, there."""
    for split in ("valid", "test"):
        about = report["splits"][split]
        for label, rate in about["label_rate"].items():
            rows = about["observed"][label]
            always = rate == 1 and label in report["binary_labels"]
            if about["rows"] and (not rate or always):
                found = f"every {split} row has {label} = {rate:g} ({rows:,} observed)"
                if not rows:
                    found = f"no {split} row has {label} observed"
                yield f"{found}: how well it is told cannot be measured there"


def _shares(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} ({share:.2f})" for name, share in shares.items())
