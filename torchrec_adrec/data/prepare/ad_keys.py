"""The keys of every ad that crosses need at serving, as columns of the catalog.

The key of a pair of values is made of the keys of both. A request has one key of the
user's value, and those of the ads are known beforehand: so a cross of 500 candidates
is one lookup, of the very keys that training rows were counted under.
"""

import polars as pl

from torchrec_adrec.data.column import RawColumns
from torchrec_adrec.data.prepare.encoder import Encoder


def key_column(source: str) -> str:
    """Return the catalog's column of an ad's keys; no feature's name has a colon."""
    return f"key:{source}"


def ad_keys(encoder: Encoder, raw: RawColumns) -> dict[str, pl.Series]:
    """Return the keys of ads by the name of the catalog's column.

    Args:
        encoder: fitted.
        raw: the ads' raw columns.
    """
    if not encoder.schema.cross:
        return {}
    assert encoder.statistics is not None, "crosses are statistics"
    sources = dict.fromkeys((f.source,) for f in encoder.schema.cross)
    keyed = encoder.statistics.keys.of(raw, sources)
    return {
        key_column(name): pl.Series(column.keys[column.codes])
        for (name,), column in keyed.items()
    }
