"""The check for user columns that hold the ad of their own row.

That happens if a history was written after the click. A model then finds the ad in its
input, and recall looks perfect; yet no request can bring such a value, because the ad
is what it asks for. Unlike `leaks.dependencies`, this check also looks into lists, and
at ads so rare that nothing can be said about what determines them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict

from torchrec_adrec.arrays import Bools, Int64s
from torchrec_adrec.data.column import Chunk, hex_text, jagged_column, scalar_column
from torchrec_adrec.data.keys import keys
from torchrec_adrec.data.prepare.leaks import LIMIT, MIN_SEEN, sampled
from torchrec_adrec.errors import DataError
from torchrec_adrec.schema import Schema, SequenceFeature, Side, SparseFeature

MOST = 0.5  # share of rows above which an id of the user is reported

Place = Literal["value", "last item", "any item"]


class HeldAd(BaseModel):
    """How often a user column holds its own row's value of an ad column.

    Attributes:
        user: a sequence or a scalar feature of the user.
        place: where in the user column the ad's value is looked for.
        ad: a feature of the ad.
        held: share of the rows in which the user column holds the ad's value.
        base_rate: the same share if each row had the ad of a row drawn at random. A
            high share alone says little: a long history may hold every ad there is.
        rows: the rows in which neither column is missing.
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
        """Whether the share is above the limit, and that of random ads is not."""
        is_held = self.held > LIMIT and self.rows >= MIN_SEEN
        return is_held and self.base_rate <= LIMIT


