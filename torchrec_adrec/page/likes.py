"""A brand-new user, of whom nothing is known but a few items that they like."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from torchrec_adrec.data.prepare.vocabulary import UNKNOWN
from torchrec_adrec.data.request import RawUser
from torchrec_adrec.schema import Schema, SequenceFeature, Side, SparseFeature
from torchrec_adrec.serve.parts import Parts

LIKED = 3  # items to pick
OFFERED = 1000  # items, the most shown ones: a longer list is slow in a browser
NAMED_BY = 3  # raw columns of an ad that name it, its item among them


@dataclass(frozen=True)
class Likes:
    """What a brand-new user can pick.

    Attributes:
        history: raw column of the user that lists them.
        items: value of the item -> what the page calls it, the most shown ad first.
    """

    history: str
    items: dict[str, str]

    def user(self, picks: Sequence[str]) -> RawUser:
        """Return a user of whom nothing is known but these items, the latest last."""
        return {self.history: list(picks)}


def likes(parts: Parts) -> Likes | str:
    """Return what a brand-new user can pick, or why nothing can be picked."""
    pair = _history(parts.encoder.schema)
    if pair is None:
        return (
            "Picking items is not offered: this run's schema has no history of a user"
            " that shares its ids with a column of the ads (`shares_ids_with`), so that"
            " liked items would tell the models nothing."
        )
    history, item = pair
    # An item that training hardly knew has the id of all unknown ones: to pick it would
    # say nothing, without an error.
    known = parts.catalog.filter(
        pl.col(item.name) > UNKNOWN, pl.col(f"raw_{item.source}").is_not_null()
    )
    columns = parts.encoder.schema.sources_of(Side.AD)
    others = [name for name in columns if name != item.source][: NAMED_BY - 1]
    names = [f"raw_{name}" for name in (item.source, *others)]
    shown = (
        known.sort("impressions", "ad_id", descending=[True, False])
        .unique(f"raw_{item.source}", keep="first", maintain_order=True)
        .head(OFFERED)
        .select(names)
    )
    rows = shown.cast(pl.String).iter_rows()
    titles = {row[0]: " · ".join(x for x in row if x is not None) for row in rows}
    return Likes(history.source, titles)


def _history(schema: Schema) -> tuple[SequenceFeature, SparseFeature] | None:
    """Find the history of a user whose ids are those of an ad's column."""
    ads = {feature.name: feature for feature in schema.sparse_of(Side.AD)}
    for sequence in schema.sequences_of(Side.USER):
        if sequence.shares_ids_with is not None:
            return sequence, ads[sequence.shares_ids_with]
    return None
