"""What would make a result too good to be true, measured before anything is trained.

A user column that names the ad: the in-batch softmax is then solved by matching ids,
recall looks perfect, and nothing was learned that a request could use. A column that
alone tells the label, or that tells the time: it carries the future. Rows that stand in
two splits: the test was trained on.
"""

from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict

from torchrec_adrec.arrays import Bools, Int64s, UInt64s
from torchrec_adrec.data.column import Chunk, Column, JaggedColumn
from torchrec_adrec.data.keys import keys, salt, splitmix
from torchrec_adrec.data.prepare.split_counts import SplitCounts
from torchrec_adrec.data.prepare.vocabulary import UNKNOWN
from torchrec_adrec.errors import DataError
from torchrec_adrec.schema import Schema, Side

MIN_SEEN = 5  # a value seen once determines everything
LIMIT = 0.95
SAMPLE_ROWS = 200_000  # shares to two digits; 5 x 34 pairs of columns take a second
MIN_ROWS = 100  # held out; of fewer an AUC may be anything
TELLS_LABEL = 0.9  # AUC of one column alone; real columns stay below .75
COMPARED_ROWS = 2_000_000  # of more, every second, third ... by hash: a fair sample


class Dependency(BaseModel):
    """One pair of raw columns.

    Attributes:
        determined: share of rows in which the ad column has the value that is most
            frequent for the row's user value.
        base_rate: share of the ad column's most frequent value in the same rows.
        rows: rows whose user value is there and was seen at least `MIN_SEEN` times.
    """

    model_config = ConfigDict(frozen=True)

    user: str
    ad: str
    determined: float
    base_rate: float
    rows: int

    @property
    def leaks(self) -> bool:
        """Above the limit, unless always guessing one value is already there."""
        return self.determined > LIMIT and self.base_rate <= LIMIT


