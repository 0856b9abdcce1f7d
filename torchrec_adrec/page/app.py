"""The page itself, which Streamlit runs anew after every click: `app.py RUN`."""

import sys
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import polars as pl
import streamlit as st

from torchrec_adrec.arrays import Int64s
from torchrec_adrec.data.request import RawUser
from torchrec_adrec.errors import AdRecError
from torchrec_adrec.evaluation.shown import shown_counts
from torchrec_adrec.page import reports
from torchrec_adrec.page.answer import LISTED, Answer, answer, reasons
from torchrec_adrec.page.form import Field, fields, unseen
from torchrec_adrec.page.likes import LIKED, likes
from torchrec_adrec.runs.stages import DATA, RETRIEVAL
from torchrec_adrec.runtime.markdown import literal
from torchrec_adrec.schema import SCORE, Side
from torchrec_adrec.serve.open_run import example_users
from torchrec_adrec.serve.recommender import Recommender

COLUMNS, FORM_HEIGHT = 2, 720  # of the form, the height in pixels
MANY = 14  # fields that fit into that height
NAMED_BY = 2  # columns of an ad beside its number
BUILD, FORM = "build", ("example", "user ")  # keys of the session, and their beginnings
EXAMPLE, NEW = "an example user", "a brand-new user"
TAB, TABS = "tab", ("Ten ads", "Quality", "Data", "Training")
# Less air above the title; and the form stays in sight beside the reasons.
STYLE = """<style>
[data-testid=stMainBlockContainer] { padding-top: 2.5rem; }
[data-testid=stColumn]:has(.st-key-form) {
  position: sticky; top: 1rem; align-self: flex-start; }
</style>"""


@st.cache_resource(max_entries=1, show_spinner="Loading ...")  # type: ignore[untyped-decorator]
def load(run: Path, builds: dict[str, str]) -> tuple[Recommender, Lock]:
    """Open a run once for all visitors; its lock lets one of them ask at a time.

    Args:
        run: its folder.
        builds: of its stages and the name of the changes of its ads, so that a run that
            was made again, or whose ads were updated, is opened again.
    """
    return Recommender.load(run), Lock()


def show(run: Path) -> None:
    """Draw the page of a run."""
    name = run.resolve().name
    st.set_page_config(page_title=f"{name}: ten ads", layout="wide")
    st.html(STYLE)
    st.title(text(name), anchor=False)
    st.caption(
        "What this run serves, and why: choose a user or change one, and the ten ads"
        " beside the form follow."
    )
    pages: dict[str, Callable[[Path], str]] = {
        "Quality": reports.quality,
        "Data": reports.data,
        "Training": reports.training,
    }
    # Only the open tab is computed.
    tabs = st.tabs(TABS, key=TAB, on_change="rerun")
    for title, tab in zip(TABS, tabs, strict=True):
        if not tab.open:
            continue
        with tab:
            try:
                if title in pages:
                    st.iframe(pages[title](run), alt=title)
                else:
                    show_request(run)
            except (AdRecError, OSError) as error:
                st.error(text(str(error)))


def show_request(run: Path) -> None:
    """Let the visitor choose or make a user, and show the answer."""
    builds = reports.check_run(run)
    forget_other_users(builds[RETRIEVAL.name])
    recommender, lock = load(run, builds)
    shown = shown_counts(run / DATA.name, recommender.parts.catalog)
    form, list_of_ads = st.columns((1, 2))
    # A long form scrolls by itself, so that a change and its effect are seen together.
    is_long = len(fields(recommender.encoder.schema, ())) > MANY
    height = FORM_HEIGHT if is_long else "content"
    with form, st.container(height=height, border=True, key="form"):
        user = pick_user(run, recommender, shown)
    with list_of_ads, lock:
        answered = answer(recommender, user, shown)
        show_ads(answered, recommender.encoder.schema.label_names)
        show_reasons(recommender, user, answered)
    show_rivals(answered)


def forget_other_users(build: str) -> None:
    """Empty a form that holds the example users of another preparation of the data.

    Args:
        build: of the towers, whose users are those of the run.
    """
    if st.session_state.setdefault(BUILD, build) != build:
        for key in [key for key in st.session_state if str(key).startswith(FORM)]:
            del st.session_state[key]
        st.session_state[BUILD] = build


