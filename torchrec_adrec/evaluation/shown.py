"""What training has really shown: not the negatives that `prepare` has drawn.

Where the log holds positives only, most training rows are drawn. Models learn from
them, but a baseline that counts them would rank ads by how often they were drawn.
"""

import json
from pathlib import Path

import polars as pl

from torchrec_adrec.arrays import Int64s
from torchrec_adrec.schema import Schema


def shown_counts(data: Path, catalog: pl.DataFrame) -> Int64s:
    """Count the training rows of the log that show each ad of the catalog, (N,)."""
    return catalog["clicks" if _are_drawn(data) else "impressions"].to_numpy()


def shown_rows(data: Path, schema: Schema) -> pl.LazyFrame:
    """Return the training rows that the log holds; the first label is the click."""
    rows = pl.scan_parquet(data / "train/*.parquet")
    if _are_drawn(data):
        rows = rows.filter(pl.col(schema.labels[0].name) == 1)
    return rows


def _are_drawn(data: Path) -> bool:
    report = json.loads((data / "report.json").read_text())
    return report.get("negatives") is not None
