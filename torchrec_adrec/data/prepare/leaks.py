"""Measurements of leaks: columns that would make a result too good to be true.

- A user column that determines an ad column. The in-batch softmax then only matches
  ids: recall looks perfect, and nothing was learned that a request could use.
- A column that alone predicts the label, or whose values belong to a time. It probably
  carries the future, which a request cannot.

Both are measured before anything is trained. See also `held_ads` and `row_hashes`.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict

from torchrec_adrec.arrays import Bools, Int64s
from torchrec_adrec.data.catalog import value_hashes
from torchrec_adrec.data.column import Chunk, Column, JaggedColumn
from torchrec_adrec.data.keys import keys
from torchrec_adrec.data.prepare.split_counts import SplitCounts
from torchrec_adrec.data.prepare.vocabulary import UNKNOWN
from torchrec_adrec.errors import DataError
from torchrec_adrec.schema import Schema, Side

LAST = " (last item)"  # behind the name of a user's list
MIN_SEEN = 5  # rows; a value that occurs once determines everything
LIMIT = 0.95  # share of rows above which a dependency is a leak
SAMPLE_ROWS = 200_000  # shares to two digits; 5 x 34 pairs of columns take a second
MIN_ROWS = 100  # held-out rows; from fewer, an AUC may be anything
TELLS_LABEL = 0.9  # AUC of one column alone; real columns stay below 0.75


class Dependency(BaseModel):
    """How well a user column determines an ad column.

    Attributes:
        user: the user's raw column.
        ad: the ad's raw column.
        determined: the share of rows in which the ad column has the value that is the
            most frequent one for the row's user value.
        base_rate: the share of the ad column's most frequent value in the same rows.
        rows: the rows whose user value is not missing and occurs at least `MIN_SEEN`
            times.
    """

    model_config = ConfigDict(frozen=True)

    user: str
    ad: str
    determined: float
    base_rate: float
    rows: int

    @property
    def leaks(self) -> bool:
        """Whether it is above the limit, and always guessing one value is not."""
        return self.determined > LIMIT and self.base_rate <= LIMIT


class FutureColumn(BaseModel):
    """A column that seems to know what a request cannot.

    Attributes:
        name: the feature.
        why: `tells the label`: its AUC alone is above `TELLS_LABEL`; `tells the time`:
            nearly every value in the training rows is known, and nearly none in the
            test rows.
        figure: the AUC, or the share of unknown values in the test rows.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    why: Literal["tells the label", "tells the time"]
    figure: float


def dependencies(
    chunks: Iterable[tuple[Chunk, Bools]], schema: Schema
) -> list[Dependency]:
    """Measure how well every user column determines every ad column.

    A sequence is represented by its last item, and an ad's set by all of its ids.

    Args:
        chunks: chunks with the mask of their training rows, of which the first
            `SAMPLE_ROWS` are used.
        schema: says which column is whose.

    Returns:
        All pairs, those furthest above their base rate first.
    """
    users, ads = (
        {f.source: f.source for f in schema.sparse_of(side)}
        | {f.source: f.source for f in schema.vectors_of(side)}
        for side in (Side.USER, Side.AD)
    )
    ads |= {f.source: f.source for f in schema.sequences_of(Side.AD)}
    lists = schema.sequences_of(Side.USER)
    users |= {f"{f.source}{LAST}": f.source for f in lists}
    return measured(_sample(chunks, users | ads), list(users), list(ads))


def measured(
    rows: pl.DataFrame, users: Sequence[str], ads: Sequence[str]
) -> list[Dependency]:
    """Measure how well each of the user's columns determines each of the ad's.

    Args:
        rows: a value a row, null where it is missing.
        users: the user's columns.
        ads: the ad's columns.

    Returns:
        All pairs, those furthest above their base rate first.
    """
    numbers = rows.select(pl.all().rank("dense").cast(pl.UInt32))
    with ThreadPoolExecutor() as pool:
        parts = pool.map(lambda user: _measure(numbers, user, ads), users)
        pairs = list(chain.from_iterable(parts))
    return sorted(pairs, key=lambda d: d.determined - d.base_rate, reverse=True)


def _sample(
    chunks: Iterable[tuple[Chunk, Bools]], names: dict[str, str]
) -> pl.DataFrame:
    """Return the sampled rows, each value as its key, null where missing."""
    parts = [
        pl.DataFrame(
            {
                n: _row_keys(chunk.columns[source].rows(rows), n.endswith(LAST))
                for n, source in names.items()
            }
        )
        for chunk, rows in sampled(chunks)
    ]
    return pl.concat(parts)


def sampled(
    chunks: Iterable[tuple[Chunk, Bools]],
) -> Iterator[tuple[Chunk, Int64s]]:
    """Yield the first `SAMPLE_ROWS` training rows: each chunk with its chosen rows."""
    count = 0
    for chunk, train in chunks:
        rows = np.flatnonzero(train)[: SAMPLE_ROWS - count]
        yield chunk, rows
        count += len(rows)
        if count == SAMPLE_ROWS:
            break


