"""Rows of users as if they were new, and had come with some clicks alone.

Shape letters: B users, R rows, U all users, N ads, L places of a history.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy.sparse import csr_matrix

from torchrec_adrec.arrays import Bools, Int32s
from torchrec_adrec.config.train import RetrievalConfig
from torchrec_adrec.data.prepare.encoder import PAD, Encoder
from torchrec_adrec.data.prepare.vocabulary import FIRST, MISSING, UNKNOWN
from torchrec_adrec.evaluation.classics.protocol import NewUsersError
from torchrec_adrec.models.features_read import reads
from torchrec_adrec.schema import (
    USER_KEY,
    Schema,
    SequenceFeature,
    Side,
)

SHARE_IN_ORDER = 0.5  # a repeated click may turn two items of a history round


@dataclass(frozen=True)
class NewUsers:
    """What turns the rows of users into those of new ones.

    Attributes:
        history: the users' list of the ads' items.
        items: (N,) the id of each ad's item.
        names: the features that name the user, all of them unknown of a new one.
        as_prepared: the share of users whose clicks make the very history that
            `prepare` has written. Others clicked an ad twice, or came with a list.
    """

    history: SequenceFeature
    items: Int32s
    names: tuple[str, ...]
    as_prepared: float

    @classmethod
    def of(
        cls,
        encoder: Encoder,
        config: RetrievalConfig,
        items: Int32s,
        rows: pl.DataFrame,
        known: csr_matrix,
    ) -> "NewUsers":
        """Find what has to be changed.

        Args:
            encoder: of the data.
            config: says which features the towers read.
            items: (N,) the id of each ad's item.
            rows: (R,) encoded, one of a user.
            known: (R, N) what each of them has clicked before.

        Raises:
            NewUsersError: the towers read what would still tell of a user's other
                clicks, or the clicks are in another order than the histories.
        """
        history = history_read(encoder.schema, config)
        names = naming_features(encoder, rows)
        _refuse_what_stays(encoder.schema, config, history, names)
        prepared = rows.select(history.columns).to_numpy()
        again = history_columns(known, items, history.max_length)
        is_same = (prepared == again).all(axis=1)
        in_order = is_same[_same_items(prepared, again)]
        if len(in_order) and in_order.mean() < SHARE_IN_ORDER:
            raise NewUsersError(
                f"{1 - in_order.mean():.0%} of the users have clicks in another order"
                f" than `{history.name}` has them, so that their latest ones are not"
                " known; sort the raw rows by time and prepare them again"
            )
        return cls(history, items, names, float(is_same.mean()))

    def rows(self, rows: pl.DataFrame, clicks: csr_matrix) -> pl.DataFrame:
        """Give rows (B,) the clicks (B, N) as their history, and no name."""
        ids = history_columns(clicks, self.items, self.history.max_length)
        return rows.with_columns(
            *(pl.lit(UNKNOWN, dtype=pl.Int32).alias(name) for name in self.names),
            *(pl.Series(n, ids[:, i]) for i, n in enumerate(self.history.columns)),
        )


def history_read(schema: Schema, config: RetrievalConfig) -> SequenceFeature:
    """Return the history of the ads' items that the towers read.

    Raises:
        NewUsersError: they read none.
    """
    history = schema.history
    if history is None or not reads(config, history.name):
        raise NewUsersError(
            "the towers read no list of the user's earlier ads, which alone tells two"
            " new users apart; give the data one (`history: {of: item}`)"
        )
    return history


def history_columns(clicks: csr_matrix, items: Int32s, length: int) -> Int32s:
    """Make the columns of a history as `prepare` lays them out, (B, L).

    The latest items, the oldest of them in the first place, and `PAD` behind the last.

    Args:
        clicks: (B, N), values are larger the later a click is.
        items: (N,) the id of each ad's item; one that is missing is in no history.
        length: L.
    """
    ids = items[clicks.indices]
    users = np.repeat(np.arange(clicks.shape[0]), np.diff(clicks.indptr))
    named = np.flatnonzero(ids != MISSING)
    order = named[np.lexsort((-clicks.data[named], users[named]))]
    ids, users = ids[order], users[order]
    counts = np.bincount(users, minlength=clicks.shape[0])
    back = np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = back < length
    places = np.minimum(counts, length)[users] - 1 - back
    columns = np.full((clicks.shape[0], length), PAD, dtype=np.int32)
    columns[users[kept], places[kept]] = ids[kept]
    return columns


def naming_features(encoder: Encoder, rows: pl.DataFrame) -> tuple[str, ...]:
    """Name the features whose id is the user's own.

    It is that of the user's key, or none that two users share.

    Args:
        encoder: of the data.
        rows: (R,) encoded, one of a user.
    """
    keys, names = rows[USER_KEY].to_numpy(), []
    for feature in encoder.schema.sparse_of(Side.USER):
        ids = rows[feature.name].to_numpy()
        known = ids[ids >= FIRST]
        is_key = feature.buckets is None and np.array_equal(
            encoder.vocabularies[feature.name].encode(keys), ids
        )
        if is_key or 1 < len(known) == len(np.unique(known)):
            names.append(feature.name)
    return tuple(names)


def _refuse_what_stays(
    schema: Schema,
    config: RetrievalConfig,
    history: SequenceFeature,
    names: tuple[str, ...],
) -> None:
    """Refuse towers that read another list of the user, or numbers of his own.

    Raises:
        NewUsersError: names these features.
    """
    lists = [f.name for f in schema.sequences_of(Side.USER) if f.ordered]
    sources = {f.source for f in schema.sparse if f.name in names}
    numbers = [
        f.name for f in schema.dense_of(Side.USER) if sources.intersection(f.sources)
    ]
    if not config.statistics:
        numbers = [f.name for f in schema.numbers_of(Side.USER) if f.name in numbers]
    others = [n for n in (*lists, *numbers) if n != history.name and reads(config, n)]
    if others:
        raise NewUsersError(
            f"the towers read {', '.join(others)} too, which would still tell what a"
            f" user did before, whatever stands in `{history.name}`; leave them out by"
            " `retrieval.features`"
        )


def _same_items(first: Int32s, second: Int32s) -> Bools:
    """Tell which rows of two tables hold the same two or more items, (R,)."""
    is_same: Bools = (np.sort(first, axis=1) == np.sort(second, axis=1)).all(axis=1)
    is_same &= (first != PAD).sum(axis=1) > 1
    return is_same
