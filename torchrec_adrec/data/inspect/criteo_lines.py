"""Criteo's own format, which has an adapter that knows its columns."""

from collections.abc import Collection

import polars as pl

from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.data.adapters.criteo import COLUMNS, HASHES, INTEGERS
from torchrec_adrec.data.inspect.evidence import DEPENDS, determined
from torchrec_adrec.data.inspect.sample import Sample
from torchrec_adrec.data.prepare.leaks import measured

LINES = 1_000
FITS = 0.99
GUESS = "Which columns are the ad's is a guess: data.ad_features."


def criteo_yaml(sample: Sample) -> tuple[str, tuple[str, ...]] | None:
    """The configuration and doubts of a file of Criteo's; None if it is another one."""
    layout = sample.layout
    if layout is None or layout.separator != "\t" or layout.header:
        return None
    labelled = len(layout.columns) == len(COLUMNS)
    if not labelled and len(layout.columns) != len(COLUMNS) - 1:
        return None
    names = COLUMNS if labelled else COLUMNS[1:]
    rows = sample.rows.rename(dict(zip(layout.columns, names, strict=True)))
    if not _is_criteo(rows.head(LINES)):
        return None
    lines = [
        f"# What `adrec init {sample.path}` proposes:",
        "# these are Criteo's columns, which have an adapter (docs/data.md).",
        "data:",
        "  adapter: criteo",
        f"  raw: [{sample.path}]",
    ]
    if not labelled:
        lines.append("  labelled: false  # 39 columns: the label is not among them")
    columns, unsure = _sides(rows)
    lines += [f"  # {sentence}" for sentence in unsure]
    lines += [f"  ad_features: [{', '.join(columns)}]"] if columns else []
    if size := sample.batch_size:
        lines += ["train:", f"  batch_size: {size}  # few rows make few large steps"]
    return "\n".join(lines) + "\n", unsure


def _is_criteo(rows: pl.DataFrame) -> bool:
    fits = pl.concat_list(
        pl.col(HASHES).str.contains(r"^[0-9a-f]{8}$").fill_null(True),
        pl.col(INTEGERS).str.contains(r"^-?\d+$").fill_null(True),
    ).list.all()
    return float(str(rows.select(fits.mean()).item())) >= FITS


def _sides(rows: pl.DataFrame) -> tuple[list[str], tuple[str, ...]]:
    """The ad's columns, where the usual ones would be refused, and what is unsure.

    The 1TB logs number their columns in another way than the Kaggle file, and what is
    an ad's column there is another thing here.
    """
    usual: tuple[str, ...] = DataConfig.model_fields["ad_features"].default
    given_away = _given_away(rows, usual)
    if not given_away:
        return [], (GUESS,)
    # What the ad's finest column determines describes the same ad.
    item = max(usual, key=lambda name: rows[name].n_unique())
    ad = [n for n in HASHES if n == item or determined(rows, item, n) >= DEPENDS]
    while leaks := _given_away(rows, ad):
        ad = [name for name in ad if name not in leaks]
    if not ad:
        sides = f"The user's columns give away {', '.join(sorted(given_away))}."
        return [], (GUESS, f"{sides} `adrec prepare` will refuse them.")
    why = (
        f"The usual ad columns ({', '.join(usual)}) do not fit these rows, whose user"
        f" columns give away {', '.join(sorted(given_away))}: {item} and what goes with"
        " it are proposed."
    )
    return ad, (GUESS, why)


def _given_away(rows: pl.DataFrame, ad: Collection[str]) -> set[str]:
    """The ad's columns that a column of the user's determines, as `prepare` sees it."""
    users = [name for name in HASHES if name not in ad]
    pairs = measured(rows.select(HASHES), users, list(ad))
    return {pair.ad for pair in pairs if pair.leaks}
