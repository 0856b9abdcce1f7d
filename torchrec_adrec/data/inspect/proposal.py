"""A configuration for a file, as YAML with a comment a line."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from torchrec_adrec.data.inspect.criteo_lines import criteo_yaml
from torchrec_adrec.data.inspect.draft import Draft, Lines
from torchrec_adrec.data.inspect.forms import profile
from torchrec_adrec.data.inspect.ids import choose_ids, choose_time
from torchrec_adrec.data.inspect.labels import choose_click, choose_others
from torchrec_adrec.data.inspect.repairs import Repair
from torchrec_adrec.data.inspect.sample import Sample
from torchrec_adrec.data.inspect.sides import choose_sides, leave_out_useless
from torchrec_adrec.data.inspect.text_layout import SEPARATORS
from torchrec_adrec.errors import ConfigError, DataError

TINY = 100  # rows, of which 80% for training would leave no test
WIDTH = 30  # of what stands left of a comment


@dataclass(frozen=True)
class Proposal:
    """What is proposed for a file.

    Attributes:
        yaml: the text of the configuration.
        unsure: sentences about what a person should look at.
        repairs: columns that are rewritten.
        target: the file that holds them then; None if the file is read as it is.
    """

    yaml: str
    unsure: tuple[str, ...]
    repairs: tuple[Repair, ...] = ()
    target: Path | None = None


@dataclass(frozen=True)
class Hints:
    """Columns that the user names, where their names do not tell."""

    label: str | None = None
    user: str | None = None
    ad: str | None = None


def propose(sample: Sample, settings: Path, hints: Hints) -> Proposal:
    """Propose a configuration for a file.

    Args:
        sample: its first rows.
        settings: the YAML file to be, beside which a rewritten copy is put.
        hints: columns that the user names.

    Raises:
        ConfigError: a hint names no column.
        DataError: the rows have no click, no ad, or nothing of a user.
    """
    criteo = criteo_yaml(sample)
    if criteo is not None:
        return Proposal(*criteo)
    draft = _draft(sample)
    for option, column in vars(hints).items():
        if column is not None and column not in draft.profiles:
            columns = ", ".join(draft.profiles)
            raise ConfigError(f"--{option} {column}: no such column, found {columns}")
    # The columns that were named are kept from the steps before theirs.
    kept = [c for c in (hints.user, hints.ad) if c]
    draft.left = [n for n in draft.left if n not in kept]
    choose_click(draft, hints.label)
    choose_time(draft)
    draft.left += kept
    choose_ids(draft, hints.user, hints.ad)
    leave_out_useless(draft)
    choose_others(draft)
    choose_sides(draft)
    _give_the_user_an_id(draft)
    if len(draft.ad) == 1 and draft.ad_id:
        draft.unsure.append(
            f"Of an ad, nothing but {draft.ad_id[0]} is known. A file with more about"
            ' the ads goes under `items` (docs/own_data.md, "Several tables").'
        )
    target = _target(draft, settings)
    text = "\n".join(_lines(draft, target)) + "\n"
    return Proposal(text, tuple(draft.unsure), tuple(draft.repairs), target)


def _draft(sample: Sample) -> Draft:
    shapes = {name: profile(sample.rows[name]) for name in sample.rows.columns}
    empty = sorted({word for shape in shapes.values() for word in shape.words})
    rows = sample.rows.with_columns(pl.col(pl.String).replace(empty, None))
    shapes = {name: profile(rows[name]) for name in rows.columns}
    # The first look found the words; the second one no longer sees them.
    first = next(iter(shapes))
    shapes[first] = replace(shapes[first], words=tuple(empty))
    draft = Draft(sample, rows, shapes, list(shapes))
    _read_commas(draft)
    if empty:
        draft.unsure.append(f"{', '.join(empty)} are taken for no value.")
    if sample.uneven:
        draft.unsure.append(
            f"{sample.uneven:,} of {len(rows) + sample.uneven:,} lines have another"
            " number of fields: bad rows."
        )
    if not sample.is_whole:
        draft.unsure.append(f"Only the first {len(rows):,} rows were looked at.")
    if sample.layout is not None and not sample.layout.header:
        draft.unsure.append("No header: the columns are named by their place.")
    return draft


def _read_commas(draft: Draft) -> None:
    """Read 1.234,50 as a number, and 1.234 too in a file that has decimal commas."""
    shapes = draft.profiles
    has_commas = any(shape.comma for shape in shapes.values())
    for name, shape in shapes.items():
        if shape.thousands and has_commas:
            shapes[name] = replace(
                shape, form="integer", whole=True, as_float=False, comma=True
            )
        elif shape.thousands:
            draft.unsure.append(
                f"{name}: every point stands before three digits. They are read as"
                " decimals; if they divide thousands, take them out of the file."
            )
    draft.rows = draft.rows.with_columns(
        pl.col(name).str.replace_all(".", "", literal=True).str.replace(",", ".")
        for name, shape in shapes.items()
        if shape.comma
    )


def _give_the_user_an_id(draft: Draft) -> None:
    """Make an id of a number, where a side has nothing else that could be looked up."""
    if not draft.user:
        raise DataError(
            f"{draft.sample.path}: nothing is known of the user or the moment; name the"
            " user's column by --user"
        )
    if all(block["kind"] == "number" for block, _ in draft.user.values()):
        name = next(iter(draft.user))
        block, about = draft.user[name]
        draft.user[name] = {**block, "buckets": "quantile"}, about


def _target(draft: Draft, settings: Path) -> Path | None:
    """The rewritten copy; None if the adapter reads the file as it is."""
    path, layout = draft.sample.path, draft.sample.layout
    if layout is None:
        return settings.with_suffix(".rewritten.parquet") if draft.repairs else None
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    readable = {".csv": ",", ".tsv": "\t"}.get(plain.suffix) == layout.separator
    is_utf8 = layout.encoding in ("utf-8", "utf-8-sig")
    if readable and is_utf8 and layout.header and not draft.repairs:
        return None
    return settings.with_suffix(".rewritten.csv")


def _lines(draft: Draft, target: Path | None) -> list[str]:
    sample, layout = draft.sample, draft.sample.layout
    lines = [
        f"# What `adrec init {sample.path}` proposes. docs/own_data.md has the keys."
    ]
    if target is not None:
        lines += [f"# The rows are those of {sample.path}, rewritten because of:"]
        lines += [f"# - {reason}" for reason in _reasons(draft)]
    lines += ["# Look at these first:"] if draft.unsure else []
    lines += [f"# - {sentence}" for sentence in draft.unsure]
    form = "Parquet"
    if layout is not None:
        # A rewritten copy has commas, whatever the file had.
        form = f"{SEPARATORS[',' if target else layout.separator]}, UTF-8"
    raw = str(target or sample.path)
    unit = "rows" if sample.is_whole else "rows looked at"
    lines += ["data:", "  adapter: table"]
    lines += [_line("  raw", [raw], f"{form}; {len(sample.rows):,} {unit}")]
    lines += _sizes(draft)
    lines += ["  table:", *_section("labels", draft.labels)]
    for key, value in (
        ("time", draft.time),
        ("user_id", draft.user_id),
        ("ad_id", draft.ad_id),
    ):
        lines += [_line(f"    {key}", *value)] if value else []
    lines += [*_section("user", draft.user), *_history(draft)]
    lines += _section("ad", draft.ad)
    if draft.ignore:
        lines += ["    ignore:"]
        lines += [
            f"      - {_flow(column)}".ljust(WIDTH) + f"  # {why}"
            for column, why in draft.ignore.items()
        ]
    empty = next(iter(draft.profiles.values())).words
    if empty:
        lines += [_line("    missing", ["", *empty], "texts that mean no value")]
    if batch_size := sample.batch_size:
        about = "few rows make few large steps"
        lines += ["train:", _line("  batch_size", batch_size, about)]
    return lines


def _history(draft: Draft) -> list[str]:
    """Offer a history that `prepare` makes; what it costs is for a person to choose."""
    has_one = any("shares_ids_with" in block for block, _ in draft.user.values())
    if has_one or not (draft.time and draft.user_id and draft.ad_id):
        return []
    block = _flow({"of": next(iter(draft.ad)), "length": 20})
    return [f"      # history: {block}  # to be had too: the user's earlier clicks"]


def _reasons(draft: Draft) -> list[str]:
    reasons = [f"{r.column}: {r.description}" for r in draft.repairs]
    layout = draft.sample.layout
    if layout is not None:
        if layout.separator != ",":
            reasons.append(f"{SEPARATORS[layout.separator]} become commas")
        if not layout.encoding.startswith("utf-8"):
            reasons.append(f"{layout.encoding} becomes UTF-8")
        if not layout.header:
            reasons.append("the columns get names")
    return reasons or ["the file's ending, which tells the separator"]


def _sizes(draft: Draft) -> list[str]:
    """Settings that few rows need."""
    rows = len(draft.sample.rows)
    if not draft.sample.is_whole:
        return []
    if rows < TINY:
        split = {"train": 0.6, "valid": 0.2, "test": 0.2}
        return [
            _line("  split", split, "so few rows show the format only"),
            _line("  min_count", 1, "every value has an id"),
        ]
    name = next(iter(draft.ad))
    column = draft.ad[name][0].get("column", name)
    counts = draft.rows[column].drop_nulls().value_counts()["count"]
    if float(str(counts.median())) < 5:
        return [_line("  min_count", 2, "half of the ads have fewer than 5 rows")]
    return []


def _section(name: str, entries: Lines) -> list[str]:
    lines = [
        _line(f"      {key}", _short(block), about)
        for key, (block, about) in entries.items()
    ]
    return [f"    {name}:", *lines]


def _short(block: Any) -> Any:
    """`country: text` for `country: {kind: text}`."""
    is_kind = isinstance(block, dict) and list(block) == ["kind"]
    return block["kind"] if is_kind and block["kind"] != "value" else block


def _line(key: str, value: Any, comment: str) -> str:
    text = f"{key}: {_flow(value)}"
    return f"{text.ljust(WIDTH)}  # {comment}" if comment else text


def _flow(value: Any) -> str:
    text = yaml.safe_dump(
        value,
        default_flow_style=True,
        width=10_000,
        sort_keys=False,
        allow_unicode=True,
    )
    return text.strip().removesuffix("...").strip()
