"""What the rows say: which column determines another, which tells the label."""

import polars as pl

MIN_ROWS = 100  # from fewer, every column tells the label by chance
TELLS, HINTS = 0.95, 0.75  # AUC of a column alone; real ones stay far below the first
DEPENDS = 0.95  # of the way from guessing to knowing
RARE, OFTEN = 0.02, 0.1  # shares of rows in which an outcome has a value


def determined(rows: pl.DataFrame, key: str, column: str) -> float:
    """How far a key determines a column: 0 no better than always guessing one value.

    It is counted on the rows whose key comes at least twice.
    """
    pair = rows.select(pl.col(key).cast(pl.String), _text(rows, column))
    pair = pair.drop_nulls(key).filter(pl.len().over(key) > 1)
    if pair.is_empty():
        return 0.0
    largest = pair.group_by(key, "value").len().group_by(key).agg(pl.col("len").max())
    share = float(largest["len"].sum()) / len(pair)
    guess = float(str(pair["value"].value_counts()["count"].max())) / len(pair)
    return (share - guess) / (1 - guess) if guess < 1 else 0.0


def comes_with_click(rows: pl.DataFrame, column: str, click: pl.Series) -> bool:
    """Whether a column has values in clicked rows and hardly any in the others."""
    values = rows[column]
    empty = values.is_null()
    if values.dtype.is_numeric() or values.dtype == pl.String:
        numbers = values.cast(pl.Float64, strict=False)
        empty = empty | (numbers == 0).fill_null(False)
    known = ~empty
    clicked, others = known.filter(click == 1), known.filter(click == 0)
    if not len(clicked) or not len(others):
        return False
    shares = float(str(clicked.mean())), float(str(others.mean()))
    return shares[1] <= RARE and shares[0] >= OFTEN


def click_auc(rows: pl.DataFrame, column: str, click: pl.Series) -> float:
    """Return the AUC of a column alone, on rows that it was not fitted on.

    0.5 if the rows, or those with a known value, are too few to tell.
    """
    pair = rows.select(_text(rows, column), click.alias("click"))
    pair = pair.with_columns(
        number=pl.col("value").cast(pl.Float64, strict=False)
    ).with_row_index()
    if len(pair) < MIN_ROWS:
        return 0.5
    best = 0.5
    if pair["number"].count() > 0.5 * len(pair):
        scored = pair.select("click", score=pl.col("number")).drop_nulls()
        best = max(_auc(scored), 1 - _auc(scored))
    # A rate that is fitted on half of the rows, and judged on the other half.
    rates = (
        pair.filter(pl.col("index") % 2 == 0)
        .group_by("value")
        .agg(score=pl.col("click").mean())
    )
    held = pair.filter(pl.col("index") % 2 == 1)
    scored = held.join(rates, on="value", nulls_equal=True).select("click", "score")
    return max(best, _auc(scored)) if len(scored) > 0.5 * len(held) else best


def _auc(scored: pl.DataFrame) -> float:
    clicked = scored["click"] == 1
    positives, negatives = int(clicked.sum()), int((~clicked).sum())
    if not positives or not negatives:
        return 0.5
    ranks = scored["score"].rank("average").filter(clicked).sum()
    above = float(ranks) - positives * (positives + 1) / 2
    return above / (positives * negatives)


def _text(rows: pl.DataFrame, column: str) -> pl.Expr:
    value = pl.col(column)
    if isinstance(rows[column].dtype, pl.List):
        # As text, vectors of 512 numbers in 100,000 rows would take gigabytes. The
        # sign in front keeps a hash from being taken for an amount.
        value = pl.when(value.is_not_null()).then(pl.format("#{}", value.hash()))
    return value.cast(pl.String).alias("value")
