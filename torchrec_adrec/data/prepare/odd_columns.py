"""Warnings about columns and labels that can hardly be what the user meant.

None of these stops `prepare`, because each may be right for some data: ids that look
like several ids in one, columns in which hardly a value occurs again, columns whose
test values never occur in training, and splits whose label is always the same.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Bools
from torchrec_adrec.data.column import Chunk, jagged_column
from torchrec_adrec.data.prepare.split_counts import SplitCounts
from torchrec_adrec.data.prepare.vocabulary import FIRST, UNKNOWN
from torchrec_adrec.schema import Schema

SAMPLE_ROWS = 200_000
SEPARATORS = (",", ";", "|", "\t")
JOINED = 0.05  # of the ids; low, since a history of one item holds no separator
UNIQUE = 0.9  # share of the training rows
MOSTLY = 0.5  # share of the test rows

Report = dict[str, Any]
Chunks = Iterable[tuple[Chunk, Bools]]


def joined_ids(chunks: Chunks, schema: Schema) -> list[Report]:
    """Find sequences whose ids hold a separator, as undivided lists of ids would.

    Args:
        chunks: chunks with the mask of their training rows; about the first
            `SAMPLE_ROWS` rows are used.
        schema: names the sequences.

    Returns:
        For each sequence: its `name`, the `sign`, the `share` of ids that hold the
        sign, and one of them as `example`.
    """
    features = {f.source: f for f in schema.sequences}
    if not features:
        return []
    parts: dict[str, list[pl.DataFrame]] = {name: [] for name in features}
    longest, rows = dict.fromkeys(features, 0), 0
    for chunk, train in chunks:
        for name, frames in parts.items():
            bags = jagged_column(chunk.columns, name)
            ids = {"id": bags.items.values, "count": bags.count(train)}
            frames.append(pl.DataFrame(ids).filter(pl.col("count") > 0))
            lengths = np.diff(bags.offsets)[train]
            longest[name] = max(longest[name], int(lengths.max(initial=0)))
        rows += int(train.sum())
        if rows >= SAMPLE_ROWS:
            break
    joined = []
    for name, feature in features.items():
        # A space may belong to a name ("New York"). It is suspicious only if no row has
        # a second id, as then the lists were probably never divided at their spaces.
        is_whole = longest[name] == 1 and feature.max_length > 1
        signs = (*SEPARATORS, " ") if is_whole else SEPARATORS
        joined += [
            {"name": feature.name} | suspect
            for suspect in (_joined_by(pl.concat(parts[name]), sign) for sign in signs)
            if suspect["share"] > JOINED
        ]
    return joined


def _joined_by(ids: pl.DataFrame, sign: str) -> Report:
    holding = ids.filter(pl.col("id").str.contains(sign, literal=True))
    share = int(holding["count"].sum()) / max(int(ids["count"].sum()), 1)
    example = holding["id"][0] if len(holding) else ""
    return {"sign": sign, "share": share, "example": example}


def hardly_recurring(tally: SplitCounts) -> dict[str, float]:
    """Find id columns in which hardly a value occurs again, by feature.

    Returns:
        Of the training rows with a value, the share whose value occurs in no other row
        or is rarer than `data.min_count`; only shares above `UNIQUE`.
    """
    starts = {f.name: 0 for f in tally.schema.sparse if f.buckets is None}
    starts |= {f.name: 1 for f in tally.schema.sequences}  # skips the empty rows
    shares = {}
    for name, start in starts.items():
        rows = tally.counts[f"rows:train:{name}"][start:]
        alone = int(rows[UNKNOWN]) + int((rows[FIRST:] == 1).sum())
        shares[name] = alone / max(int(rows[UNKNOWN:].sum()), 1)
    return {name: share for name, share in shares.items() if share > UNIQUE}


def odd_lines(report: Report) -> Iterator[str]:
    """Yield one sentence for everything in a report that looks wrong."""
    for j in report["joined_ids"]:
        yield (
            f"{j['name']}: {j['share']:.0%} of its ids contain {j['sign']!r}, for"
            f" example {j['example']!r}; if this sign separates ids, set it as the"
            " column's `separator`, or write lists (Parquet)"
        )
    unique = report["hardly_recurring"]
    if unique:
        yield (
            "columns in which hardly any value occurs often enough in training to be"
            f" learned from (data.min_count): {_shares(unique)}"
        )
    known = {c["name"] for c in report["future_columns"]} | set(unique)
    unknown = {
        name: share
        for name, share in report["splits"]["test"]["unknown"].items()
        if share > MOSTLY and name not in known
    }
    if unknown:
        yield (
            "columns whose values in the test rows mostly never occurred in training:"
            f" {_shares(unknown)}"
        )
    yield from _one_sided(report)


def _one_sided(report: Report) -> Iterator[str]:
    """Yield a sentence for each held-out split in which a label never varies."""
    for split in ("valid", "test"):
        figures = report["splits"][split]
        for label, rate in figures["label_rate"].items():
            rows = figures["observed"][label]
            always = rate == 1 and label in report["binary_labels"]
            if figures["rows"] and (not rate or always):
                reason = f"every {split} row has {label} = {rate:g} ({rows:,} observed)"
                if not rows:
                    reason = f"{label} was observed in no {split} row"
                yield f"{reason}, so its prediction cannot be measured there"


def _shares(shares: dict[str, float]) -> str:
    return ", ".join(
        f"{name} ({share:.0%} of the rows)" for name, share in shares.items()
    )
