"""What each raw column adds to the scores of one user and one ad.

A column is left out, that is replaced by its missing value, and everything that is made
of it (ids, numbers, statistics, pairs) is computed again. What the score loses by that
is its contribution. Contributions do not add up to the score: where two columns say the
same, leaving out one of them changes nothing.
"""

import numpy as np
import polars as pl
import torch

from torchrec_adrec.arrays import Columns, Float64s
from torchrec_adrec.data.column import RawColumns
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.data.request import RawUser, raw_ads, raw_user, raw_users
from torchrec_adrec.errors import PredictionError
from torchrec_adrec.schema import AD_ID, SCORE, Schema, Side
from torchrec_adrec.serve.parts import Parts

ADDS = "adds:"  # before the name of a label, which could be that of another column
Values = dict[str, Float64s]


def contributions(
    parts: Parts, user: RawUser, row: int, served: dict[str, float]
) -> pl.DataFrame:
    """Leave out each column of a user and an ad in turn, in one pass of the models.

    Args:
        parts: loaded.
        user: raw columns.
        row: of the ad in the catalog.
        served: the ad's prediction of each label as it is served.

    Returns:
        A line for each column that has a value: `side`, `column`, `given`, and what the
        column adds to each prediction and to the towers' inner product, as `adds:click`
        and `adds:score`.

    Raises:
        DataError: a column or a value is not one of a user.
        PredictionError: a number is not finite, or the predictions of the whole row are
            not the served ones.
    """
    raw_user(user, parts.encoder.schema)  # its errors name no row
    shown = parts.scorer.shown.drop(AD_ID).row(row, named=True)
    given = {Side.USER: _given(user), Side.AD: _given(shown)}
    names = [(side, name) for side in Side for name in given[side]]
    values = _without_each(parts, names, given, row)
    _check(parts, values, served)
    differences = {f"{ADDS}{n}": column[0] - column[1:] for n, column in values.items()}
    return pl.DataFrame(
        {
            "side": [str(side) for side, _ in names],
            "column": [name for _, name in names],
            "given": [str(given[side][name]) for side, name in names],
        }
        | differences
    )


def _given(raw: RawUser) -> RawUser:
    """Keep the columns that have a value; the others are left out already."""
    return {name: v for name, v in raw.items() if v is not None and v not in ("", [])}


@torch.inference_mode()
def _without_each(
    parts: Parts,
    names: list[tuple[Side, str]],
    given: dict[Side, RawUser],
    row: int,
) -> Values:
    """Compute all scores of the whole pair and of it without each column, (1 + C,)."""
    schema, encoder = parts.encoder.schema, parts.encoder
    raw: RawColumns = {}
    inputs = {}
    for side in Side:
        frame = _variants(names, schema, side, given[side])
        columns = (raw_users if side is Side.USER else raw_ads)(frame, schema)
        encoded = encoder.encode(columns, side)
        if side is Side.AD:
            encoded = _of_catalog(encoded, parts.scorer.columns, row)
        raw |= columns
        inputs[side] = tower_input(encoded, schema, side)
    users, ads = inputs[Side.USER], inputs[Side.AD]
    of_users, of_ads, clicks = parts.towers(users, ads)
    cross = encoder.encode_cross(raw)
    predictions = parts.scorer.score_pairs(users, ads, cross, clicks)
    scores = (of_users * of_ads).sum(dim=1).double().numpy()
    if not np.isfinite(scores).all():
        raise PredictionError(
            "the towers' score without some column is not finite: `adrec checkpoint"
            " inspect` shows whether their weights are; train again"
        )
    return {**predictions, SCORE: scores}


def _variants(
    names: list[tuple[Side, str]], schema: Schema, side: Side, given: RawUser
) -> pl.DataFrame:
    """Make a row of all values, and one without each column of either side."""
    columns = {}
    for name, value in given.items():
        without = [None if left_out == (side, name) else value for left_out in names]
        # Not strict: a vector may be written with integers among its numbers.
        columns[name] = pl.Series([value, *without], strict=False)
    nothing = pl.Series([None] * (len(names) + 1), dtype=pl.String)
    unknown = dict.fromkeys(schema.sources_of(side), nothing)
    return pl.DataFrame(unknown | columns)


def _of_catalog(encoded: Columns, catalog: Columns, row: int) -> Columns:
    """Take what leaving a column out does not change from the catalog, as serving does.

    The catalog shows numbers as text, which need not be all of their digits.
    """
    return {
        name: np.where(column == column[0], catalog[name][row], column).astype(
            column.dtype
        )
        for name, column in encoded.items()
    }


def _check(parts: Parts, values: Values, served: dict[str, float]) -> None:
    settings = parts.settings
    # An engine rounds by what else is in its batch.
    allowed = 1e-3 + (0 if settings.serves_exactly else 2 * settings.max_score_error)
    for label, expected in served.items():
        actual = values[label][0]
        if not abs(actual - expected) <= allowed * abs(expected):
            raise PredictionError(
                f"{label} is served as {expected:.6g} and explained as {actual:.6g}:"
                " the ad's raw values in the catalog do not give its features; run"
                " `adrec prepare` again"
            )
