"""Hashes of whole rows, by which rows that stand in two splits are found.

A held-out row that equals a training row was trained on, so the model's figures on it
say nothing. Hashes make the comparison possible without holding the rows.
"""

from collections.abc import Collection, Iterable

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Int64s, UInt64s
from torchrec_adrec.data.column import Chunk, Column, JaggedColumn
from torchrec_adrec.data.keys import keys, salt, salted_hash, splitmix

COMPARED_ROWS = 2_000_000  # of more rows, a sample of about this many is compared


def row_hashes(chunk: Chunk) -> UInt64s:
    """Return one hash per row, (B,), over all raw columns, the labels and the time.

    Equal rows have equal hashes, in any chunk: each is the mixed sum over the columns
    of a random number per value (Zobrist hashing). In a list the position counts too.
    """
    return splitmix(_hash_sums(chunk, chunk.columns, chunk.labels, chunk.time))


def full_and_compared_hashes(
    chunk: Chunk, not_compared: Collection[str]
) -> tuple[UInt64s, UInt64s]:
    """Return `row_hashes`, and the same without the time and some columns.

    Rows of two splits differ in their time, or in the user if users were split, even
    where one is a copy of the other. So these columns must not count in a comparison.

    Args:
        chunk: the rows.
        not_compared: raw columns to leave out of the second hashes.
    """
    full = _hash_sums(chunk, chunk.columns, chunk.labels, chunk.time)
    names = [name for name in chunk.columns if name in not_compared]
    # The hash is a sum over columns, so a part is taken out by subtraction.
    compared = full - _hash_sums(chunk, names, (), chunk.time)
    return splitmix(full), splitmix(compared)


def _hash_sums(
    chunk: Chunk, columns: Iterable[str], labels: Iterable[str], time: Int64s | None
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
        total += salted_hash(bits, salt(name))
    if time is not None:
        total += salted_hash(time, salt("time"))
    return total


def _value_hashes(column: Column, name: str) -> UInt64s:
    # The column's name goes in, so that two columns cannot swap their values unnoticed.
    mixed = salted_hash(keys(column.values), salt(name))
    return column.spread(mixed, salt(name))


def _list_hashes(bags: JaggedColumn, name: str) -> UInt64s:
    """Return the sum of each row's items, each mixed with its position."""
    lengths = np.diff(bags.offsets)
    position = np.arange(bags.offsets[-1]) - np.repeat(bags.offsets[:-1], lengths)
    mixed = splitmix(_value_hashes(bags.items, name) + position.astype(np.uint64))
    sums = np.append(np.uint64(0), np.cumsum(mixed, dtype=np.uint64))
    return np.asarray(sums[bags.offsets[1:]] - sums[bags.offsets[:-1]])


def sample_hashes(hashes: UInt64s, rows: int) -> UInt64s:
    """Return the hashes to compare: all of them, or a sample if there are many rows.

    The hash itself decides, so of two equal rows either both are in the sample or none.

    Args:
        hashes: hashes of some rows.
        rows: the number of rows of the whole data set.
    """
    every = np.uint64(rows // COMPARED_ROWS + 1)
    return hashes if every == 1 else hashes[hashes % every == 0]


def count_repeated(train: UInt64s, held_out: UInt64s) -> dict[str, int]:
    """Count the held-out rows, and those among them that equal a training row.

    Returns:
        `compared` and `also_in_train`.
    """
    repeated = pl.Series(held_out).is_in(pl.Series(train).implode())
    return {"compared": len(held_out), "also_in_train": int(repeated.sum())}
