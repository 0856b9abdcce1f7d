"""The page itself, which Streamlit runs anew after every click: `app.py RUN`."""

import sys
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import polars as pl
import streamlit as st

from torchrec_adrec.data.request import RawUser
from torchrec_adrec.errors import AdRecError
from torchrec_adrec.page import stored
from torchrec_adrec.page.answer import LISTED, Answer, answer, reasons
from torchrec_adrec.page.form import Field, fields
from torchrec_adrec.page.likes import LIKED, likes
from torchrec_adrec.runtime.markdown import literal
from torchrec_adrec.schema import SCORE
from torchrec_adrec.serve.open_run import example_users
from torchrec_adrec.serve.recommender import Recommender

COLUMNS, FORM_HEIGHT = 2, 720  # of the form, the height in pixels
EXAMPLE, NEW = "an example user", "a brand-new user"
TABS = ("Ten ads", "Quality", "Data", "Training")


@st.cache_resource(max_entries=1, show_spinner="Loading ...")  # type: ignore[untyped-decorator]
def load(run: Path, builds: dict[str, str]) -> tuple[Recommender, Lock]:
    """Open a run once for all visitors; its lock lets one of them ask at a time.

    Args:
        run: its folder.
        builds: of its stages, so that a run that was made again is opened again.
    """
    return Recommender.load(run), Lock()


def show(run: Path) -> None:
    """Draw the page of a run."""
    name = run.resolve().name
    st.set_page_config(page_title=f"{name}: ten ads", layout="wide")
    st.title(text(name), anchor=False)
    stored_pages: dict[str, Callable[[Path], str]] = {
        "Quality": stored.quality,
        "Data": stored.data,
        "Training": stored.training,
    }
    # Only the open tab is computed.
    for title, tab in zip(TABS, st.tabs(TABS, on_change="rerun"), strict=True):
        if not tab.open:
            continue
        with tab:
            try:
                if title in stored_pages:
                    st.iframe(stored_pages[title](run), alt=title)
                else:
                    show_request(run)
            except (AdRecError, OSError) as error:
                st.error(text(str(error)))


def show_request(run: Path) -> None:
    """Let the visitor choose or make a user, and show the answer."""
    recommender, lock = load(run, stored.check_run(run))
    form, list_of_ads = st.columns((1, 2))
    # The form scrolls by itself, so that a change and its effect are seen together.
    with form, st.container(height=FORM_HEIGHT):
        user = pick_user(run, recommender)
    with list_of_ads, lock:
        answered = answer(recommender, user)
        show_ads(answered, recommender.encoder.schema.label_names)
        show_reasons(recommender, user, answered)
    show_rivals(answered)


def pick_user(run: Path, recommender: Recommender) -> RawUser:
    """Return the user of the form, or one who is known by some items alone."""
    who = st.radio("Who asks?", (EXAMPLE, NEW), horizontal=True)
    if who == NEW:
        return pick_items(recommender)
    examples = example_users(run)
    number = st.selectbox(
        "Example user (held out from training)", range(len(examples)), key="example"
    )
    user = dict(examples[number]) if examples else {}
    st.caption("Change anything; an empty field is a missing value.")
    columns = st.columns(COLUMNS)
    for place, field in enumerate(fields(recommender.encoder.schema, examples)):
        with columns[place % COLUMNS]:
            key = f"user {number}: {field.name}"
            user[field.name] = edit(field, user.get(field.name), key)
    return user


def edit(field: Field, value: Any, key: str) -> Any:
    """Draw the control of one column, and return what it holds; None: missing."""
    label = text(field.name)
    if field.kind == "whole number":
        whole = None if value is None else int(value)
        return st.number_input(
            label, value=whole, step=1, key=key, placeholder="missing"
        )
    if field.kind == "number":
        number = None if value is None else float(value)
        return st.number_input(
            label, value=number, key=key, format="%g", placeholder="missing"
        )
    if field.kind == "list":
        return st.multiselect(
            label, field.options, value or [], key=key, accept_new_options=True
        )
    return st.selectbox(
        label,
        field.options,
        index=None if value in (None, "") else field.options.index(str(value)),
        key=key,
        placeholder="missing",
        accept_new_options=True,
    )


def pick_items(recommender: Recommender) -> RawUser:
    """Return a user of whom nothing is known but up to three items."""
    offer = likes(recommender.parts)
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
    for place, ad in enumerate(answered.ids, start=1):
        title = f"{place}: ad {ad}"
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