def pick_user(run: Path, recommender: Recommender, shown: Int64s) -> RawUser:
    """Return the user of the form, or one who is known by some items alone.

    Args:
        run: its folder.
        recommender: of the run.
        shown: (N,) how often training showed each ad of the catalog.
    """
    who = st.radio("Who asks?", (EXAMPLE, NEW), horizontal=True)
    if who == NEW:
        return pick_items(recommender, shown)
    examples = example_users(run)
    number = st.selectbox(
        "Example user, of a test row", range(len(examples)), key="example"
    )
    user = dict(examples[number]) if examples else {}
    schema = recommender.encoder.schema
    st.caption("Change anything; an empty field is a missing value.")
    if vectors := unseen(schema):
        st.caption(f"Vectors stay those of the example: {text(', '.join(vectors))}.")
    columns = st.columns(COLUMNS)
    for place, field in enumerate(fields(schema, examples)):
        with columns[place % COLUMNS]:
            key = f"user {number}: {field.name}"
            user[field.name] = edit(field, user.get(field.name), key)
    return user


def edit(field: Field, value: Any, key: str) -> Any:
    """Draw the control of one column, and return what it holds; None: missing."""
    label = text(field.name)
    if field.kind == "list":
        return st.multiselect(
            label, field.options, value or [], key=key, accept_new_options=True
        )
    types = {"whole number": int, "number": float}
    start = None if value in (None, "") else types.get(field.kind, str)(value)
    # A control cannot be emptied if it has a value by default.
    st.session_state.setdefault(key, start)
    if field.kind == "whole number":
        return st.number_input(
            label, value=None, step=1, key=key, placeholder="missing"
        )
    if field.kind == "number":
        return st.number_input(
            label, value=None, key=key, format="%g", placeholder="missing"
        )
    return st.selectbox(
        label,
        field.options,
        index=None,
        key=key,
        placeholder="missing",
        accept_new_options=True,
    )


def pick_items(recommender: Recommender, shown: Int64s) -> RawUser:
    """Return a user of whom nothing is known but up to three items."""
    offer = likes(recommender.parts, shown)
    if isinstance(offer, str):
        st.info(offer)
        st.caption("Shown instead: the ads for a user of whom nothing is known.")
        return {}
    picks = st.multiselect(
        f"Pick {LIKED} items that this user likes",
        list(offer.items),
        format_func=lambda item: offer.items[item],
        max_selections=LIKED,
    )
    return offer.user(picks)


def show_ads(answered: Answer, labels: tuple[str, ...]) -> None:
    """Draw the times of the stages and the ten ads."""
    st.subheader(f"The best {len(answered.ads)} ads", anchor=False)
    draw(answered.ads, labels)
    times = ", ".join(f"{name} {ms:.1f}" for name, ms in answered.milliseconds.items())
    st.caption(f"{answered.candidates:,} candidates were ranked; ms: {times}")


def draw(ads: pl.DataFrame, labels: tuple[str, ...] = ()) -> None:
    """Draw a table of ads; predictions and scores are rounded only for the eye."""
    numbers = {name: st.column_config.NumberColumn(format="%.4f") for name in labels}
    numbers[SCORE] = st.column_config.NumberColumn(format="%.4f")
    st.dataframe(ads, hide_index=True, column_config=numbers)


def show_reasons(recommender: Recommender, user: RawUser, answered: Answer) -> None:
    """Draw a box for each ad that says why it is there, once it is opened."""
    st.subheader("Why is it there?", anchor=False)
    label = recommender.encoder.schema.label_names[0]
    ids = {feature.source for feature in recommender.encoder.schema.sparse_of(Side.AD)}
    columns = [name for name in answered.ads.columns if name in ids][:NAMED_BY]
    names = answered.ads.select(columns).rows() or [()] * len(answered.ids)
    for place, (ad, row) in enumerate(zip(answered.ids, names, strict=True), start=1):
        # The number is made of the ad's columns; a person knows it by these.
        known = [text(str(value)) for value in row if value is not None]
        title = " · ".join([f"{place}: ad {ad}", *known])
        box = st.expander(title, expanded=place == 1, on_change="rerun")
        if box.open:
            with box:
                explanation = recommender.explain(user, ad)
                for line in explanation.lines[1:]:
                    st.text(line)
                st.caption(f"What columns add to the prediction of {text(label)}:")
                st.dataframe(reasons(explanation, label), hide_index=True)


def show_rivals(answered: Answer) -> None:
    """Draw what popularity and retrieval alone would have shown."""
    rivals = {
        "Popularity alone": answered.popular,
        "Retrieval alone": answered.retrieved,
    }
    for column, (title, ads) in zip(st.columns(2), rivals.items(), strict=True):
        with column:
            st.subheader(title, anchor=False)
            st.caption(
                f"{ads[LISTED].sum()} of these are among the {len(answered.ads)}."
            )
            draw(ads)


def text(value: str) -> str:
    """Write a text of the data so that Streamlit shows its characters."""
    return literal(value).replace("$", r"\$")


if __name__ == "__main__":
    show(Path(sys.argv[1]))
