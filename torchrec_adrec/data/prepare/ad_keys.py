"""The keys of every ad that crosses need at serving, as columns of the catalog.

The key of a pair of values is made of the keys of both. A request has one key of the
user's value, and those of the ads are known beforehand: so a cross of 500 candidates
is one lookup, of the very keys that training rows were counted under.
"""

import polars as pl

from torchrec_adrec.data.column import RawColumns
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.prepare.value_keys import Sources
from torchrec_adrec.schema import Side


def key_column(*sources: str) -> str:
    """Return the column of a value's or a pair's keys; no feature has a colon."""
    return f"key:{'+'.join(sources)}"


def ad_keys(encoder: Encoder, raw: RawColumns) -> dict[str, pl.Series]:
    """Return the keys of ads by the name of the catalog's column.

    Where the folds are kept these are the keys of all statistics of ads, otherwise
    only those that crosses need.

    Args:
        encoder: fitted.
        raw: the ads' raw columns.
    """
    statistics = encoder.statistics
    if statistics is None:
        return {}
    sources: dict[Sources, None] = {(f.source,): None for f in encoder.schema.cross}
    if statistics.keeps_folds:
        of_ads = encoder.schema.statistics_of(Side.AD)
        sources |= dict.fromkeys(feature.sources for feature in of_ads)
    return {
        key_column(*names): pl.Series(column.keys[column.codes])
        for names, column in statistics.keys.of(raw, sources).items()
    }