def held_ads(chunks: Iterable[tuple[Chunk, Bools]], schema: Schema) -> list[HeldAd]:
    """Measure how often the columns of the user hold the ad of their own row.

    A sequence that shares the ids of a feature is compared with this feature, every
    other one with all ids of the ad. A scalar id of the user is compared with all of
    them too, but only reported if it equals the ad's in most rows.

    Args:
        chunks: chunks with the mask of their training rows; the same rows are used as
            in `leaks.dependencies`.
        schema: says which column is whose.

    Returns:
        The compared columns, those furthest above their base rate first.
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
    # Chunks have codes of their own; only keys can be compared across chunks.
    joined = {name: _Values.join(parts) for name, parts in values.items()}
    held: list[HeldAd] = []
    for user, ad in product(users, ads):
        held += _value_held(user.name, joined[user.name], ad.name, joined[ad.name])
    for sequence in sequences:
        compared = {
            f.name: joined[f.name]
            for f in ads
            if sequence.shares_ids_with in (None, f.name)
        }
        held += _items_held(sequence.name, _Items.join(items[sequence.name]), compared)
    return sorted(held, key=lambda h: h.held - h.base_rate, reverse=True)


@dataclass(frozen=True)
class _Values:
    """The ids of some rows in a scalar column.

    Attributes:
        keys: (B,) the key (`data.keys`) of each row's id.
        present: (B,) whether the row has an id.
    """

    keys: Int64s
    present: Bools

    @classmethod
    def of(
        cls, chunk: Chunk, feature: SparseFeature, rows: Int64s, as_text: bool
    ) -> "_Values":
        """Read some rows of a chunk.

        Args:
            chunk: the chunk.
            feature: the column.
            rows: the chosen rows.
            as_text: whether hexadecimal ids get the keys of their text. Where other
                columns hold text, equal ids could not be recognised otherwise.
        """
        column = scalar_column(chunk.columns, feature.source)
        values = column.values
        if feature.kind == "hex" and as_text:
            values = hex_text(values)
        chosen = column.rows(rows)
        return cls(chosen.spread(keys(values), 0), chosen.codes >= 0)

    @classmethod
    def join(cls, parts: list["_Values"]) -> "_Values":
        """Put the rows of several chunks one after the other."""
        return cls(
            np.concatenate([part.keys for part in parts]),
            np.concatenate([part.present for part in parts]),
        )


@dataclass(frozen=True)
class _Items:
    """The items of some rows in a sequence, as far as a model sees them.

    Attributes:
        keys: (N,) the key (`data.keys`) of each item, one row after the other.
        row: (N,) the number of the item's row.
        is_last: (N,) whether the item is the last one of its row.
        num_rows: the number of rows, including those without items.
    """

    keys: Int64s
    row: Int64s
    is_last: Bools
    num_rows: int

    @classmethod
    def of(cls, chunk: Chunk, feature: SequenceFeature, rows: Int64s) -> "_Items":
        """Read the last `max_length` items of some rows of a chunk."""
        bags = jagged_column(chunk.columns, feature.source).rows(rows)
        row = np.repeat(np.arange(len(rows)), np.diff(bags.offsets))
        from_end = bags.offsets[1:][row] - np.arange(len(row))  # the last item has 1
        kept = from_end <= feature.max_length
        item_keys = bags.items.spread(keys(bags.items.values), 0)
        return cls(item_keys[kept], row[kept], from_end[kept] == 1, len(rows))

    @classmethod
    def join(cls, parts: list["_Items"]) -> "_Items":
        """Put the rows of several chunks one after the other, and number them anew."""
        firsts = np.cumsum([0, *(part.num_rows for part in parts)])
        return cls(
            np.concatenate([part.keys for part in parts]),
            np.concatenate([p.row + f for p, f in zip(parts, firsts, strict=False)]),
            np.concatenate([part.is_last for part in parts]),
            int(firsts[-1]),
        )


def _value_held(
    user: str, user_ids: _Values, ad: str, ad_ids: _Values
) -> Iterator[HeldAd]:
    """Measure an id of the user, if it is the ad's in most rows."""
    rows = user_ids.present & ad_ids.present
    users, ads = pl.Series(user_ids.keys[rows]), pl.Series(ad_ids.keys[rows])
    held, count = int((users == ads).sum()), len(users)
    if held > MOST * count:
        # The chance that the ids of two rows drawn at random are equal: the sum over
        # the ids of the product of their shares.
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
    """Measure one sequence against some columns of the ad.

    Keys become codes, small numbers from 0, so that one whole number can stand for a
    pair of a row and an item, and sorting these finds repeated pairs.
    """
    known = pl.Series(items.keys).unique().sort().to_numpy()
    item_codes = np.searchsorted(known, items.keys)
    size = len(known) + 1  # the last code is for all ads that are in no sequence
    pairs = items.row * size + item_codes
    last = pairs[items.is_last]
    # An item that occurs twice in a row must count once, or shares would exceed 1.
    pairs = np.sort(pairs)  # np.unique takes ten times as long
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    places: dict[Place, Int64s] = {"last item": last, "any item": pairs}
    has_items = np.bincount(items.row, minlength=items.num_rows) > 0
    for ad, ids in ads.items():
        position = np.searchsorted(known, ids.keys)
        is_known = np.append(known, 0)[position] == ids.keys
        ad_codes = np.where(is_known & (position < len(known)), position, size - 1)
        rows = has_items & ids.present
        counts = np.bincount(ad_codes[rows], minlength=size)
        count = max(int(rows.sum()), 1)
        for place, place_pairs in places.items():
            row, item = np.divmod(place_pairs[rows[place_pairs // size]], size)
            yield HeldAd(
                user=user,
                place=place,
                ad=ad,
                held=int((ad_codes[row] == item).sum()) / count,
                base_rate=int(counts[item].sum()) / count**2,
                rows=int(rows.sum()),
            )


def refuse_held_ads(held: list[HeldAd]) -> None:
    """Refuse user columns that hold the ad of their own row.

    Raises:
        DataError: names the columns and the ways out.
    """
    leaks = [h for h in held if h.leaks]
    if leaks:
        named = ", ".join(
            f"{h.user} ({h.place}) -> {h.ad} ({h.held:.3f}, by chance"
            f" {h.base_rate:.3f})"
            for h in leaks[:5]
        )
        raise DataError(
            f"user columns hold the ad of their own row: {named}; a user column may"
            " hold only what came before its row: leave the row itself out of it, or"
            " set data.allow_leaky_sides=true"
        )


def held_table(held: list[dict[str, Any]], kept: int = 10) -> Iterator[str]:
    """Yield the lines of a Markdown table of some `HeldAd`.

    Args:
        held: the dumped models, the most telling first.
        kept: the number of rows in the table.
    """
    if not held:
        return
    yield from ("## How often a user column holds the ad of its own row", "")
    yield "The more often it does, the less a high recall means. *By chance* is the"
    yield "same share if each row had the ad of a row drawn at random."
    yield ""
    yield "| user column | place | ad column | share of rows | by chance | rows |"
    yield "|---|---|---|---|---|---|"
    for h in held[:kept]:
        shares = f"{h['held']:.3f} | {h['base_rate']:.3f} | {h['rows']:,}"
        yield f"| {h['user']} | {h['place']} | {h['ad']} | {shares} |"
    yield ""
