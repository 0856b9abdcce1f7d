"""Which columns are labels: what happened after the ad was shown."""

import polars as pl

from torchrec_adrec.data.inspect import repairs
from torchrec_adrec.data.inspect.draft import Draft
from torchrec_adrec.data.inspect.evidence import TELLS, click_auc, comes_with_click
from torchrec_adrec.data.inspect.forms import FLAGS, Profile
from torchrec_adrec.data.inspect.repairs import Repair
from torchrec_adrec.data.inspect.words import (
    AFTERWARDS,
    LABELS,
    RATINGS,
    mentions,
    rank,
    words,
)
from torchrec_adrec.errors import DataError

LIKED = 0.8  # of the best rating, from which one is a click: 4 of 5 stars


def choose_click(draft: Draft, hint: str | None) -> None:
    """Propose the first label: a 0/1 column, or a rating from a threshold on.

    Args:
        draft: gets the label and the clicks of its rows.
        hint: the column that the user names.

    Raises:
        DataError: no column can be it.
    """
    column = hint or _flag(draft) or _rating(draft)
    if column is None:
        raise DataError(
            f"{draft.sample.path}: no column holds 0 and 1 for the click, and none is a"
            f" rating; found {', '.join(draft.profiles)}. Name it by --label. Of rows"
            " that are all clicks, docs/own_data.md says how to draw others"
        )
    form = draft.profiles[column].form
    if form == "flag":
        _take_flag(draft, column, "click")
    elif draft.profiles[column].is_number:
        _take_rating(draft, column)
    else:
        raise DataError(
            f"{draft.sample.path}: column {column} cannot be the click: expected 0 and"
            f" 1 or a rating, found {form}"
        )
    rate = float(str(draft.click.mean()))
    if not 0 < rate < 1:
        draft.unsure.append(f"All rows of the sample have the click {rate:g}.")


def choose_others(draft: Draft) -> None:
    """Propose further labels, and leave out what only the click's outcome tells."""
    for column in list(draft.left):
        shape = draft.profiles[column]
        with_click = comes_with_click(draft.rows, column, draft.click)
        is_named = mentions(column, AFTERWARDS)
        if shape.form == "flag" and (mentions(column, LABELS) or with_click):
            _take_flag(draft, column, draft.free_name(column))
        elif shape.is_number and (with_click or is_named):
            _take_value(draft, column, with_click)
        elif with_click:
            draft.leave_out(column, "has values in clicked rows only: it came later")
        elif click_auc(draft.rows, column, draft.click) >= TELLS:
            draft.leave_out(column, "tells the click by itself: it probably came later")
            draft.unsure.append(
                f"{column} predicts the click almost alone. If it is known when an ad"
                " is asked for, take it out of `ignore` and make it a feature."
            )


def _flag(draft: Draft) -> str | None:
    flags = [n for n in draft.left if draft.profiles[n].form == "flag"]
    whole = [n for n in flags if not draft.profiles[n].missing]
    named = [n for n in whole if _place(n) < len(LABELS)]
    if named:
        return min(named, key=_place)
    if len(whole) == 1 and _rating(draft) is None:
        draft.unsure.append(f"{whole[0]} is taken for the click: it alone is 0 or 1.")
        return whole[0]
    return None


def _place(name: str) -> int:
    places = [LABELS.index(word) for word in words(name) if word in LABELS]
    return min(places, default=len(LABELS))


def _rating(draft: Draft) -> str | None:
    for name in draft.left:
        shape = draft.profiles[name]
        # A score that is missing somewhere is no label of each row.
        few = shape.is_number and 3 <= shape.distinct <= 101 and not shape.missing
        if few and rank(name, RATINGS) is not None:
            return name
    return None


def _take_flag(draft: Draft, column: str, name: str) -> None:
    text = draft.rows[column].cast(pl.String).str.to_lowercase()
    values = text.replace_strict(FLAGS, default=None).cast(pl.Int8)
    is_plain = set(text.drop_nulls().unique()) <= {"0", "1", "0.0", "1.0"}
    if not is_plain and draft.profiles[column].type != pl.Boolean():
        change = Repair(column, column, repairs.flag, "yes and no become 1 and 0")
        draft.repairs.append(change)
    missing = draft.profiles[column].missing
    gaps = f", {missing:,} not observed" if missing else ""
    block = {"column": column} if name != column else {}
    draft.labels[name] = block, f"{float(str(values.mean())):.1%} are 1{gaps}"
    draft.left.remove(column)
    if name == "click":
        draft.click = values


def _take_rating(draft: Draft, column: str) -> None:
    """Make a click of a rating, which stays a second label."""
    numbers = _numbers(draft, column)
    best, least = float(str(numbers.max())), float(str(numbers.min()))
    steps = sorted(numbers.drop_nulls().unique())
    threshold = min(s for s in steps if s >= LIKED * best or s == steps[-1])
    draft.click = (numbers >= threshold).cast(pl.Int8)
    rate = float(str(draft.click.mean()))
    block = {"column": column, "at_least": threshold}
    about = f"{rate:.1%} are 1"
    draft.labels["click"] = block, about
    draft.unsure.append(
        f"A click is made of {column}: {threshold:g} or more of {best:g}. The model"
        " then tells who likes what among what was rated."
    )
    if least >= 0:
        value = {"kind": "value", "max_value": best}
        _name_value(draft, column, value, "the rating itself")
    else:
        draft.leave_out(column, "has negative numbers, a value starts from 0")


def _take_value(draft: Draft, column: str, with_click: bool) -> None:
    numbers = _numbers(draft, column)
    least = float(str(numbers.min()))
    limit = float(str(numbers.filter(numbers > 0).quantile(0.99) or 0))
    if least < 0 or limit <= 0:
        draft.leave_out(column, "came later, and is no value from 0")
        return
    if not with_click:
        draft.unsure.append(
            f"{column} is a label by its name alone; if it is known before an ad is"
            " shown, make it a feature."
        )
    value = {"kind": "value", "max_value": float(f"{limit:.3g}")}
    about = "comes with clicks only" if with_click else "by its name it came later"
    _name_value(draft, column, value, f"{about}; cut at 99% of its values")


def _name_value(
    draft: Draft, column: str, value: dict[str, object], about: str
) -> None:
    name = draft.free_name(column)
    block = value if name == column else {"column": column, **value}
    draft.labels[name] = block, about
    draft.left.remove(column)


def _numbers(draft: Draft, column: str) -> pl.Series:
    shape: Profile = draft.profiles[column]
    draft.doubt_broken(column, "numbers")
    values = draft.rows[column]
    if shape.comma:
        change = Repair(column, column, repairs.point, "decimal commas become points")
        draft.repairs.append(change)
    return values.cast(pl.Float64, strict=False)
