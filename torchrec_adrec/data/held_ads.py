"""Sequences that hold the ad of their own row: a history written after the click.

A model then finds the ad in its input, and recall looks perfect. No request can bring
such a list, because the ad is what it asks for.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from torchrec_adrec.data.column import Bags, Chunk, Column
from torchrec_adrec.data.keys import keys
from torchrec_adrec.data.leaks import LIMIT, MIN_SEEN, sampled
from torchrec_adrec.errors import DataError
from torchrec_adrec.schema import Schema, SequenceFeature, Side, SparseFeature

Keys = NDArray[np.int64]
Place = Literal["last item", "any item"]


class HeldAd(BaseModel):
    """How often a sequence holds its own row's value of an ad column.

    Attributes:
        place: where it is looked for.
        held: share of the rows in which it is there.
        base_rate: the same, were every sequence beside the ad of a row drawn at random.
        rows: rows with a sequence that is not empty and a value of the ad column.
    """

    model_config = ConfigDict(frozen=True)

    sequence: str
    place: Place
    ad: str
    held: float
    base_rate: float
    rows: int

    @property
    def leaks(self) -> bool:
        """Above the limit, unless sequences of any other row were so as well."""
        often = self.held > LIMIT and self.rows >= MIN_SEEN
        return often and self.base_rate <= LIMIT


def held_ads(
    chunks: Iterable[tuple[Chunk, NDArray[np.bool_]]], schema: Schema
) -> list[HeldAd]:
    """Every sequence against the ids of the ad, the most telling first.

    A sequence that shares the ids of a feature is compared with that one, another with
    all of them.

    Args:
        chunks: chunks with their training rows; the same rows are looked at as in
            `leaks.dependencies`.
    """
    sequences = schema.sequences_of(Side.USER)
    if not sequences:
        return []
    ads = [f for f in schema.sparse_of(Side.AD) if f.kind != "number"]
    values: dict[str, list[Keys]] = {f.name: [] for f in ads}
    there: dict[str, list[NDArray[np.bool_]]] = {f.name: [] for f in ads}
    items: dict[str, list[_Items]] = {f.name: [] for f in sequences}
    for chunk, rows in sampled(chunks):
        for ad in ads:
            found = _values(chunk, ad).rows(rows)
            values[ad.name].append(found.spread(keys(found.values), 0))
            there[ad.name].append(found.codes >= 0)
        for feature in sequences:
            items[feature.name].append(_Items.of(chunk, feature, rows))
    measured = [
        one
        for feature in sequences
        for one in _measure(
            _Items.join(items[feature.name]),
            feature.name,
            {
                f.source: (
                    np.concatenate(values[f.name]),
                    np.concatenate(there[f.name]),
                )
                for f in ads
                if feature.shares in (None, f.name)
            },
        )
    ]
    return sorted(measured, key=lambda h: h.held - h.base_rate, reverse=True)


def _values(chunk: Chunk, feature: SparseFeature) -> Column:
    """The ad's values as text, as they may stand in a sequence."""
    column = chunk.columns[feature.source]
    assert isinstance(column, Column), feature.source
    if feature.kind != "hex":
        return column
    texts = [f"{value:08x}" for value in column.values]
    return Column(column.codes, pl.Series(texts, dtype=pl.String))


@dataclass(frozen=True)
class _Items:
    """The items of some sequences that a model sees, one after the other.

    Attributes:
        keys: (N,) of each item.
        row: (N,) number of its row.
        is_last: (N,) whether it is the last of its row.
        num_rows: of the rows, those without items among them.
    """

    keys: Keys
    row: NDArray[np.int64]
    is_last: NDArray[np.bool_]
    num_rows: int

    @classmethod
    def of(
        cls, chunk: Chunk, feature: SequenceFeature, rows: NDArray[np.int64]
    ) -> "_Items":
        """Of some rows of a chunk."""
        column = chunk.columns[feature.source]
        assert isinstance(column, Bags), feature.source
        bags = column.rows(rows)
        lengths = np.diff(bags.offsets)
        row = np.repeat(np.arange(len(rows)), lengths)
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


def _measure(
    items: _Items, name: str, ads: dict[str, tuple[Keys, NDArray[np.bool_]]]
) -> Iterator[HeldAd]:
    """One sequence against some columns of the ad: their keys, and where they are."""
    known, codes = np.unique(items.keys, return_inverse=True)
    size = len(known) + 1  # the last one: an ad that stands in no sequence
    has_items = np.bincount(items.row, minlength=items.num_rows) > 0
    # An item that stands twice in a row holds the ad once.
    pairs = np.unique(items.row * size + codes)
    last = items.row[items.is_last] * size + codes[items.is_last]
    places: dict[Place, Keys] = {"last item": last, "any item": pairs}
    for ad, (values, there) in ads.items():
        place = np.searchsorted(known, values).clip(max=max(len(known) - 1, 0))
        found = known[place] == values if len(known) else np.zeros_like(there)
        own = np.where(found, place, size - 1)
        rows = has_items & there
        counts = np.bincount(own[rows], minlength=size)
        counts[-1] = 0
        count = max(int(rows.sum()), 1)
        for where, looked_at in places.items():
            row, item = np.divmod(looked_at[rows[looked_at // size]], size)
            yield HeldAd(
                sequence=name,
                place=where,
                ad=ad,
                held=int((own[row] == item).sum()) / count,
                base_rate=int(counts[item].sum()) / count**2,
                rows=int(rows.sum()),
            )


def refuse_held_ads(found: list[HeldAd]) -> None:
    """Refuse sequences that hold the ad of their own row.

    Raises:
        DataError: names them and the way out.
    """
    leaks = [h for h in found if h.leaks]
    if leaks:
        named = ", ".join(
            f"{h.sequence} ({h.place}) -> {h.ad} ({h.held:.3f}, by chance"
            f" {h.base_rate:.3f})"
            for h in leaks[:5]
        )
        raise DataError(
            f"sequences hold the ad of their own row: {named}; a sequence must hold"
            " only what came before its row: leave the row itself out, or set"
            " data.allow_leaky_sides=true"
        )


def held_table(found: list[dict[str, Any]], kept: int = 10) -> Iterator[str]:
    """How often sequences hold their own ad: recall must be read beside it."""
    if found:
        yield from ("## How often a sequence holds its own row's ad", "")
        yield "| sequence | place | ad | held | by chance | rows |"
        yield "|---|---|---|---|---|---|"
    for h in found[:kept]:
        shares = f"{h['held']:.3f} | {h['base_rate']:.3f} | {h['rows']:,}"
        yield f"| {h['sequence']} | {h['place']} | {h['ad']} | {shares} |"
    if found:
        yield ""
