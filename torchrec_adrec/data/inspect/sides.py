"""Which of the remaining columns describe the user, which the ad, and how."""

from typing import Any

import polars as pl

from torchrec_adrec.data.inspect import repairs
from torchrec_adrec.data.inspect.draft import Draft
from torchrec_adrec.data.inspect.evidence import (
    DEPENDS,
    HINTS,
    click_auc,
    determined,
)
from torchrec_adrec.data.inspect.forms import LONG, Profile
from torchrec_adrec.data.inspect.ids import id_block
from torchrec_adrec.data.inspect.repairs import Repair
from torchrec_adrec.data.inspect.words import (
    AD_SIDE,
    ADS,
    IDS,
    QUANTITIES,
    REQUESTS,
    USER_SIDE,
    mentions,
    rank,
)

FEW = 31  # hours, days of a month: integers that are names of kinds rather than amounts
LONGEST_SET = 20  # unless `max_length` says more
SHARED = 0.5  # share of a list's items that are ads
VARIES = (
    "it sounds like the ad's, but varies within one, and the catalog holds its latest"
    " value. Is it known whoever sees the ad?"
)


def leave_out_useless(draft: Draft) -> None:
    """Leave out columns that teach nothing, or cannot be read."""
    reasons = {"empty": "no value", "constant": "one value", "other": "no known type"}
    for column in list(draft.left):
        shape = draft.profiles[column]
        if shape.form in reasons:
            draft.leave_out(column, reasons[shape.form])
        elif shape.is_unique and shape.is_id and shape.form != "decimal":
            draft.leave_out(column, "nearly every row has another value")
        elif shape.form == "text" and shape.mean_length > LONG:
            draft.leave_out(column, "prose, which no id holds; `embedded_text` can")
        elif rank(column, REQUESTS) is not None:
            draft.leave_out(column, "names a request, which never comes back")
        elif shape.form == "time":
            draft.leave_out(column, "a time is no feature as it is")


def choose_sides(draft: Draft) -> None:
    """Make features of the columns that are left."""
    for column in list(draft.left):
        draft.left.remove(column)
        side, why, doubt = _side(draft, column)
        name = draft.free_name(column)
        block, about = _block(draft, column, name, side)
        if doubt and "shares_ids_with" not in block:  # a history has a doubt of its own
            draft.unsure.append(f"{column}: {doubt}")
        draft_side = draft.ad if side == "ad" else draft.user
        draft_side[name] = block, "; ".join(filter(None, (about, why)))


def _side(draft: Draft, column: str) -> tuple[str, str, str]:
    """Return the side of a column, what is special about it, and a doubt."""
    ad, user = _column_of(draft.ad), _column_of(draft.user)
    by_ad = determined(draft.rows, ad, column)
    by_user = determined(draft.rows, user, column) if user else 0.0
    named = "user" if mentions(column, USER_SIDE) else ""
    named = "ad" if mentions(column, AD_SIDE) and not named else named
    if max(by_ad, by_user) >= DEPENDS:
        side = "ad" if by_ad >= by_user else "user"
        if named and named != side:
            draft.unsure.append(
                f"{column} sounds like the {named}'s, but"
                f" {ad if side == 'ad' else user} determines it: the {side}'s."
            )
        return side, "", ""
    if named == "ad" and mentions(column, ADS) and _share_of_ads(draft, column):
        # "Read articles" and "last item" are the user's, whatever the name ends on.
        return "user", "", "it holds ads, and must be known before its row."
    if named == "ad":
        return "ad", "varies within an ad", VARIES
    doubt = "neither the ad nor the user determines it; taken as known when an ad is"
    auc = click_auc(draft.rows, column, draft.click)
    if auc >= HINTS:
        known = f"asked for. It alone has an AUC of {auc:.2f}: was it known then?"
        return "user", "", f"{doubt} {known}"
    return "user", "", "" if named else f"{doubt} asked for."


def _column_of(side: dict[str, tuple[Any, str]]) -> str:
    """The column of the side's id, which is its first feature."""
    for name, (block, _) in side.items():
        return str(block.get("column", name))
    return ""


