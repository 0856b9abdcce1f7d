"""User columns that hold the ad of their own row: a history written after the click.

A model then finds the ad in its input, and recall looks perfect. No request can bring
such a value, because the ad is what it asks for. Unlike `leaks.dependencies`, this also
sees lists, and ads so rare that nothing can be said of what determines them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict

from torchrec_adrec.arrays import Bools, Int64s
from torchrec_adrec.data.column import Chunk, Column, JaggedColumn
from torchrec_adrec.data.keys import keys
from torchrec_adrec.data.prepare.leaks import LIMIT, MIN_SEEN, sampled
from torchrec_adrec.errors import DataError
from torchrec_adrec.schema import Schema, SequenceFeature, Side, SparseFeature

MOST = 0.5  # share of rows from which an id of the user is told of

Place = Literal["value", "last item", "any item"]


class HeldAd(BaseModel):
    """How often a user column holds its own row's value of an ad column.

    Attributes:
        user: a sequence or a scalar feature.
        place: where in it the value is looked for.
        held: share of the rows in which it is there.
        base_rate: the same, were each user beside the ad of a row drawn at random.
        rows: rows in which neither is missing.
    """

    model_config = ConfigDict(frozen=True)

    user: str
    place: Place
    ad: str
    held: float
    base_rate: float
    rows: int

    @property
    def leaks(self) -> bool:
        """Above the limit, unless the ad of any other row is there as well."""
        often = self.held > LIMIT and self.rows >= MIN_SEEN
        return often and self.base_rate <= LIMIT


def held_ads(chunks: Iterable[tuple[Chunk, Bools]], schema: Schema) -> list[HeldAd]:
    """Every sequence of the user against the ids of the ad, the most telling first.

    One that shares the ids of a feature is compared with that feature, the others with
    all. An id of the user is told of where it is the ad's in most rows.

    Args:
        chunks: chunks with their training rows; the same rows are looked at as in
            `leaks.dependencies`.
    """
    users, ads = (
        [f for f in schema.sparse_of(side) if f.kind != "number"]
        for side in (Side.USER, Side.AD)
    )
    sequences = schema.sequences_of(Side.USER)
    values: dict[str, list[_Values]] = {f.name: [] for f in (*users, *ads)}
    items: dict[str, list[_Items]] = {f.name: [] for f in sequences}
    kinds = {f.kind for f in (*users, *ads)} | {f.kind for f in sequences}
    for chunk, rows in sampled(chunks):
        for scalar in (*users, *ads):
            values[scalar.name].append(_Values.of(chunk, scalar, rows, "text" in kinds))
        for sequence in sequences:
            items[sequence.name].append(_Items.of(chunk, sequence, rows))
    joined = {name: _Values.join(parts) for name, parts in values.items()}
    found: list[HeldAd] = []
    for user, ad in product(users, ads):
        found += _value_held(user.name, joined[user.name], ad.name, joined[ad.name])
    for sequence in sequences:
        compared = {
            f.name: joined[f.name]
            for f in ads
            if sequence.shares_ids_with in (None, f.name)
        }
        found += _items_held(sequence.name, _Items.join(items[sequence.name]), compared)
    return sorted(found, key=lambda h: h.held - h.base_rate, reverse=True)


@dataclass(frozen=True)
class _Values:
    """The ids of some rows: their keys, and where they are there, (B,) each."""

    keys: Int64s
    there: Bools

    @classmethod
    def of(
        cls,
        chunk: Chunk,
        feature: SparseFeature,
        rows: Int64s,
        as_text: bool,
    ) -> "_Values":
        """Of some rows of a chunk; a hash counts `as_text` where others are text."""
        column = chunk.columns[feature.source]
        assert isinstance(column, Column), feature.source
        values = column.values
        if feature.kind == "hex" and as_text:
            texts = [f"{value:08x}" for value in values]
            values = pl.Series(texts, dtype=pl.String)
        found = column.rows(rows)
        return cls(found.spread(keys(values), 0), found.codes >= 0)

    @classmethod
    def join(cls, parts: list["_Values"]) -> "_Values":
        """One after the other."""
        return cls(
            np.concatenate([part.keys for part in parts]),
            np.concatenate([part.there for part in parts]),
        )


@dataclass(frozen=True)
class _Items:
    """The items of some sequences that a model sees, one after the other.

    Attributes:
        keys: (N,) of each item.
        row: (N,) number of its row.
        is_last: (N,) whether it is the last of its row.
        num_rows: of the rows, those without items among them.
    """

    keys: Int64s
    row: Int64s
    is_last: Bools
    num_rows: int

    @classmethod
    def of(cls, chunk: Chunk, feature: SequenceFeature, rows: Int64s) -> "_Items":
        """Of some rows of a chunk."""
        column = chunk.columns[feature.source]
        assert isinstance(column, JaggedColumn), feature.source
        bags = column.rows(rows)
        row = np.repeat(np.arange(len(rows)), np.diff(bags.offsets))
        behind = bags.offsets[1:][row] - np.arange(len(row))  # 1: the last
        seen = behind <= feature.max_length
        found = bags.items.spread(keys(bags.items.values), 0)
        return cls(found[seen], row[seen], behind[seen] == 1, len(rows))

    @classmethod
    def join(cls, parts: list["_Items"]) -> "_Items":
        """Rows numbered on from part to part."""
        firsts = np.cumsum([0, *(part.num_rows for part in parts)])
        return cls(
            np.concatenate([part.keys for part in parts]),
            np.concatenate([p.row + f for p, f in zip(parts, firsts, strict=False)]),
            np.concatenate([part.is_last for part in parts]),
            int(firsts[-1]),
        )


def _value_held(user: str, own: _Values, ad: str, shown: _Values) -> Iterator[HeldAd]:
    """An id of the user that is the ad's in most rows."""
    rows = own.there & shown.there
    users, ads = pl.Series(own.keys[rows]), pl.Series(shown.keys[rows])
    held, count = int((users == ads).sum()), len(users)
    if held > MOST * count:
        both = _counts(users).join(_counts(ads), on="value")
        by_chance = int((both["count"] * both["count_right"]).sum())
        yield HeldAd(
            user=user,
            place="value",
            ad=ad,
            held=held / count,
            base_rate=by_chance / count**2,
            rows=count,
        )


