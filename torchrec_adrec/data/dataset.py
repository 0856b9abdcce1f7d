"""What an adapter tells of a data set: its columns, its files, how to read one.

An adapter is a module with one function, `open_data(config) -> DataSet`. All else
(vocabularies, splits, Parquet, reports) knows only what stands here.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.errors import ConfigError, SchemaError
from torchrec_adrec.runtime.files import matching
from torchrec_adrec.schema import Schema, SequenceFeature, Side


@dataclass(frozen=True)
class DataSet:
    """Raw rows and their meaning.

    Attributes:
        schema: features, sides and labels; table sizes are 0 until `prepare` fits them.
        files: in the order of their rows; a rank of `prepare` takes whole files.
        read: one file -> its good rows in order, in frames of `raw_types`; every other
            row is told to `BadRows` with file and line. The same file gives the same
            rows, however they are cut into frames.
        time: Int64 column to split by; None: rows stand in time order.
        user: String column that names the user, for a split by user; None: unknown.
        sides: the settings by which a column is moved to the other side, for messages;
            empty: the adapter has decided.
        ad: the ad's column that names it: its latest values stand in the catalog. None:
            an ad is every distinct combination of its side's values.
        items: the ad's columns of which one may name it, where `ad` is None.
        copies: features made of the very raw column that `time` or `user` is made of.
    """

    schema: Schema
    files: tuple[Path, ...]
    read: Callable[[Path, BadRows], Iterator[pl.DataFrame]]
    time: str | None = None
    user: str | None = None
    sides: str = ""
    ad: str | None = None
    items: tuple[str, ...] = ()
    copies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def ad_key(self) -> tuple[str, ...]:
        """The raw columns whose values make an ad."""
        return (self.ad,) if self.ad else self.schema.sources_of(Side.AD)

    def not_compared(self, split_by: str) -> tuple[str, ...]:
        """The raw columns in which a row of one split can hardly equal one of another.

        The time, and where users are split, the user. Rows that differ in nothing else
        are the same example.
        """
        names = (self.time, self.user if split_by == "user" else None)
        return tuple(
            n for name in names if name for n in (name, *self.copies.get(name, ()))
        )


def raw_types(data: DataSet) -> dict[str, set[pl.DataType]]:
    """The columns that `read` gives, each with the types that it may have.

    hex: UInt32. text: String. numbers: Int64 or Float64. sequences: List(String), the
    latest last. labels: Float32. Null is missing; a null label was not observed.
    """
    types: dict[str, set[pl.DataType]] = {}
    for feature in data.schema.bags:
        if isinstance(feature, SequenceFeature):
            types[feature.source] = {pl.List(pl.String())}
        else:
            types[feature.source] = _TYPES[feature.kind]
    types |= {f.source: _TYPES["number"] for f in data.schema.dense}
    types |= {label.name: {pl.Float32()} for label in data.schema.labels}
    if data.time is not None:
        types[data.time] = {pl.Int64()}
    if data.user is not None:
        types[data.user] = {pl.String()}
    return types


_TYPES: dict[str, set[pl.DataType]] = {
    "hex": {pl.UInt32()},
    "text": {pl.String()},
    "number": {pl.Int64(), pl.Float64()},
}


def check_rows(rows: pl.DataFrame, data: DataSet) -> None:
    """Refuse a frame that is not what the adapter promised.

    Raises:
        SchemaError: names the column, what was found and what was expected.
    """
    expected = raw_types(data)
    if set(rows.columns) != set(expected):
        odd = sorted(set(rows.columns) ^ set(expected))
        raise SchemaError(f"raw columns {odd} are missing or not in the schema")
    for name, types in expected.items():
        if rows[name].dtype not in types:
            wanted = " or ".join(str(t) for t in types)
            raise SchemaError(f"{name} is {rows[name].dtype}, expected {wanted}")


def raw_files(config: DataConfig) -> tuple[Path, ...]:
    """The files of `data.raw`; a pattern stands for what it matches, in name order.

    Numbers in names count as numbers: day_2 comes before day_10, as it did in time.

    Raises:
        ConfigError: none is given, one is missing, a pattern matches none, or one is
            named twice.
    """
    files: list[Path] = []
    for word in config.raw:
        found = matching(word) or [Path(word)]
        if not all(path.is_file() for path in found):
            raise ConfigError(f"data.raw: no such file: {word}")
        files += sorted(found, key=_name_order)
    return each_once(files)


def each_once(files: Sequence[Path]) -> tuple[Path, ...]:
    """The files, if there are some and none stands there twice.

    Raises:
        ConfigError: otherwise.
    """
    counts = Counter(path.resolve() for path in files)
    twice = [str(path) for path, times in counts.items() if times > 1]
    if twice:
        raise ConfigError(
            f"data.raw: {', '.join(twice)} named twice: their rows would count twice"
        )
    if not files:
        raise ConfigError("data.raw: none given; name the raw files: data.raw=PATH")
    return tuple(files)


def _name_order(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
