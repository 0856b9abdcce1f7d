"""A data set as its adapter describes it: its columns, its files, how to read one.

Vocabularies, splits, Parquet and reports know nothing else of a data set than this.
How a data set is added: `data/adapters/adapter.py`.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import polars as pl

from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.errors import ConfigError, SchemaError
from torchrec_adrec.runtime.files import matching
from torchrec_adrec.schema import Schema, SequenceFeature, Side


@dataclass(frozen=True)
class Negatives:
    """How negatives are drawn for data that hold positives only.

    Attributes:
        count: for each positive.
        by: popularity: an ad is as likely as it was taken until then; uniform: all ads
            are equally likely.
    """

    count: int
    by: Literal["popularity", "uniform"]


@dataclass(frozen=True)
class DataSet:
    """Raw rows and their meaning.

    Attributes:
        schema: features, sides and labels; table sizes are 0 until `prepare` fits them.
        files: in the order of their rows; a rank of `prepare` takes whole files.
        read: yields the good rows of one file in order, in frames of `raw_types`. Every
            other row is counted in `BadRows` with file and line. The same file gives
            the same rows, however they are cut into frames.
        time: Int64 column to split by; None: rows are in time order.
        user: column that names the user, for a split by user and for metrics of each
            user's list: a String column, or the source of a feature; None: none.
        unknown_users: whether `user` is null in some rows, of visitors that nobody
            knows. Their rows are in no user's list, and there is no split by user.
        sides: the settings that move a column to the other side, for messages; empty:
            the adapter has decided.
        ad: the ad's column that names it; the catalog holds its latest values. None: an
            ad is every distinct combination of its side's values.
        items: where `ad` is None, the ad's columns of which one may name it.
        lists_before_log: whether all lists that came with the data are known to be from
            before its first row, so that nothing in them is the future of a row.
        histories: by the source of a sequence that `prepare` makes of the log, the ad's
            column whose values it holds; `read` gives no such column.
        negatives: how negatives are drawn, where the rows are positives only.
        propensity: Float64 column of the shown ad's probability under the policy that
            wrote the log, above 0 and at most 1; None: not told.
        copies: for the columns `time` and `user`, the features that are made of the
            same raw column.
    """

    schema: Schema
    files: tuple[Path, ...]
    read: Callable[[Path, BadRows], Iterator[pl.DataFrame]]
    time: str | None = None
    user: str | None = None
    unknown_users: bool = False
    sides: str = ""
    ad: str | None = None
    items: tuple[str, ...] = ()
    lists_before_log: bool = False
    histories: Mapping[str, str] = field(default_factory=dict)
    negatives: Negatives | None = None
    propensity: str | None = None
    copies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def ad_key(self) -> tuple[str, ...]:
        """The raw columns whose values make an ad."""
        return (self.ad,) if self.ad else self.schema.sources_of(Side.AD)

    def not_compared(self, split_by: str) -> tuple[str, ...]:
        """The raw columns that are left out when rows of two splits are compared.

        These are the time, the user where the split is by user, the propensity, and
        their copies: rows of two splits hardly ever agree in them. Rows that differ in
        nothing else are the same example.
        """
        user = self.user if split_by == "user" else None
        names = (self.time, user, self.propensity)
        return tuple(
            n for name in names if name for n in (name, *self.copies.get(name, ()))
        )


def raw_types(data: DataSet) -> dict[str, set[pl.DataType]]:
    """The columns that `read` gives, each with the types that it may have.

    A hex feature is UInt32, text is String, a number Int64 or Float64, a sequence
    List(String) with the latest item last, a vector Binary (`data.vectors`), prose
    String, a label Float32. Null is a missing value; a
    null label was not observed.
    """
    types: dict[str, set[pl.DataType]] = {}
    for feature in data.schema.bags:
        if feature.source in data.histories:
            continue
        if isinstance(feature, SequenceFeature):
            types[feature.source] = {pl.List(pl.String())}
        else:
            types[feature.source] = _TYPES[feature.kind]
    types |= {f.source: _TYPES["number"] for f in data.schema.dense}
    types |= {
        f.source: {pl.String() if f.encoder else pl.Binary()}
        for f in data.schema.vectors
    }
    types |= {label.name: {pl.Float32()} for label in data.schema.labels}
    if data.time is not None:
        types[data.time] = {pl.Int64()}
    if data.propensity is not None:
        types[data.propensity] = {pl.Float64()}
    if data.user is not None:
        types.setdefault(data.user, {pl.String()})
    return types


# Integers may stay Int64: float64 has no digits for those above 2**53.
_TYPES: dict[str, set[pl.DataType]] = {
    "hex": {pl.UInt32()},
    "text": {pl.String()},
    "number": {pl.Int64(), pl.Float64()},
}


def check_rows(rows: pl.DataFrame, data: DataSet) -> None:
    """Refuse a frame whose columns or types the schema does not promise.

    A row without a time, or without a user where every row has one, is a bad row, which
    the adapter should have counted.

    Raises:
        SchemaError: names the column, what was found and what was expected.
    """
    expected = raw_types(data)
    if set(rows.columns) != set(expected):
        names = sorted(set(rows.columns) ^ set(expected))
        raise SchemaError(f"raw columns {names} are missing or not in the schema")
    for name, types in expected.items():
        if rows[name].dtype not in types:
            allowed = " or ".join(str(t) for t in types)
            raise SchemaError(f"{name} is {rows[name].dtype}, expected {allowed}")
    user = None if data.unknown_users else data.user
    for column in (data.time, user):
        nulls = 0 if column is None else rows[column].null_count()
        if nulls:
            raise SchemaError(
                f"{column} is null in {nulls} rows that were read as good, expected a"
                " value in each"
            )


def raw_files(config: DataConfig) -> tuple[Path, ...]:
    """The files of `data.raw`; a pattern means all files that it fits, in name order.

    Raises:
        ConfigError: no file is given, one is missing or given twice, or a pattern
            matches none.
    """
    files: list[Path] = []
    for pattern in config.raw:
        paths = matching(pattern) or [Path(pattern)]
        if not all(path.is_file() for path in paths):
            raise ConfigError(f"data.raw: no such file: {pattern}")
        files += sorted(paths, key=_name_order)
    return each_once(files)


def each_once(files: Sequence[Path]) -> tuple[Path, ...]:
    """The files, if there are some and none is given twice.

    Raises:
        ConfigError: otherwise.
    """
    # Rows that count twice would also be in two splits, and flatter every metric.
    counts = Counter(path.resolve() for path in files)
    repeated = [str(path) for path, times in counts.items() if times > 1]
    if repeated:
        raise ConfigError(
            f"data.raw: {', '.join(repeated)} named twice: their rows would count twice"
        )
    if not files:
        raise ConfigError("data.raw: none given; name the raw files: data.raw=PATH")
    return tuple(files)


def _name_order(path: Path) -> list[tuple[int, str]]:
    """A sort key by which numbers count as numbers: day_2 comes before day_10.

    In the order of text, days would be split by time in the wrong order.
    """
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
