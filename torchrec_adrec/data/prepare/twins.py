"""One number written as two ids: `7` and `7.0` are one in most programs, but not here.

pandas writes integers as 7.0 where others are missing. A Parquet column of floats is
refused as ids; in a text file they look like any text. Ids that all have a point may be
meant (a version 7.0), both forms in one column are not.
"""

import polars as pl

from torchrec_adrec.data.column import Chunk, Column, JaggedColumn
from torchrec_adrec.data.dataset import DataSet
from torchrec_adrec.data.prepare.spill import ChunkRef, ChunkStore, map_chunks
from torchrec_adrec.errors import DataError

WITH_POINT = r"^[+-]?[0-9]+[.]0*$"
SHOWN = 3


def refuse_twins(store: ChunkStore, data: DataSet) -> None:
    """Refuse a column of ids that writes one number both with a point and without.

    A sequence that shares the ids of an ad's feature is one column with it.

    Raises:
        DataError: names the column, the forms, and where each stands first.
    """
    ids = _id_columns(data)
    twice = data.user if data.user and data.copies.get(data.user) else None

    def with_point(ref: ChunkRef) -> list[tuple[str, pl.Series]]:
        chunk = ref.load()
        found = ((n, _texts(chunk, n)) for n in chunk.columns if n != twice)
        return [
            (ids.get(name, name), _number(some))
            for name, texts in found
            if len(some := texts.filter(texts.str.contains(WITH_POINT)))
        ]

    numbers: dict[str, pl.Series] = {}
    for found in map_chunks(store.chunks, with_point):
        for name, some in found:
            known = numbers.get(name, some.clear())
            numbers[name] = pl.concat([known, some]).unique()
    if numbers:
        _refuse(_forms(store, numbers, ids), data)


def _id_columns(data: DataSet) -> dict[str, str]:
    """The column whose ids a sequence shares, by sequence; raw names."""
    sources = {feature.name: feature.source for feature in data.schema.sparse}
    return {
        f.source: sources[f.shares_ids_with]
        for f in data.schema.sequences
        if f.shares_ids_with
    }


def _texts(chunk: Chunk, name: str) -> pl.Series:
    """The distinct texts of a column; none where it holds something else."""
    values = _scalars(chunk, name).values
    return values if values.dtype == pl.String else pl.Series([], dtype=pl.String)


def _scalars(chunk: Chunk, name: str) -> Column:
    column = chunk.columns[name]
    return column.items if isinstance(column, JaggedColumn) else column


def _number(texts: pl.Series) -> pl.Series:
    return texts.str.replace(r"[.]0*$", "").str.strip_prefix("+")


def _forms(
    store: ChunkStore, numbers: dict[str, pl.Series], ids: dict[str, str]
) -> pl.DataFrame:
    """Every form of some numbers: column, number, text, and its first file and row."""

    def look(ref: ChunkRef) -> list[pl.DataFrame]:
        chunk = ref.load()
        wanted = (n for n in chunk.columns if ids.get(n, n) in numbers)
        return [
            _found(chunk, name, ids.get(name, name), numbers[ids.get(name, name)], ref)
            for name in wanted
        ]

    parts = [part for found in map_chunks(store.chunks, look) for part in found]
    order = ("column", "number", "text")
    return pl.concat(parts).group_by(order, maintain_order=True).first().sort(order)


def _found(
    chunk: Chunk, name: str, column: str, numbers: pl.Series, ref: ChunkRef
) -> pl.DataFrame:
    """The forms in one chunk."""
    scalars, whole = _scalars(chunk, name), chunk.columns[name]
    texts = pl.DataFrame(
        {"text": _texts(chunk, name)}, schema={"text": pl.String}
    ).with_row_index("code")
    first = pl.DataFrame({"code": scalars.codes}).with_row_index("at")
    rows = first.group_by("code").agg(pl.col("at").min())
    found = (
        texts.with_columns(number=_number(texts["text"]))
        .filter(pl.col("number").is_in(numbers.implode()))
        .join(rows.cast({"code": pl.UInt32}, strict=False), on="code")
    )
    at = found["at"].to_numpy()
    row = (
        whole.offsets.searchsorted(at, "right") - 1
        if isinstance(whole, JaggedColumn)
        else at
    )
    return found.select(
        pl.lit(column).alias("column"),
        "number",
        "text",
        pl.lit(ref.file).alias("file"),
        pl.Series("row", row + ref.row_in_file + 1).cast(pl.Int64),
    ).sort("row")


def _refuse(forms: pl.DataFrame, data: DataSet) -> None:
    twice = forms.filter(pl.len().over("column", "number") > 1)
    if not len(twice):
        return
    pairs = twice.group_by("column", "number", maintain_order=True).agg(
        "text", "file", "row"
    )
    named = [
        f"{column.removeprefix('row:')}: "
        + " and ".join(
            f"{text!r} ({data.files[file]}, good row {row})"
            for text, file, row in zip(texts, files, rows, strict=True)
        )
        for column, _, texts, files, rows in pairs.head(SHOWN).iter_rows()
    ]
    raise DataError(
        f"one number is written as two ids: {'; '.join(named)} ({len(pairs):,} numbers"
        " in all); write each id in one form (pandas writes integers as 7.0 where some"
        " are missing: convert the column with astype('Int64') first)"
    )
