"""Held-out users as raw requests: whom the whole funnel is judged on.

    held_out_users.parquet   `test:row`, the row of the test split, rising; whether it
                             was drawn of all users, of those with a click, and of all
                             rows where the log tells propensities; and the raw columns
                             of the user's side

The raw files need not be there any more when a run is judged, and prepared rows hold
encoded values, from which no request can be made. So `prepare` keeps some users as they
stood in the raw files.
"""

from pathlib import Path

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Bools, Int64s
from torchrec_adrec.data.prepare.examples import raw_requests
from torchrec_adrec.data.prepare.spill import ChunkStore
from torchrec_adrec.data.prepare.splits import TEST, Splitter
from torchrec_adrec.errors import ManifestError
from torchrec_adrec.runtime.files import check_hashes, load_hashes
from torchrec_adrec.schema import NO_USER, PROPENSITY, USER_KEY, Schema

FILE = "held_out_users.parquet"
# The name of a raw column has no colon, so that none can be the same.
TEST_ROW = "test:row"
OF_ALL, OF_CLICKED, OF_ROWS = "test:of_all", "test:of_clicked", "test:of_rows"
KEPT = 2_000  # users of each draw
KEPT_ROWS = 20_000  # with propensities: few of the logged ads are in a served list
MOST_ROWS = 5_000_000  # of the test split that are drawn from: 80 MB of keys


def write_held_out_users(
    store: ChunkStore, split: Splitter, schema: Schema, out: Path, seed: int
) -> Path:
    """Draw users of the test rows and write them raw, once the splits are written.

    A user is its first test row; where the data names no user, each row is one.

    Args:
        store: the chunks.
        split: gives each row its split.
        schema: the columns; the first label is the click.
        out: the folder of the prepared data, with the test split in it.
        seed: of both draws.

    Returns:
        The file's path.
    """
    label = schema.labels[0].name
    test = pl.scan_parquet(out / "test/*.parquet")
    columns = test.collect_schema()
    names = [n for n in (label, USER_KEY) if n in columns]
    rows = test.select(names).head(MOST_ROWS).collect()
    user = rows[USER_KEY].to_numpy() if USER_KEY in names else None
    draws = _draws(rows[label].to_numpy() == 1, user, seed)
    if PROPENSITY in columns:
        rng = np.random.default_rng([seed, 8])
        draws[OF_ROWS] = rng.permutation(len(rows))[:KEPT_ROWS]
    drawn = np.unique(np.concatenate(list(draws.values())))
    requests = _raw_rows(store, split, schema, drawn)
    path = out / FILE
    requests.select(
        pl.Series(TEST_ROW, drawn),
        *(pl.Series(name, np.isin(drawn, rows)) for name, rows in draws.items()),
        pl.all(),
    ).write_parquet(path)
    return path


def _draws(clicked: Bools, user: Int64s | None, seed: int) -> dict[str, Int64s]:
    """Draw first rows of users: of all, and of those with a click in any row."""
    rows = np.arange(len(clicked))
    # A row whose user is missing is a user of its own; keys are never negative.
    keys = rows if user is None else np.where(user == NO_USER, -2 - rows, user)
    _, first, code = np.unique(keys, return_index=True, return_inverse=True)
    has_clicked = np.zeros(len(first), dtype=bool)
    has_clicked[code[clicked]] = True
    rng = np.random.default_rng([seed, 6])
    # Where no user is named, what is asked for is the click: its own row asks.
    return {
        OF_ALL: rng.permutation(first)[:KEPT],
        OF_CLICKED: rng.permutation(first[has_clicked])[:KEPT],
        OF_ROWS: np.empty(0, dtype=np.int64),
    }


def _raw_rows(
    store: ChunkStore, split: Splitter, schema: Schema, drawn: Int64s
) -> pl.DataFrame:
    """Read the raw user's side of some rows of the test split, rising, in order."""
    parts: list[pl.DataFrame] = []
    before = 0
    # Test rows are numbered in the order of the chunks, as the split's files are.
    for ref in store.chunks:
        chunk = ref.load()
        test = np.flatnonzero(split.assign(chunk, ref) == TEST)
        stop = before + len(test)
        first, last = np.searchsorted(drawn, [before, stop])
        if last > first or not parts:
            rows = test[drawn[first:last] - before]
            parts.append(raw_requests(chunk, rows, schema))
        before = stop
        if last == len(drawn):
            break
    return pl.concat(parts, how="vertical_relaxed")


def read_held_out_users(data: Path) -> pl.DataFrame:
    """Read the users that `prepare` has kept.

    Raises:
        ManifestError: there are none, because an earlier version prepared the data, or
            the file has changed.
    """
    if FILE not in load_hashes(data):
        raise ManifestError(
            f"{data} has no {FILE}: it was prepared by an earlier version; remove the"
            " folder and run `adrec run` or `adrec prepare` again"
        )
    check_hashes(data, FILE)
    return pl.read_parquet(data / FILE)
