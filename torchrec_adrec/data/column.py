"""Raw columns as distinct values and one code per row.

Whatever is slow (reading hexadecimals, hashing, logarithms, looking up) is done once
per distinct value of a chunk and then spread over the rows by one gather.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from torchrec_adrec.arrays import Bools, Float32s, Int32s, Int64s
from torchrec_adrec.data.dataset import DataSet

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class Column:
    """One raw column with a value per row.

    >>> column = Column.of(pl.Series(["NL", None, "DE", "NL"]))
    >>> column.codes.tolist(), column.values.to_list()
    ([0, -1, 1, 0], ['NL', 'DE'])

    Attributes:
        codes: (B,) int8 to int32, position in `values`; -1 where missing.
        values: (V,), distinct, without nulls.
    """

    codes: NDArray[np.signedinteger]
    values: pl.Series

    @classmethod
    def of(cls, series: pl.Series) -> "Column":
        """Number the distinct values by first appearance."""
        return cls.from_arrow(_arrow(series).dictionary_encode())

    @classmethod
    def of_one(cls, value: float | str | None, dtype: pl.DataType) -> "Column":
        """Make the column of one row, whose value may be missing.

        A request has some thirty of them, and `of` takes ten times as long.
        """
        values = [] if value is None else [value]
        codes = np.array([len(values) - 1], dtype=np.int32)
        return cls(codes, pl.Series("", values, dtype=dtype))

    @classmethod
    def from_arrow(cls, array: Any) -> "Column":
        """Make a column of an Arrow dictionary array."""
        codes = array.indices
        if codes.null_count:
            codes = codes.fill_null(-1)
        values = cast(pl.Series, pl.from_arrow(array.dictionary))
        return cls(codes.to_numpy(zero_copy_only=False), values)

    def spread(self, per_value: NDArray[T], missing: Any) -> NDArray[T]:
        """Give every row what belongs to its value, (B,); `missing` where it has none.

        Args:
            per_value: (V,) one entry for each of `values`.
            missing: the entry of rows without a value.
        """
        if len(self.codes) == 1 == len(per_value):  # a request
            return per_value if self.codes[0] == 0 else np.full_like(per_value, missing)
        # Code -1 wraps around to the last entry, which is that of missing values.
        table = np.append(per_value, np.asarray(missing, dtype=per_value.dtype))
        return cast(NDArray[T], table.take(self.codes, mode="wrap"))

    def count(self, rows: Bools | None = None) -> Int64s:
        """How often each value occurs in some rows (default: in all), (V,)."""
        codes = self.codes if rows is None else self.codes[rows]
        # Wide first: 127 + 1 is -128 in a byte.
        shifted = codes.astype(np.int64) + 1
        return np.bincount(shifted, minlength=len(self.values) + 1)[1:]

    def equals(self, other: "Column") -> bool:
        """Whether both have the same values, if they share their distinct ones."""
        return np.array_equal(self.codes, other.codes)

    def rows(self, index: Any) -> "Column":
        """The rows of a numpy index (positions, mask, slice), with the same values."""
        return Column(self.codes[index], self.values)


@dataclass(frozen=True)
class JaggedColumn:
    """One raw column with a list per row: the items of all rows, one after the other.

    The lists [a, b], [] and [c] have the items a b c and the offsets 0 2 2 3.

    Attributes:
        items: (N,) over all rows.
        offsets: (B + 1,) int32; the items of row i are offsets[i] to offsets[i + 1].
    """

    items: Column
    offsets: Int32s

    @classmethod
    def of(cls, series: pl.Series) -> "JaggedColumn":
        """Make it of a column of lists; a null is an empty list."""
        filled = series.fill_null([])
        lengths = filled.list.len().to_numpy()
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        items = filled.list.explode(empty_as_null=False, keep_nulls=True)
        return cls(Column.of(items), offsets)

    def last(self, per_item: NDArray[T], length: int, fill: int) -> NDArray[T]:
        """The last `length` items of each row, in order, then `fill`, (B, length).

        Args:
            per_item: (N,) what is taken of each item.
            length: the number of columns.
            fill: what follows the last item of a shorter row.
        """
        ends = self.offsets[1:]
        lengths = np.minimum(np.diff(self.offsets), length)
        positions = (ends - lengths)[:, None] + np.arange(length)
        is_item = np.arange(length) < lengths[:, None]
        if not len(per_item):
            return np.full(positions.shape, fill, dtype=per_item.dtype)
        # Positions behind a row's last item may lie behind the last of all: clipped
        # here, replaced below.
        items = per_item.take(positions, mode="clip")
        return np.where(is_item, items, np.asarray(fill, dtype=per_item.dtype))

    def last_items(self) -> Column:
        """The last item of each row; missing where a list is empty."""
        codes = np.append(self.items.codes, -1)  # the last entry is for empty lists
        has_items = np.diff(self.offsets) > 0
        last = np.where(has_items, self.offsets[1:] - 1, len(codes) - 1)
        return Column(codes[last], self.items.values)

    def count(self, rows: Bools | None = None) -> Int64s:
        """How often each item occurs in some rows (default: in all), (V,)."""
        if rows is None:
            return self.items.count()
        return self.items.count(np.repeat(rows, np.diff(self.offsets)))

    def equals(self, other: "JaggedColumn") -> bool:
        """Whether both have the same lists, if they share their distinct values."""
        return np.array_equal(self.offsets, other.offsets) and np.array_equal(
            self.items.codes, other.items.codes
        )

    def rows(self, index: Any) -> "JaggedColumn":
        """The rows of a numpy index (positions, mask, slice)."""
        rows = np.arange(len(self.offsets) - 1)[index]
        lengths = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        # Each item's place in its own list, added to where that list starts here.
        places = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        positions = np.repeat(self.offsets[:-1][rows], lengths) + places
        return JaggedColumn(self.items.rows(positions), offsets)


RawColumns = dict[str, Column | JaggedColumn]


def column_of(series: pl.Series) -> Column | JaggedColumn:
    """Code a series of values or of lists."""
    return JaggedColumn.of(series) if series.dtype == pl.List else Column.of(series)


def values_of(column: Column | JaggedColumn) -> pl.Series:
    """The raw value of each row, null where missing; a list of each row of lists."""
    if isinstance(column, JaggedColumn):
        items = _arrow(values_of(column.items))
        lists = pa.ListArray.from_arrays(column.offsets, items)
        return cast(pl.Series, pl.from_arrow(lists))
    codes = pl.Series(column.codes)
    positions = pl.DataFrame({"code": codes}).select(
        pl.when(pl.col("code") >= 0).then(pl.col("code"))
    )
    return column.values.gather(positions.to_series())


def scalar_column(raw: RawColumns, name: str) -> Column:
    """Return a raw column that holds scalars."""
    column = raw[name]
    assert isinstance(column, Column), name
    return column


def jagged_column(raw: RawColumns, name: str) -> JaggedColumn:
    """Return a raw column that holds lists."""
    column = raw[name]
    assert isinstance(column, JaggedColumn), name
    return column


def hex_text(values: pl.Series) -> pl.Series:
    """Write each value as eight hexadecimal digits, as the raw files do."""
    text = [None if value is None else f"{value:08x}" for value in values]
    return pl.Series(values.name, text, dtype=pl.String)


@dataclass(frozen=True)
class Chunk:
    """Some consecutive rows of one raw file.

    Attributes:
        columns: the raw columns of all features, and of the user.
        labels: (B,) float32 by name, NaN where not observed.
        time: (B,) int64, or None if the data set has no time column.
    """

    columns: RawColumns
    labels: dict[str, Float32s]
    time: Int64s | None

    @property
    def num_rows(self) -> int:
        """B."""
        return len(next(iter(self.labels.values())))

    @classmethod
    def of(cls, rows: pl.DataFrame, data: DataSet, pool: ThreadPoolExecutor) -> "Chunk":
        """Code the columns of a frame.

        Args:
            rows: of `DataSet.read`.
            data: says which columns are labels and time.
            pool: codes several columns at a time.
        """
        labels = {name: _floats(rows[name]) for name in data.schema.label_names}
        time = None if data.time is None else rows[data.time].to_numpy()
        names = [n for n in rows.columns if n not in labels and n != data.time]
        columns = pool.map(lambda name: column_of(rows[name]), names)
        return cls(dict(zip(names, columns, strict=True)), labels, time)

    def save(self, path: Path) -> None:
        """Write as Arrow IPC, to be mapped into memory again."""
        arrays: dict[str, Any] = {}
        for name, column in self.columns.items():
            arrays[f"column:{name}"] = _to_arrow(column)
        arrays |= {f"label:{n}": pa.array(v) for n, v in self.labels.items()}
        if self.time is not None:
            arrays["time:"] = pa.array(self.time)
        batch = pa.RecordBatch.from_pydict(arrays)
        with (
            pa.OSFile(str(path), "wb") as file,
            pa.ipc.new_file(file, batch.schema) as w,
        ):
            w.write_batch(batch)

    @classmethod
    def load(cls, path: Path) -> "Chunk":
        """Read what `save` wrote, without copying."""
        batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        arrays: dict[str, dict[str, Any]] = {"column": {}, "label": {}, "time": {}}
        for name in batch.schema.names:
            kind, _, key = name.partition(":")
            arrays[kind][key] = batch[name]
        return cls(
            {name: _from_arrow(array) for name, array in arrays["column"].items()},
            {name: array.to_numpy() for name, array in arrays["label"].items()},
            arrays["time"][""].to_numpy() if arrays["time"] else None,
        )


def _arrow(series: pl.Series) -> Any:
    return series.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())


def _floats(labels: pl.Series) -> Float32s:
    return labels.fill_null(float("nan")).to_numpy()


def _to_arrow(column: Column | JaggedColumn) -> Any:
    if isinstance(column, JaggedColumn):
        return pa.ListArray.from_arrays(column.offsets, _to_arrow(column.items))
    codes = column.codes
    missing = codes < 0
    # Most columns have few values: a byte a row to write, read and keep in the cache.
    small = np.min_scalar_type(-max(len(column.values), 1))
    indices = pa.array(codes.astype(small), mask=missing if missing.any() else None)
    return pa.DictionaryArray.from_arrays(indices, _arrow(column.values))


def _from_arrow(array: Any) -> Column | JaggedColumn:
    if pa.types.is_list(array.type):
        return JaggedColumn(Column.from_arrow(array.values), array.offsets.to_numpy())
    return Column.from_arrow(array)
