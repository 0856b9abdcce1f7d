"""The check for twins: one number that is written as two ids, like `7` and `7.0`.

pandas writes integers as 7.0 where others are missing. To most programs both are one
number, but ids are texts here, so a user or an ad would fall apart into two. A Parquet
column of floats is refused as ids; in a text file such ids look like any other text.
Ids that all have a point may be meant (a version 7.0), but both forms in one column are
not.
"""

import polars as pl

from torchrec_adrec.data.column import Chunk, Column, JaggedColumn
from torchrec_adrec.data.dataset import DataSet
from torchrec_adrec.data.prepare.spill import ChunkRef, ChunkStore, map_chunks
from torchrec_adrec.errors import DataError

WITH_POINT = r"^[+-]?[0-9]+[.]0*$"
SHOWN = 3  # numbers that the message names


def refuse_twins(store: ChunkStore, data: DataSet) -> None:
    """Refuse a column of ids that writes one number both with a point and without.

    A sequence that shares the ids of an ad's feature is one column with it.

    Raises:
        DataError: names the column, the forms, and where each stands first.
    """
    id_columns = _id_columns(data)
    # A feature made of the user's column holds the same texts: report them once. Prose
    # is no id: a title may be 7.0.
    left_out = {f.source for f in data.schema.vectors}
    left_out |= {data.user} if data.user and data.copies.get(data.user) else set()

    def numbers_with_point(ref: ChunkRef) -> list[tuple[str, pl.Series]]:
        chunk = ref.load()
        pairs = []
        for name in chunk.columns:
            texts = _texts(chunk, name)
            with_point = texts.filter(texts.str.contains(WITH_POINT))
            if name not in left_out and len(with_point):
                pairs.append((id_columns.get(name, name), _numbers_of(with_point)))
        return pairs

    # The first pass collects the numbers that are written with a point anywhere. Most
    # data have none and are done; only otherwise a second pass looks for other forms.
    numbers: dict[str, pl.Series] = {}
    for pairs in map_chunks(store.chunks, numbers_with_point):
        for name, with_point in pairs:
            known = numbers.get(name, with_point.clear())
            numbers[name] = pl.concat([known, with_point]).unique()
    if numbers:
        _refuse(_forms(store, numbers, id_columns), data)


def _id_columns(data: DataSet) -> dict[str, str]:
    """Return, by sequence, the column whose ids it shares; both are raw columns."""
    sources = {feature.name: feature.source for feature in data.schema.sparse}
    return {
        f.source: sources[f.shares_ids_with]
        for f in data.schema.sequences
        if f.shares_ids_with
    }


def _texts(chunk: Chunk, name: str) -> pl.Series:
    """Return the distinct texts of a column, or none if it holds something else."""
    values = _scalars(chunk, name).values
    return values if values.dtype == pl.String else pl.Series([], dtype=pl.String)


def _scalars(chunk: Chunk, name: str) -> Column:
    column = chunk.columns[name]
    return column.items if isinstance(column, JaggedColumn) else column


def _numbers_of(texts: pl.Series) -> pl.Series:
    """Return the number in each text, as a text without a point and a plus."""
    return texts.str.replace(r"[.]0*$", "").str.strip_prefix("+")


def _forms(
    store: ChunkStore, numbers: dict[str, pl.Series], id_columns: dict[str, str]
) -> pl.DataFrame:
    """Return every form of some numbers.

    Args:
        store: the chunks to look through.
        numbers: the numbers to look for, by column.
        id_columns: see `_id_columns`.

    Returns:
        `column`, `number`, `text`, and the `file` and `row` in which it stands first.
    """

    def forms_in_chunk(ref: ChunkRef) -> list[pl.DataFrame]:
        chunk = ref.load()
        columns = {name: id_columns.get(name, name) for name in chunk.columns}
        return [
            _forms_in_column(chunk, name, numbers[column], ref).with_columns(
                pl.lit(column).alias("column")
            )
            for name, column in columns.items()
            if column in numbers
        ]

    parts = [p for parts in map_chunks(store.chunks, forms_in_chunk) for p in parts]
    order = ("column", "number", "text")
    # `first` is the earliest row, as the chunks come in the order of the rows.
    return pl.concat(parts).group_by(order, maintain_order=True).first().sort(order)


def _forms_in_column(
    chunk: Chunk, name: str, numbers: pl.Series, ref: ChunkRef
) -> pl.DataFrame:
    """Return the forms of some numbers in one column of a chunk, first rows first."""
    scalars, column = _scalars(chunk, name), chunk.columns[name]
    texts = pl.DataFrame(
        {"text": _texts(chunk, name)}, schema={"text": pl.String}
    ).with_row_index("code")
    codes = pl.DataFrame({"code": scalars.codes}).with_row_index("position")
    first = codes.group_by("code").agg(pl.col("position").min())
    forms = (
        texts.with_columns(number=_numbers_of(texts["text"]))
        .filter(pl.col("number").is_in(numbers.implode()))
        .join(first.cast({"code": pl.UInt32}, strict=False), on="code")
    )
    rows = forms["position"].to_numpy()
    if isinstance(column, JaggedColumn):  # the position is then one among all items
        rows = column.offsets.searchsorted(rows, "right") - 1
    return forms.select(
        "number",
        "text",
        pl.lit(ref.file).alias("file"),
        pl.Series("row", rows + ref.row_in_file + 1).cast(pl.Int64),
    ).sort("row")


def _refuse(forms: pl.DataFrame, data: DataSet) -> None:
    twins = forms.filter(pl.len().over("column", "number") > 1)
    if not len(twins):
        return
    numbers = twins.group_by("column", "number", maintain_order=True).agg(
        "text", "file", "row"
    )
    named = [
        f"{column.removeprefix('row:')}: "
        + " and ".join(
            f"{text!r} ({data.files[file]}, good row {row})"
            for text, file, row in zip(texts, files, rows, strict=True)
        )
        for column, _, texts, files, rows in numbers.head(SHOWN).iter_rows()
    ]
    raise DataError(
        f"one number is written as two ids: {'; '.join(named)} ({len(numbers):,}"
        " numbers in all); write each id in one form (pandas writes integers as 7.0"
        " where some are missing: convert the column with astype('Int64') first)"
    )
