"""Which columns name the time, the user and the ad of a row."""

from collections.abc import Collection

import polars as pl

from torchrec_adrec.data.inspect import repairs
from torchrec_adrec.data.inspect.draft import Draft
from torchrec_adrec.data.inspect.evidence import DEPENDS, determined
from torchrec_adrec.data.inspect.repairs import Repair
from torchrec_adrec.data.inspect.words import (
    AD_SIDE,
    ADS,
    REQUESTS,
    TIMES,
    USER_SIDE,
    USERS,
    ends_on,
    mentions,
    rank,
    words,
)
from torchrec_adrec.errors import DataError

KINDS, ROWS_OF_A_KIND = 31, 100  # so few values of so many rows each name no user
NO_HOUR = 1_000_000  # 14102100 is an hour of a day of a year; 0 to 23 come every day


def choose_time(draft: Draft) -> None:
    """Propose the column of times; other times are left out."""
    named = {n: _time_place(n) for n in draft.left}
    times = [n for n in draft.left if draft.profiles[n].form == "time"]
    times.sort(key=lambda n: (draft.profiles[n].missing, named[n]))
    # A number of unknown unit is a time by its name alone, as 14102100 for an hour.
    counts = [n for n in draft.left if draft.profiles[n].form == "integer"]
    counts = [n for n in counts if rank(n, TIMES) is not None and _goes_on(draft, n)]
    if not times and not counts:
        draft.unsure.append(
            "No column is a time. The rows must then be in time order; if they are not,"
            " set data.split.by to user or random."
        )
        return
    if not times:
        draft.unsure.append(f"{counts[0]} is a time by its name alone.")
    column, *others = times or counts[:1]
    _take_time(draft, column)
    for other in others:
        draft.leave_out(other, f"a second time beside {column}")
        draft.unsure.append(f"{column} is the time of a row, or is it {other}?")


def _goes_on(draft: Draft, column: str) -> bool:
    """Whether numbers may be times: large or rising, and no hours from 0 to 23."""
    numbers = draft.rows[column].cast(pl.Float64, strict=False)
    return numbers.is_sorted() or float(str(numbers.min())) >= NO_HOUR


def _time_place(name: str) -> int:
    places = [TIMES.index(word) for word in words(name) if word in TIMES]
    return min(places, default=len(TIMES))


def _take_time(draft: Draft, column: str) -> None:
    shape = draft.profiles[column]
    form = shape.time
    block: object = {"column": column, "kind": "number"}
    if form is None:
        about = "integers of unknown unit"
    elif form.kind == "number":
        about = f"{form.unit} since 1970"
    else:
        about, block = "ISO", column
    if form is not None and form.kind == "format":
        about = f"was {form.format}"
        change = Repair(column, column, repairs.moment(form.format), "times become ISO")
        draft.repairs.append(change)
    if form is not None and form.is_float:
        change = Repair(column, column, repairs.whole, "times become whole numbers")
        draft.repairs.append(change)
    if form is not None and form.doubt:
        draft.unsure.append(f"{column} is {form.doubt}.")
    if shape.missing:
        draft.unsure.append(f"{shape.missing:,} rows have no {column}: bad rows.")
    draft.doubt_broken(column, "times")
    draft.time = block, about
    draft.left.remove(column)


def choose_ids(draft: Draft, user: str | None, ad: str | None) -> None:
    """Propose the columns that name the user and the ad.

    Args:
        draft: gets the settings and a feature of each.
        user: the user's column, if it was named.
        ad: the ad's column, if it was named.

    Raises:
        DataError: no column can name the ad.
    """
    ad = ad or _named(draft, "ad", ADS, without=[user])
    kinds = [n for n in draft.left if _is_kind(draft, n)]
    user = user or _named(draft, "user", USERS, without=[ad, *kinds])
    is_guess = ad is None
    ad = ad or _guess(draft, without=[user])
    if ad is None:
        raise DataError(
            f"{draft.sample.path}: no column can name the ad, of"
            f" {', '.join(draft.left)}; name it by --ad"
        )
    user = user or _request(draft, ad)
    if user is None:
        parts = [n for n in draft.left if determined(draft.rows, ad, n) >= DEPENDS]
        user = _guess(draft, without=[*kinds, *parts])
        if user is not None and is_guess and _sounds_swapped(draft, ad, user):
            ad, user = user, ad
        _doubt_guess(draft, "user", user)
    if is_guess:
        _doubt_guess(draft, "ad", ad)
    draft.left.remove(ad)
    shape = draft.profiles[ad]
    name = draft.free_name(ad if ad not in ("ad_id", "ad_key") else "ad")
    about = f"{shape.distinct:,} ads in {shape.rows:,} rows"
    draft.ad[name] = id_block(draft, ad, name), about
    if shape.missing:
        draft.unsure.append(f"{shape.missing:,} rows have no {ad}: no ad_id then.")
    else:
        draft.ad_id = ad, "an ad is one row of the catalog, with its latest values"
    if user is None:
        draft.unsure.append("No column names the user; if one does, name it by --user.")
    else:
        _take_user(draft, user)


