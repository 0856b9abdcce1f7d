"""The trained towers of a run as one more scorer beside the classics.

They encode the users themselves: as they stood in the row of their held-out click, or
as if they were new and had come with their latest clicks alone.

Shape letters: B users, U users, R rows, N ads, D the length of a vector.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.sparse import csr_matrix

from torchrec_adrec.arrays import Float32s, Int32s, Int64s
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.prepare.vocabulary import FIRST
from torchrec_adrec.errors import DataError
from torchrec_adrec.evaluation.classics.interactions import Interactions
from torchrec_adrec.evaluation.classics.methods import judged
from torchrec_adrec.evaluation.classics.new_users import NewUsers, history_read
from torchrec_adrec.evaluation.classics.protocol import (
    HeldOut,
    NewUsersError,
    RankingProtocol,
)
from torchrec_adrec.evaluation.encode import encode_whole
from torchrec_adrec.evaluation.full_catalog import clicks_of
from torchrec_adrec.models.two_tower import TwoTower
from torchrec_adrec.runs.stage_settings import stage_settings
from torchrec_adrec.runs.stages import RETRIEVAL, check_inputs
from torchrec_adrec.runtime.files import Origin
from torchrec_adrec.schema import AD_ID, USER_KEY, Schema, SequenceFeature, Side
from torchrec_adrec.tasks.sharded import restore_whole


@dataclass(frozen=True)
class Towers:
    """Inner products of the towers' vectors.

    Attributes:
        model: the towers in one piece.
        schema: of the data.
        similarity: of the towers.
        origin: the checkpoint that they were read from.
        ads: (N, D).
        rows: (R,) encoded, of each user with a held-out click that of the first one.
        row: (U,) the place of each user among them; -1: he has none.
        clicks: (U,) how many clicks of each user are known before the split.
        new_users: makes rows of new users; the error says why that cannot be done.
    """

    model: TwoTower
    schema: Schema
    similarity: str
    origin: Origin
    ads: Float32s
    rows: pl.DataFrame
    row: Int64s
    clicks: Int64s
    new_users: NewUsers | NewUsersError

    @classmethod
    def load(cls, run: Path, data: Interactions, split: HeldOut) -> "Towers":
        """Read them as serving does, and encode the catalog.

        Args:
            run: a run's folder, with trained towers and prepared data.
            data: the clicks that are judged, the same as the run's.
            split: whose rows the users are read from.

        Raises:
            ManifestError, CheckpointError: a part of the run is missing or damaged, or
                the towers were trained on other data than the run holds.
            DataError: the run has other ads, or the history of a row holds an ad that
                its user is asked for.
        """
        check_inputs(RETRIEVAL, run)
        encoder, catalog = Encoder.load(run / "data"), load_catalog(run / "data")
        if not np.array_equal(catalog[AD_ID].to_numpy(), data.ids):
            raise DataError(f"{run / 'data'} has other ads than the clicks")
        schema = encoder.schema
        task, checkpoint = restore_whole(RETRIEVAL.name, run, schema)
        config = stage_settings(run / RETRIEVAL.name).retrieval
        rows = _rows_of(run / "data", schema, data, split)
        users = np.searchsorted(data.users, rows[USER_KEY].to_numpy())
        row = np.full(len(data.users), -1)
        row[users] = np.arange(len(users))
        known, held = data.known(split), data.splits[split]
        new_users: NewUsers | NewUsersError
        try:
            history = history_read(schema, config)
            items = catalog[str(history.shares_ids_with)].to_numpy()
            refuse_asked(history, rows, items, known[users], held[users])
            new_users = NewUsers.of(encoder, config, items, rows, known[users])
        except NewUsersError as error:
            new_users = error
        ads = encode_whole(
            task.model.ad_tower, catalog, schema, Side.AD, config.similarity
        )
        return cls(
            task.model,
            schema,
            config.similarity,
            checkpoint.origin,
            ads,
            rows,
            row,
            np.diff(known.indptr),
            new_users,
        )

    def scores(self, history: csr_matrix, users: Int64s, is_new: bool) -> Float32s:
        """See `Scorer`.

        Raises:
            DataError: these users were read from the rows of another split.
        """
        places, counts = self.row[users], np.diff(history.indptr)
        is_other = not is_new and (counts != self.clicks[users]).any()
        if is_other or (places < 0).any():
            raise DataError(
                "the towers read these users from the rows of another split; load them"
                " for the split that is judged"
            )
        rows = self.rows[places]
        if is_new:
            if isinstance(self.new_users, NewUsersError):
                raise self.new_users
            rows = self.new_users.rows(rows, history)
        return self.encode(rows, is_new) @ self.ads.T

    def encode(self, rows: pl.DataFrame, is_new: bool = True) -> Float32s:
        """Encode users, (B, D); new ones may have a vector of zeros.

        Towers that find nothing to read of a new user give him such a vector. All ads
        then have one score, which is no hit.
        """
        similarity = "dot" if is_new else self.similarity
        return encode_whole(
            self.model.encode_users, rows, self.schema, Side.USER, similarity
        )


def run_towers(
    run: Path, data: Interactions, most_users: int | None = None
) -> dict[str, Any]:
    """Judge the towers of a run by every protocol.

    Args:
        run: see `Towers.load`.
        data: the clicks.
        most_users: test users that are judged at most, drawn; None: all.

    Returns:
        `checkpoint`, the figures of `judged`, of new users which features are unknown
        and how many histories are as they were prepared, and the seconds that it took.
    """
    began = time.perf_counter()
    towers = Towers.load(run, data, "test")
    figures = judged(towers, data, RankingProtocol(most_users=most_users))
    if isinstance(towers.new_users, NewUsers):
        figures["unknown_of_new_users"] = list(towers.new_users.names)
        figures["histories_as_prepared"] = towers.new_users.as_prepared
    return {
        "checkpoint": towers.origin.model_dump(),
        **figures,
        "seconds": time.perf_counter() - began,
    }


def _rows_of(
    data: Path, schema: Schema, clicks: Interactions, split: HeldOut
) -> pl.DataFrame:
    """Read the first row with a click of each user of a split."""
    rows, _ = clicks_of(data, schema, split, sys.maxsize, seed=0)
    known = rows.filter(np.isin(rows[USER_KEY].to_numpy(), clicks.users))
    first = known.unique(USER_KEY, keep="first", maintain_order=True)
    return first.select(USER_KEY, *schema.columns_of(Side.USER))


def refuse_asked(
    history: SequenceFeature,
    rows: pl.DataFrame,
    items: Int32s,
    known: csr_matrix,
    held: csr_matrix,
) -> None:
    """Refuse rows whose history holds an ad that its user is asked for.

    An item that the user is known to have clicked, as another ad, may stand there.

    Args:
        history: of the users.
        rows: (R,) encoded, one of a user.
        items: (N,) the id of each ad's item.
        known: (R, N) what each user has clicked before the split.
        held: (R, N) what each is asked for.

    Raises:
        DataError: says of how many users.
    """
    histories = rows.select(history.columns).to_numpy()
    user = np.repeat(np.arange(len(rows)), np.diff(held.indptr))
    item = items[held.indices]
    inside = (histories[user] == item[:, None]).any(axis=1) & (item >= FIRST)
    asked = {
        user[i]
        for i in np.flatnonzero(inside)
        if item[i] not in items[known[user[i]].indices]
    }
    if asked:
        raise DataError(
            f"{len(asked)} of {len(rows)} users have an ad in `{history.name}` that"
            " they are asked for, in the first of their rows with a click: the future."
            " Sort the raw rows by time and prepare them again, or leave the towers out"
        )
