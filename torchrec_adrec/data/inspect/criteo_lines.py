"""Criteo's own format, which has an adapter that knows its columns."""

import polars as pl

from torchrec_adrec.data.adapters.criteo import COLUMNS, HASHES, INTEGERS
from torchrec_adrec.data.inspect.sample import Sample

LINES = 1_000
FITS = 0.99


def criteo_yaml(sample: Sample) -> tuple[str, tuple[str, ...]] | None:
    """The configuration and doubts of a file of Criteo's; None if it is another one."""
    layout = sample.layout
    if layout is None or layout.separator != "\t" or layout.header:
        return None
    labelled = len(layout.columns) == len(COLUMNS)
    if not labelled and len(layout.columns) != len(COLUMNS) - 1:
        return None
    rows = sample.rows.head(LINES)
    hashes = [pl.col(name) for name in layout.columns[-len(HASHES) :]]
    numbers = [pl.col(n) for n in layout.columns[labelled:][: len(INTEGERS)]]
    fits = pl.concat_list(
        *(h.str.contains(r"^[0-9a-f]{8}$").fill_null(True) for h in hashes),
        *(n.str.contains(r"^-?\d+$").fill_null(True) for n in numbers),
    ).list.all()
    if float(str(rows.select(fits.mean()).item())) < FITS:
        return None
    lines = [
        f"# What `adrec init {sample.path}` proposes:",
        "# these are Criteo's columns, which have an adapter (docs/data.md).",
        "data:",
        "  adapter: criteo",
        f"  raw: [{sample.path}]",
    ]
    if not labelled:
        lines.append("  labelled: false  # 39 columns: the label is not among them")
    unsure = ("Which columns are the ad's is a guess: data.ad_features.",)
    lines.append(f"  # {unsure[0]}")
    if size := sample.batch_size:
        lines += ["train:", f"  batch_size: {size}  # few rows make few large steps"]
    return "\n".join(lines) + "\n", unsure