def _take_user(draft: Draft, column: str) -> None:
    shape = draft.profiles[column]
    draft.left.remove(column)
    name = draft.free_name(column)
    about = f"{shape.distinct:,} users in {shape.rows:,} rows"
    draft.user[name] = id_block(draft, column, name), about
    if shape.missing:
        draft.unsure.append(
            f"{shape.missing:,} rows have no {column}: no user_id then."
        )
    else:
        draft.user_id = column, "for lists and intervals by user"
    if shape.is_unique:
        draft.unsure.append(f"Hardly any {column} comes twice: is it the user?")


def id_block(draft: Draft, column: str, name: str) -> object:
    """The block of an id; numbers that were written as 7.0 are mended."""
    shape = draft.profiles[column]
    if shape.as_float or (shape.type.is_float() and shape.whole):
        change = Repair(column, column, repairs.whole, "ids such as 7.0 become 7")
        draft.repairs.append(change)
    return {"kind": "text"} if name == column else {"column": column, "kind": "text"}


def _named(
    draft: Draft, side: str, known: tuple[str, ...], without: Collection[str | None]
) -> str | None:
    """Return the column whose name is first among known words, or ends on one."""
    named = [n for n in draft.left if _can_name(draft, n) and n not in without]
    if exact := [n for n in named if rank(n, known) is not None]:
        return min(exact, key=lambda n: rank(n, known) or 0)
    column = _largest(draft, [n for n in named if ends_on(n, known)])
    if column is not None:
        draft.unsure.append(f"{column} stands for the {side} by the end of its name.")
    return column


def _request(draft: Draft, ad: str) -> str | None:
    """Return the column that names a request, which is better than no user at all."""
    named = [n for n in draft.left if _can_name(draft, n) and n != ad]
    named = [n for n in named if rank(n, REQUESTS) is not None]
    if not named:
        return None
    column = min(named, key=lambda n: rank(n, REQUESTS) or 0)
    draft.unsure.append(
        f"{column} stands for the user; it seems to name a request, of which no"
        " other comes. What is known of the user is missing: join it to the rows, or"
        ' name its file under `users` (docs/own_data.md, "Several tables").'
    )
    return column


def _is_kind(draft: Draft, column: str) -> bool:
    """Whether a column names kinds, as a device that is one of two, and no users."""
    shape = draft.profiles[column]
    return shape.distinct <= KINDS and shape.known > ROWS_OF_A_KIND * shape.distinct


def _guess(draft: Draft, without: Collection[str | None]) -> str | None:
    """Return the column with the most values of those that come twice on average."""
    ids = [n for n in draft.left if _can_name(draft, n) and n not in without]
    ids = [n for n in ids if rank(n, REQUESTS) is None]
    ids = [n for n in ids if draft.profiles[n].distinct <= draft.profiles[n].known / 2]
    return _largest(draft, ids)


def _doubt_guess(draft: Draft, side: str, column: str | None) -> None:
    if column is not None:
        draft.unsure.append(
            f"{column} stands for the {side}, as no name tells which it is."
        )


def _sounds_swapped(draft: Draft, ad: str, user: str) -> bool:
    """Whether what sounds like the user's (a country) goes with the supposed ad."""
    votes = 0
    for column in draft.left:
        is_of_user = mentions(column, USER_SIDE)
        if column in (ad, user) or is_of_user == mentions(column, AD_SIDE):
            continue
        by_ad = determined(draft.rows, ad, column) >= DEPENDS
        by_user = determined(draft.rows, user, column) >= DEPENDS
        if by_ad != by_user:
            votes += 1 if by_ad == is_of_user else -1
    return votes > 0


def _largest(draft: Draft, columns: list[str]) -> str | None:
    """Return the column with the most values."""
    return max(columns, key=lambda n: draft.profiles[n].distinct, default=None)


def _can_name(draft: Draft, column: str) -> bool:
    shape = draft.profiles[column]
    return shape.is_id and shape.form != "flag" and shape.distinct > 1
