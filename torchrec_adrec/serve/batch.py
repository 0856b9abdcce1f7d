"""The best ads of all users of a file, each as a request would be answered."""

from pathlib import Path

import polars as pl

from torchrec_adrec.data.prepare.user_file import ROW, UserFile
from torchrec_adrec.data.shared_file import shared_parquet
from torchrec_adrec.errors import ManifestError, PredictionError
from torchrec_adrec.runtime.progress import Progress
from torchrec_adrec.runtime.ranks import Ranks, share_of, told_by_first
from torchrec_adrec.serve.published import (
    CHANGED,
    is_same_build,
    loaded_state,
    published_state,
)
from torchrec_adrec.serve.recommender import Recommender

CHUNK = 256  # users that are retrieved at a time
PLACE = "place"  # of an ad in its user's list, from 1


def load_alike(
    run: Path,
    ranks: Ranks,
    out: Path,
    rank_by: str | None = None,
    engine: str | None = None,
) -> Recommender:
    """Load a run on all ranks, with the ads that the first one finds. Collective.

    An update that lands meanwhile would else give users of one file ads of two days.

    Args:
        run: its folder.
        ranks: the processes that share it.
        out: the file that they are going to write, which all of them see.
        rank_by, engine: as of `Recommender.load`.

    Raises:
        AdRecError: as of `Recommender.load`.
        ManifestError: a stage was built again meanwhile.
    """
    before = published_state(run)
    recommender = Recommender.load(run, rank_by=rank_by, engine=engine)
    state = loaded_state(run, before, recommender.changes)
    first = told_by_first(ranks, state, out.with_name(f"{out.name}.version"))
    if not is_same_build(state, first):
        raise ManifestError(
            f"rank {ranks.rank} has loaded {run} as {state}, rank 0 as {first}: a stage"
            " was built again meanwhile; start the ranks again"
        )
    return recommender.refreshed(run, first.partition(CHANGED)[2])


def recommend_batch(
    recommender: Recommender,
    users: UserFile,
    out: Path,
    ranks: Ranks,
    top: int | None = None,
) -> None:
    """Write the best ads of every user to one Parquet file. Collective.

    A line is an ad: the row of its user (and the key), its place, and what `recommend`
    returns of it but its raw columns. The file appears when it is whole. All rows are
    read once before the work, so that a bad one is not found at its end.

    Args:
        recommender: of this rank.
        users: who gets ads.
        out: the file to write.
        ranks: the processes that share the users.
        top: number of ads of each; default `recommend.top`.

    Raises:
        ConfigError: the key is called like a column that is written.
        DataError: a user's row is bad; names file and row.
        PredictionError: a number is not finite; names model, file and row.
    """
    top = recommender.checked_top(top)
    share = share_of(users.count, ranks)
    users.check(share)
    with (
        shared_parquet(out, ranks) as write,
        Progress("recommending", share.stop - share.start, "users") as progress,
    ):
        for first, stop in users.chunks(share, CHUNK):
            lists = recommender.recommend_many(users.raw(first, stop), top)
            try:
                rows = [_numbered(ads, first + row) for row, ads in enumerate(lists)]
            except PredictionError as error:
                raise PredictionError(
                    f"{users.path}, row {first + error.row} (from 0): {error}"
                ) from None
            best = pl.concat(rows)
            users.check_key(best.columns)
            named = users.names(first, stop).join(best, on=ROW, maintain_order="right")
            write(named.to_arrow(compat_level=pl.CompatLevel.oldest()))
            progress.advance(stop - first)


def _numbered(ads: pl.DataFrame, row: int) -> pl.DataFrame:
    """Put the user's row and the ads' places in front."""
    places = pl.arange(1, pl.len() + 1, dtype=pl.Int32).alias(PLACE)
    return ads.select(pl.lit(row, dtype=pl.Int64).alias(ROW), places, pl.all())