def _counts(values: pl.Series) -> pl.DataFrame:
    counts = values.rename("value").value_counts()
    return counts.cast({"count": pl.Int64})  # products of 32 bits overflow


def _items_held(user: str, items: _Items, ads: dict[str, _Values]) -> Iterator[HeldAd]:
    """One sequence against some columns of the ad."""
    known = pl.Series(items.keys).unique().sort().to_numpy()
    codes = np.searchsorted(known, items.keys)
    size = len(known) + 1  # the last one: an ad that stands in no sequence
    pairs = items.row * size + codes
    last = pairs[items.is_last]
    # An item that stands twice in a row holds the ad once.
    pairs = np.sort(pairs)  # np.unique takes ten times as long
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    places: dict[Place, Int64s] = {"last item": last, "any item": pairs}
    has_items = np.bincount(items.row, minlength=items.num_rows) > 0
    for ad, shown in ads.items():
        place = np.searchsorted(known, shown.keys)
        is_known = np.append(known, 0)[place] == shown.keys
        own = np.where(is_known & (place < len(known)), place, size - 1)
        rows = has_items & shown.there
        counts = np.bincount(own[rows], minlength=size)
        count = max(int(rows.sum()), 1)
        for where, looked_at in places.items():
            row, item = np.divmod(looked_at[rows[looked_at // size]], size)
            yield HeldAd(
                user=user,
                place=where,
                ad=ad,
                held=int((own[row] == item).sum()) / count,
                base_rate=int(counts[item].sum()) / count**2,
                rows=int(rows.sum()),
            )


def refuse_held_ads(found: list[HeldAd]) -> None:
    """Refuse user columns that hold the ad of their own row.

    Raises:
        DataError: names them and the way out.
    """
    leaks = [h for h in found if h.leaks]
    if leaks:
        named = ", ".join(
            f"{h.user} ({h.place}) -> {h.ad} ({h.held:.3f}, by chance"
            f" {h.base_rate:.3f})"
            for h in leaks[:5]
        )
        raise DataError(
            f"user columns hold the ad of their own row: {named}; a column of the user"
            " may hold only what came before its row: leave the row itself out, or set"
            " data.allow_leaky_sides=true"
        )


def held_table(found: list[dict[str, Any]], kept: int = 10) -> Iterator[str]:
    """How often user columns hold their own ad: recall must be read beside it."""
    if not found:
        return
    yield from ("## How often a user column holds its own row's ad", "")
    yield "| user | place | ad | held | by chance | rows |"
    yield "|---|---|---|---|---|---|"
    for h in found[:kept]:
        shares = f"{h['held']:.3f} | {h['base_rate']:.3f} | {h['rows']:,}"
        yield f"| {h['user']} | {h['place']} | {h['ad']} | {shares} |"
    yield ""
