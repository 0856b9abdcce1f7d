"""Tables of `report.md` on each label's predictions: figures, calibration, segments."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torchrec_adrec.runtime.markdown import literal

Details = Mapping[str, Any]  # of one label: see evaluation/label_report.py


def label_tables(labels: Mapping[str, Details]) -> Iterator[str]:
    """Yield the tables of every label of one model."""
    for label, details in labels.items():
        yield from (f"### {label}", "")
        yield from _figures(details)
        yield from _bins("tenth of the predictions", _numbered(details["deciles"]))
        if details["segment"]:
            yield from _bins(details["segment"]["column"], details["segment"]["values"])


def _figures(details: Details) -> Iterator[str]:
    """Yield the figures with their intervals, and whose lists were judged."""
    raw = details.get("uncalibrated")
    head = "| figure | test | 95% interval |"
    yield from (
        head + (" uncalibrated |" if raw else ""),
        "|---" * (3 + bool(raw)) + "|",
    )
    for name, value in details["figures"].items():
        low, high = details["intervals"].get(name, (float("nan"),) * 2)
        # The calibration error has none: it is never below 0, so that resamples of it
        # lie above it.
        spread = "" if low != low else f"{low:.4f} to {high:.4f}"
        before = f" {raw[name]:.4f} |" if raw and name in raw else " |" if raw else ""
        yield f"| {name} | {value:.4f} | {spread} |{before}"
    yield ""
    users = details["users"]
    if users:
        yield (
            f"Intervals by user. Lists of {users['judged']:,} users;"
            f" {users['dropped_users']:,} users ({users['dropped_rows']:,} rows) of one"
            f" class and {users['rows_without_user']:,} rows without a user are left"
            " out of grouped_auc, mrr, ndcg and map."
        )
        yield ""


def _numbered(bins: Sequence[Details]) -> Iterator[Details]:
    for number, one in enumerate(bins, start=1):
        yield {"value": number, **one}


def _bins(title: str, bins: Sequence[Details] | Iterator[Details]) -> Iterator[str]:
    """Yield a table of predicted and observed means."""
    yield f"| {literal(title)} | rows | predicted | observed | predicted / observed |"
    yield "|---|---|---|---|---|"
    for one in bins:
        means = f"{one['predicted']:.4f} | {one['observed']:.4f} | {one['ratio']:.3f}"
        yield f"| {literal(one['value'])} | {one['rows']:,} | {means} |"
    yield ""
