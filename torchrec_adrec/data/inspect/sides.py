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
            draft.leave_out(column, "prose, which no id can hold")
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
    if named == "ad":
        return "ad", "varies within an ad", ""
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
    if isinstance(shape.type, pl.List) and shape.type.inner.is_float():
        return {**source, "kind": "vector"}, "a vector"
    form = shape.list
    block: dict[str, Any] = {**source, "kind": "sequence"}
    lists = draft.rows[shape.name]
    about = "a list"
    if form is not None and form.separator is not None:
        separator = form.separator
        if form.brackets:
            change = repairs.items(separator)
            change_text = "lists lose their brackets and quotes"
            draft.repairs.append(Repair(shape.name, shape.name, change, change_text))
            lists = lists.map_elements(change, return_dtype=pl.String)
            separator = "|"
        if separator != " ":
            block["separator"] = separator
        lists = lists.str.split(separator)
        lists = lists.list.eval(pl.element().str.strip_chars())
    if side == "ad":  # what an ad has several of is a set
        longest = int(str(lists.list.len().max() or 0))
        larger = {"max_length": longest} if longest > LONGEST_SET else {}
        return {**block, "kind": "list", **larger}, "a list"
    ads = next(iter(draft.ad))
    column = draft.ad[ads][0].get("column", ads)
    texts = draft.rows[column].cast(pl.String)
    parts = lists.explode().drop_nulls().cast(pl.String)
    shared = float(parts.is_in(texts.unique().implode()).mean() or 0)  # type: ignore[arg-type]
    if shared >= SHARED:
        block["shares_ids_with"] = ads
        about = f"a history: {shared:.0%} of its items are ads"
        draft.unsure.append(
            f"{shape.name} must hold only what came before its row, the latest last."
        )
    return block, about