def _block(draft: Draft, column: str, name: str, side: str) -> tuple[Any, str]:
    shape = draft.profiles[column]
    source = {} if name == column else {"column": column}
    if shape.form == "list":
        return _list_block(draft, shape, source, side)
    if shape.form == "hex":
        return {**source, "kind": "hex"}, ""
    if shape.is_number and _is_amount(draft, shape):
        draft.doubt_broken(column, "numbers")
        if shape.comma:
            change_text = "decimal commas become points"
            draft.repairs.append(Repair(column, column, repairs.point, change_text))
        return {**source, "kind": "number"}, ""
    if shape.form == "decimal":  # whole, so that it is an id
        return id_block(draft, column, name), f"{shape.distinct:,} values"
    about = f"{shape.distinct:,} values"
    if shape.zeros:
        about += ", text because of leading zeros"
    return {**source, "kind": "text"}, about


def _is_amount(draft: Draft, shape: Profile) -> bool:
    """Whether a number is an amount; else it is an id that looks like one."""
    if not shape.whole:
        return True
    if shape.zeros or mentions(shape.name, IDS):
        return False
    if mentions(shape.name, QUANTITIES):
        return True
    numbers = draft.rows[shape.name].cast(pl.Float64, strict=False)
    spread = float(str(numbers.max())) - float(str(numbers.min())) + 1
    is_amount = shape.distinct > FEW and spread < 10 * shape.distinct
    kind = "an amount" if is_amount else "an id"
    draft.unsure.append(
        f"{shape.name} is taken for {kind}; its integers may be either."
    )
    return is_amount


def _list_block(
    draft: Draft, shape: Profile, source: dict[str, str], side: str
) -> tuple[dict[str, Any], str]:
    block: dict[str, Any] = {**source, "kind": "sequence"}
    lists, about = _lists(draft, shape), "a list"
    form = shape.list
    if form is not None and form.separator is not None:
        separator = form.separator
        if form.brackets:
            change = repairs.items(separator)
            change_text = "lists lose their brackets and quotes"
            draft.repairs.append(Repair(shape.name, shape.name, change, change_text))
            separator = "|"
        if separator != " ":
            block["separator"] = separator
    if _is_vector(draft, shape, lists):
        return {**block, "kind": "vector"}, "a vector"
    if side == "ad":  # what an ad has several of is a set
        longest = int(str(lists.list.len().max() or 0))
        larger = {"max_length": longest} if longest > LONGEST_SET else {}
        return {**block, "kind": "list", **larger}, "a list"
    if shared := _share_of_ads(draft, shape.name):
        block["shares_ids_with"] = next(iter(draft.ad))
        about = f"a history: {shared:.0%} of its items are ads"
        draft.unsure.append(
            f"{shape.name} must hold only what came before its row, the latest last."
        )
    return block, about


def _is_vector(draft: Draft, shape: Profile, lists: pl.Series) -> bool:
    if shape.list is not None and shape.list.is_vector:
        return True
    if not isinstance(shape.type, pl.List) or not shape.type.inner.is_numeric():
        return False
    lengths = lists.list.len().drop_nulls().unique()
    of_integers = len(lengths) == 1 and lengths[0] > LONGEST_SET
    if of_integers and shape.type.inner.is_integer():
        draft.unsure.append(
            f"{shape.name} is taken for a vector, as all of its lists have"
            f" {lengths[0]} integers; if they are ids, make it a list."
        )
        return True
    return shape.type.inner.is_float()


def _lists(draft: Draft, shape: Profile) -> pl.Series:
    """The lists of a column, of which a text file has the printed form."""
    values, form = draft.rows[shape.name], shape.list
    if form is None or form.separator is None:
        return values
    separator = form.separator
    if form.brackets:
        values = values.map_elements(repairs.items(separator), return_dtype=pl.String)
        separator = "|"
    parts = pl.element().str.strip_chars()
    return values.str.split(separator).list.eval(parts)


def _share_of_ads(draft: Draft, column: str) -> float:
    """The share of a column's ids, or of its lists' items, that are ads; 0 if few."""
    shape = draft.profiles[column]
    if shape.form == "list":
        parts = _lists(draft, shape).explode()
    elif shape.is_id:
        parts = draft.rows[column]
    else:
        return 0.0
    ads = draft.rows[_column_of(draft.ad)].cast(pl.String).unique().implode()
    share = float(parts.drop_nulls().cast(pl.String).is_in(ads).mean() or 0)  # type: ignore[arg-type]
    return share if share >= SHARED else 0.0