def _row_keys(column: Column | JaggedColumn, last: bool) -> pl.Series:
    """Return a key of each row's value, null where missing.

    Args:
        column: the rows.
        last: whether a list counts as its last item alone.
    """
    if isinstance(column, JaggedColumn) and not last:
        is_empty = np.diff(column.offsets) == 0
        return pl.Series(value_hashes(column)).set(pl.Series(is_empty), None)
    scalars = column.last_items() if isinstance(column, JaggedColumn) else column
    row_keys = pl.Series(scalars.spread(keys(scalars.values), 0))
    return row_keys.set(pl.Series(scalars.codes < 0), None)


def _measure(sample: pl.DataFrame, user: str, ads: Sequence[str]) -> list[Dependency]:
    """Measure one user column against all ad columns."""
    is_frequent = pl.len().over("user") >= MIN_SEEN
    rows = sample.select(pl.col(user).alias("user"), *ads).drop_nulls("user")
    rows = rows.filter(is_frequent).fill_null(0)
    return [_pair(rows, user, ad) for ad in ads]


def _pair(rows: pl.DataFrame, user: str, ad: str) -> Dependency:
    users, ads = rows["user"].to_numpy(), rows[ad].to_numpy()
    width = int(ads.max(initial=0)) + 1
    # `np.unique` sorts the pairs, so those of one user value are neighbours, and the
    # count of its most frequent ad value is a maximum over neighbours.
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


def refuse_leaky_sides(pairs: list[Dependency], sides: str = "") -> None:
    """Refuse sides of which the user's gives the ad's away.

    Args:
        pairs: what `dependencies` returned.
        sides: the settings that say which column is whose (`DataSet.sides`).

    Raises:
        DataError: names the pairs and the ways out.
    """
    leaks = [d for d in pairs if d.leaks]
    if leaks:
        named = ", ".join(f"{d.user} -> {d.ad} ({d.determined:.3f})" for d in leaks[:5])
        fix = f"put both ends on one side ({sides}), or " if sides else ""
        raise DataError(
            f"user columns give ad columns away ({len(leaks)} pairs): {named}; {fix}set"
            " data.allow_leaky_sides=true"
        )


def column_aucs(tally: SplitCounts) -> dict[str, float]:
    """Measure how well each column alone predicts the click, by feature.

    Each held-out row is scored with the click rate of its value in training.
    """
    return {
        name: _auc(*_rows_and_clicks(tally, "train", name), *_held_out(tally, name))
        for name in _features(tally)
    }


def _features(tally: SplitCounts) -> Iterator[str]:
    return (n.split(":", 2)[2] for n in tally.counts if n.startswith("rows:train:"))


def _rows_and_clicks(tally: SplitCounts, split: str, name: str) -> tuple[Any, Any]:
    empty = np.zeros_like(tally.counts[f"rows:train:{name}"])
    rows = tally.counts.get(f"rows:{split}:{name}", empty)
    return rows, tally.counts.get(f"clicks:{split}:{name}", empty)


def _held_out(tally: SplitCounts, name: str) -> tuple[Any, Any]:
    valid, test = (_rows_and_clicks(tally, split, name) for split in ("valid", "test"))
    return valid[0] + test[0], valid[1] + test[1]


def _auc(rows: Any, clicks: Any, held_rows: Any, held_clicks: Any) -> float:
    """Return the AUC of the values' click rates.

    Rates are drawn towards the mean by 20 rows, so that a value that occurs once does
    not score like a certainty.
    """
    mean = clicks.sum() / max(rows.sum(), 1)
    scores = (clicks + 20 * mean) / (rows + 20)
    return grouped_auc(scores, held_rows, held_clicks)


def grouped_auc(scores: Any, rows: Any, clicks: Any) -> float:
    """Return the AUC of groups of rows that share a score; equal scores count half.

    Args:
        scores: (G,) by group.
        rows: (G,) the rows of each group.
        clicks: (G,) those with a click.
    """
    _, group = np.unique(scores, return_inverse=True)
    positive = np.bincount(group, weights=clicks)
    negative = np.bincount(group, weights=rows - clicks)
    below = np.cumsum(negative) - negative / 2
    pairs = positive.sum() * negative.sum()
    return float((positive * below).sum() / pairs) if pairs else float("nan")


def future_columns(tally: SplitCounts, aucs: dict[str, float]) -> list[FutureColumn]:
    """Find the columns that seem to know what a request cannot."""
    suspects = [
        FutureColumn(name=name, why="tells the label", figure=auc)
        for name, auc in aucs.items()
        if auc > TELLS_LABEL and _held_out(tally, name)[0].sum() >= MIN_ROWS
    ]
    for feature in tally.schema.sparse:
        train, _ = _rows_and_clicks(tally, "train", feature.name)
        test, _ = _rows_and_clicks(tally, "test", feature.name)
        if test.sum() >= MIN_ROWS and train.sum():
            known = 1 - train[UNKNOWN] / train.sum()
            unknown = float(test[UNKNOWN] / test.sum())
            if known > LIMIT and unknown > LIMIT:
                why: Literal["tells the time"] = "tells the time"
                suspects.append(
                    FutureColumn(name=feature.name, why=why, figure=unknown)
                )
    return suspects