class FutureColumn(BaseModel):
    """A column that seems to know what a request cannot.

    Attributes:
        why: `tells the label`: its AUC alone is above `TELLS_LABEL`; `tells the time`:
            in training nearly every value is known, in the test nearly none.
        figure: the AUC, or the share of unknown values in the test.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    why: Literal["tells the label", "tells the time"]
    figure: float


def dependencies(
    chunks: Iterable[tuple[Chunk, Bools]], schema: Schema
) -> list[Dependency]:
    """Every user column against every ad column, the strongest first.

    Of a sequence its last item is looked at.

    Args:
        chunks: chunks with their training rows, of which `SAMPLE_ROWS` are looked at.
    """
    users, ads = (
        {f.source: f.source for f in schema.sparse_of(side)}
        for side in (Side.USER, Side.AD)
    )
    lists = schema.sequences_of(Side.USER)
    users |= {f"{f.source} (last item)": f.source for f in lists}
    sample = _sample(chunks, users | ads)
    with ThreadPoolExecutor() as pool:
        measured = pool.map(lambda user: _measure(sample, user, list(ads)), users)
        found = list(chain.from_iterable(measured))
    return sorted(found, key=lambda d: d.determined - d.base_rate, reverse=True)


def _sample(
    chunks: Iterable[tuple[Chunk, Bools]], names: dict[str, str]
) -> pl.DataFrame:
    """The first training rows, every value as a small number; null where missing."""
    parts = [
        pl.DataFrame({n: _keys_of(chunk, source, rows) for n, source in names.items()})
        for chunk, rows in sampled(chunks)
    ]
    return pl.concat(parts).select(pl.all().rank("dense").cast(pl.UInt32))


def sampled(
    chunks: Iterable[tuple[Chunk, Bools]],
) -> Iterator[tuple[Chunk, Int64s]]:
    """The first `SAMPLE_ROWS` training rows: chunks with the chosen rows of each."""
    rows = 0
    for chunk, train in chunks:
        chosen = np.flatnonzero(train)[: SAMPLE_ROWS - rows]
        yield chunk, chosen
        rows += len(chosen)
        if rows == SAMPLE_ROWS:
            break


def _keys_of(chunk: Chunk, name: str, rows: Int64s) -> pl.Series:
    """The key (`data.keys`) of some rows' values, null where missing.

    Of a list, that of its last item.
    """
    column = chunk.columns[name]
    found = (column.last_items() if isinstance(column, JaggedColumn) else column).rows(
        rows
    )
    values = pl.Series(found.spread(keys(found.values), 0))
    return values.set(pl.Series(found.codes < 0), None)


def _measure(sample: pl.DataFrame, user: str, ads: list[str]) -> list[Dependency]:
    """One user column against all ad columns."""
    often = pl.len().over("user") >= MIN_SEEN
    rows = sample.select(pl.col(user).alias("user"), *ads).drop_nulls("user")
    rows = rows.filter(often).fill_null(0)
    return [_pair(rows, user, ad) for ad in ads]


def _pair(rows: pl.DataFrame, user: str, ad: str) -> Dependency:
    users, ads = rows["user"].to_numpy(), rows[ad].to_numpy()
    width = int(ads.max(initial=0)) + 1
    # Sorted: the rows of a user value stand together, and of each of its ad values.
    pairs, counts = np.unique(users.astype(np.int64) * width + ads, return_counts=True)
    first = np.flatnonzero(np.diff(pairs // width, prepend=-1))
    best = np.maximum.reduceat(counts, first).sum() if len(first) else 0
    most = np.bincount(ads).max() if len(ads) else 0
    return Dependency(
        user=user,
        ad=ad,
        determined=int(best) / max(len(rows), 1),
        base_rate=int(most) / max(len(rows), 1),
        rows=len(rows),
    )


def refuse_leaky_sides(found: list[Dependency], sides: str = "") -> None:
    """Refuse sides between which a column gives the ad away.

    Args:
        sides: the settings that say which column is whose (`DataSet.sides`).

    Raises:
        DataError: names the pairs and the way out.
    """
    leaks = [d for d in found if d.leaks]
    if leaks:
        named = ", ".join(f"{d.user} -> {d.ad} ({d.determined:.3f})" for d in leaks[:5])
        fix = f"put both ends on one side ({sides}), or " if sides else ""
        raise DataError(
            f"{len(leaks)} user columns give an ad column away: {named}; {fix}set"
            " data.allow_leaky_sides=true"
        )


def column_aucs(tally: SplitCounts) -> dict[str, float]:
    """How well each column alone tells the click, by feature.

    The click rates of its values in training, as scores of the held-out rows.
    """
    return {
        name: _auc(*_of(tally, "train", name), *_held_out(tally, name))
        for name in _features(tally)
    }


def _features(tally: SplitCounts) -> Iterator[str]:
    return (n.split(":", 2)[2] for n in tally.counts if n.startswith("rows:train:"))


def _of(tally: SplitCounts, split: str, name: str) -> tuple[Any, Any]:
    empty = np.zeros_like(tally.counts[f"rows:train:{name}"])
    rows = tally.counts.get(f"rows:{split}:{name}", empty)
    return rows, tally.counts.get(f"clicks:{split}:{name}", empty)


def _held_out(tally: SplitCounts, name: str) -> tuple[Any, Any]:
    valid, test = (_of(tally, split, name) for split in ("valid", "test"))
    return valid[0] + test[0], valid[1] + test[1]


def _auc(rows: Any, clicks: Any, held_rows: Any, held_clicks: Any) -> float:
    """AUC of per-value click rates, shrunk by 20 rows of the mean; ties count half."""
    mean = clicks.sum() / max(rows.sum(), 1)
    scores = (clicks + 20 * mean) / (rows + 20)
    _, group = np.unique(scores, return_inverse=True)
    positive = np.bincount(group, weights=held_clicks)
    negative = np.bincount(group, weights=held_rows - held_clicks)
    below = np.cumsum(negative) - negative / 2
    pairs = positive.sum() * negative.sum()
    return float((positive * below).sum() / pairs) if pairs else float("nan")


def future_columns(tally: SplitCounts, aucs: dict[str, float]) -> list[FutureColumn]:
    """The columns that seem to know what a request cannot."""
    found = [
        FutureColumn(name=name, why="tells the label", figure=auc)
        for name, auc in aucs.items()
        if auc > TELLS_LABEL and _held_out(tally, name)[0].sum() >= MIN_ROWS
    ]
    for feature in tally.schema.sparse:
        train, test = (_of(tally, s, feature.name)[0] for s in ("train", "test"))
        if test.sum() >= MIN_ROWS and train.sum():
            known = 1 - train[UNKNOWN] / train.sum()
            unknown = float(test[UNKNOWN] / test.sum())
            if known > LIMIT and unknown > LIMIT:
                why: Literal["tells the time"] = "tells the time"
                found.append(FutureColumn(name=feature.name, why=why, figure=unknown))
    return found


def row_hashes(chunk: Chunk) -> UInt64s:
    """One hash per row over all raw columns, labels and the time, (B,).

    Equal rows have equal hashes: the sum over columns of a random number per value
    (Zobrist hashing), mixed. In a list the place counts too.
    """
    return splitmix(_hash_sums(chunk, chunk.columns, chunk.labels, chunk.time))


def both_hashes(chunk: Chunk, left_out: Collection[str]) -> tuple[UInt64s, UInt64s]:
    """`row_hashes`, and what they are without the time and some columns."""
    whole = _hash_sums(chunk, chunk.columns, chunk.labels, chunk.time)
    names = [name for name in chunk.columns if name in left_out]
    return splitmix(whole), splitmix(whole - _hash_sums(chunk, names, (), chunk.time))


def _hash_sums(
    chunk: Chunk,
    columns: Iterable[str],
    labels: Iterable[str],
    time: Int64s | None,
) -> UInt64s:
    total = np.zeros(chunk.num_rows, dtype=np.uint64)
    for name in columns:
        column = chunk.columns[name]
        if isinstance(column, Column):
            total += _value_hashes(column, name)
        else:
            total += splitmix(_list_hashes(column, name))
    for name in labels:
        bits = chunk.labels[name].view(np.uint32).astype(np.uint64)
        total += splitmix(bits ^ salt(name))
    if time is not None:
        total += splitmix(time.view(np.uint64) ^ salt("time"))
    return total


def _value_hashes(column: Column, name: str) -> UInt64s:
    mixed = splitmix(keys(column.values).view(np.uint64) ^ salt(name))
    return column.spread(mixed, salt(name))


def _list_hashes(bags: JaggedColumn, name: str) -> UInt64s:
    """The sum of each row's items, each mixed with its place."""
    lengths = np.diff(bags.offsets)
    place = np.arange(bags.offsets[-1]) - np.repeat(bags.offsets[:-1], lengths)
    mixed = splitmix(_value_hashes(bags.items, name) + place.astype(np.uint64))
    sums = np.append(np.uint64(0), np.cumsum(mixed, dtype=np.uint64))
    return np.asarray(sums[bags.offsets[1:]] - sums[bags.offsets[:-1]])


def kept_hashes(hashes: UInt64s, rows: int) -> UInt64s:
    """The ones to compare, chosen by the hash itself: all, up to COMPARED_ROWS rows."""
    every = np.uint64(rows // COMPARED_ROWS + 1)
    return hashes if every == 1 else hashes[hashes % every == 0]


def repeated(train: UInt64s, held_out: UInt64s) -> dict[str, Any]:
    """How many held-out rows are equal to a training row in what was hashed."""
    seen = pl.Series(held_out).is_in(pl.Series(train).implode())
    return {"compared": len(held_out), "also_in_train": int(seen.sum())}
