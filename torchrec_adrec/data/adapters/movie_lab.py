"""A small world of numbers alone: users and movies without any id, and a known law.

A user is 13 numbers, a movie 12; both are all that there is to know. The logit of a
click is the sum of a taste for some directions of the movies (a bilinear form of low
rank), of what the user and of what the movie bring along. So no model can do better
than the true probability, which stands row by row in `truth/rows.parquet`, and a model
without any table can come near it.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Float64s
from torchrec_adrec.config.data import DataConfig, MovieLabConfig
from torchrec_adrec.data.adapters.adapter import Adapter, MadeHere
from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.data.dataset import DataSet
from torchrec_adrec.schema import DenseFeature, Label, Schema, Side

USER_NUMBERS = tuple(f"user_{i}" for i in range(13))
MOVIE_NUMBERS = tuple(f"movie_{i}" for i in range(12))
ROWS, TRUTH = "movie_lab.parquet", "truth/rows.parquet"
USER = "row:user"
RANK = 4  # directions of taste
# Deviations of the three parts of the logit, and its mean: a click rate of 0.38, and an
# AUC of the true probability of about 0.82.
TASTE, OF_USER, OF_MOVIE, MEAN = 1.4, 0.5, 0.8, -0.7


def write(config: MovieLabConfig, seed: int, folder: Path) -> None:
    """Write the rows and their truth; the same config and seed give the same rows.

    Args:
        config: how many users, movies and rows.
        seed: draws all of them.
        folder: gets `ROWS` and `TRUTH`.
    """
    rng = np.random.default_rng([seed, 5])
    users = rng.standard_normal((config.users, len(USER_NUMBERS)))
    movies = rng.standard_normal((config.movies, len(MOVIE_NUMBERS)))
    # Every pair at most once: a pair that came back would be known by heart.
    pairs = rng.choice(config.users * config.movies, config.rows, replace=False)
    user, movie = np.divmod(pairs, config.movies)
    p_click = 1 / (1 + np.exp(-_logits(users, movies, rng)[user, movie]))
    columns = {"click": (rng.random(config.rows) < p_click).astype(np.float32)}
    names = pl.Series(user).cast(pl.String)
    rows = pl.DataFrame(columns | {USER: names}).with_columns(
        *(pl.Series(n, users[user, i]) for i, n in enumerate(USER_NUMBERS)),
        *(pl.Series(n, movies[movie, i]) for i, n in enumerate(MOVIE_NUMBERS)),
    )
    rows.write_parquet(folder / ROWS)
    (folder / TRUTH).parent.mkdir(exist_ok=True)
    pl.DataFrame({"p_click": p_click}).write_parquet(folder / TRUTH)


def _logits(users: Float64s, movies: Float64s, rng: np.random.Generator) -> Float64s:
    """The logit of every user (U, 13) with every movie (M, 12), (U, M)."""
    likes, has = (
        x @ np.linalg.qr(rng.standard_normal((x.shape[1], RANK)))[0]
        for x in (users, movies)
    )
    of_user, of_movie = (
        x @ np.linalg.qr(rng.standard_normal((x.shape[1], 1)))[0][:, 0]
        for x in (users, movies)
    )
    taste = TASTE / np.sqrt(RANK) * likes @ has.T
    alone = OF_USER * of_user[:, None] + OF_MOVIE * of_movie[None, :]
    return np.asarray(MEAN + taste + alone)


def schema() -> Schema:
    """The numbers of both sides, and the click."""
    return Schema(
        dense=tuple(
            DenseFeature(name=name, side=side, source=name, transform="standard")
            for side, names in ((Side.USER, USER_NUMBERS), (Side.AD, MOVIE_NUMBERS))
            for name in names
        ),
        sparse=(),
        labels=(Label(name="click"),),
    )


def open_data(config: DataConfig, folder: Path) -> DataSet:
    """Open what `write` wrote to a folder."""
    size = (config.chunk_megabytes << 20) // (8 * 32)

    def read(path: Path, bad: BadRows) -> Iterator[pl.DataFrame]:
        yield from pl.read_parquet(path).iter_slices(size)

    return DataSet(schema(), (folder / ROWS,), read, user=USER)


def _write(config: DataConfig, seed: int, folder: Path) -> None:
    write(config.movie_lab, seed, folder)


ADAPTER: Adapter = MadeHere(_write, open_data)
