"""Vectors of features: raw bytes, and the distinct ones of a prepared data set.

data/vectors/NAME.npy   (V + 1, width) float32: row 0 is the missing value's, the others
                        stand in the order of their keys (`data.keys`)
data/vectors/NAME.keys.npy      (V,) int64, rising

The rows of the splits hold positions in the first file, which all processes of a
machine map into memory: it is there once, however many ranks read it.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa

from torchrec_adrec.arrays import Bools, Float32s, Int32s, Int64s
from torchrec_adrec.errors import DataError
from torchrec_adrec.schema import VectorFeature

FOLDER = "vectors"
COMPONENT = np.dtype("<f4")  # the same bytes, and so the same ids, on every machine


def to_bytes(vectors: pl.Series, size: int) -> pl.Series:
    """Return lists of `size` numbers as bytes; null where there is no list."""
    present = vectors.is_not_null().to_numpy()
    components = vectors.drop_nulls().cast(pl.Array(pl.Float32, size)).to_numpy()
    raw = np.ascontiguousarray(components.reshape(-1, size), dtype=COMPONENT)
    fixed = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(COMPONENT.itemsize * size), len(raw), [None, pa.py_buffer(raw)]
    )
    values = cast(pl.Series, pl.from_arrow(fixed.cast(pa.large_binary())))
    places = np.where(present, np.cumsum(present) - 1, len(values))
    # One null more, for the rows without a list to take.
    return values.extend(pl.Series([None], dtype=pl.Binary)).gather(places)


def from_bytes(values: pl.Series, size: int) -> Float32s:
    """Return the components of vectors without nulls, (V, size).

    Raises:
        DataError: one has another length.
    """
    lengths = values.bin.size().unique().to_list()
    if [n for n in lengths if n != size * COMPONENT.itemsize]:
        raise DataError(
            f"{values.name} has vectors of {[n // COMPONENT.itemsize for n in lengths]}"
            f" components, expected {size}"
        )
    joined = np.frombuffer(b"".join(values), dtype=COMPONENT)
    return joined.astype(np.float32).reshape(len(values), size)


def to_lists(values: pl.Series, size: int) -> pl.Series:
    """Return vectors as people write them: a list of numbers each, null where missing.

    The numbers are doubles that come back as the very same float32.
    """
    present = values.drop_nulls()
    lists = pl.Series(from_bytes(present, size).astype(np.float64).tolist() or [None])
    places = np.cumsum(values.is_not_null().to_numpy()) - 1
    kept = lists.gather(np.maximum(places, 0)).cast(pl.List(pl.Float64))
    frame = pl.DataFrame({"list": kept, "present": values.is_not_null()})
    return frame.select(pl.when("present").then("list").alias(values.name)).to_series()


def with_indicator(components: Float32s) -> Float32s:
    """Return the rows of a batch for values (V, size), and one more of a missing one.

    Returns:
        (V + 1, size + 1); the last row is that of a missing value.
    """
    count, size = components.shape
    rows = np.zeros((count + 1, size + 1), dtype=np.float32)
    rows[:-1, :size] = components
    rows[-1, size] = 1
    return rows


def is_missing(rows: Float32s) -> Bools:
    """Tell which rows of a batch, (B, width), are of missing values."""
    return np.asarray(rows[:, -1] == 1)


def write_distinct(
    folder: Path, name: str, value_keys: Int64s, components: Float32s
) -> None:
    """Write the distinct vectors of a feature.

    Args:
        folder: `FOLDER` of the prepared data.
        name: of the feature.
        value_keys: (V,) rising.
        components: (V, size).
    """
    folder.mkdir(exist_ok=True)
    np.save(folder / f"{name}.npy", np.roll(with_indicator(components), 1, axis=0))
    np.save(folder / f"{name}.keys.npy", value_keys)


def open_distinct(folder: Path, name: str) -> Float32s:
    """Map the distinct vectors of a feature into memory, (V + 1, width).

    Raises:
        DataError: the file is missing or damaged.
    """
    path = folder / f"{name}.npy"
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        raise DataError(f"{path} is missing; prepare again") from None
    return _map(path, changed)


def position(folder: Path, name: str, value_keys: Int64s) -> Int32s:
    """Return the rows of some values among the distinct ones, (V,); 0 of unknown ones.

    Args:
        folder: `FOLDER` of the prepared data.
        name: of the feature.
        value_keys: (V,).
    """
    known = np.load(folder / f"{name}.keys.npy")
    if not len(known):
        return np.zeros(len(value_keys), dtype=np.int32)
    places = np.searchsorted(known, value_keys).clip(max=len(known) - 1)
    return np.where(known[places] == value_keys, places + 1, 0).astype(np.int32)


# By the time of its last change too: a folder may be prepared again under one name.
@lru_cache(maxsize=64)
def _map(path: Path, changed: int) -> Float32s:
    try:
        return cast(Float32s, np.load(path, mmap_mode="r"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read, prepare again: {error}") from None


def expand(
    features: tuple[VectorFeature, ...],
    columns: Mapping[str, Any] | pl.DataFrame,
    folder: Path,
) -> dict[str, Float32s]:
    """Take the vectors of rows of a split, (B, width) by feature.

    Args:
        features: of one side.
        columns: of the split, with the place of each row's vector.
        folder: `FOLDER` of the prepared data.

    Raises:
        DataError: a place that the file does not have.
    """
    rows = {}
    for feature in features:
        distinct = open_distinct(folder, feature.name)
        places = np.asarray(columns[feature.name])
        if len(places) and not 0 <= places.min() <= places.max() < len(distinct):
            raise DataError(
                f"{feature.name} is at {places.min()} to {places.max()} of"
                f" {len(distinct)} vectors in {folder}; prepare again"
            )
        rows[feature.name] = distinct[places]
    return rows
