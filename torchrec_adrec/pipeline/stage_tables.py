"""Tables of `report.md` on single stages: ten ads, baselines, the index, training."""

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from torchrec_adrec.config.run import LOG_LOSS
from torchrec_adrec.runtime.markdown import literal

TRAINING = "Training"  # its heading
Metrics = Mapping[str, Any]


def ads_lines(ads: pl.DataFrame) -> Iterator[str]:
    """Yield the ten ads of the first example user, with all of their raw columns."""
    yield from ("## Ten ads for the first example user", "")
    yield f"| rank | {' | '.join(map(literal, ads.columns))} |"
    yield "|---" * (len(ads.columns) + 1) + "|"
    for rank, ad in enumerate(ads.iter_rows(), start=1):
        yield f"| {rank} | {' | '.join(map(_cell, ad))} |"
    yield ""


def _cell(value: float | str | None) -> str:
    if value is None:
        return "missing"
    return f"{value:.4f}" if isinstance(value, float) else literal(value)


def baseline_lines(baselines: Metrics, titles: Mapping[str, str]) -> Iterator[str]:
    """Yield every figure of the baselines on the test rows."""
    names = [name for name in titles if name in baselines]
    figures = list(dict.fromkeys(f for name in names for f in baselines[name]["test"]))
    yield from ("## Baselines", "")
    yield f"| on the test rows | {' | '.join(figures)} |"
    yield "|---" * (len(figures) + 1) + "|"
    for name in names:
        test = baselines[name]["test"]
        cells = (f"{test[f]:,.4f}".removesuffix(".0000") for f in figures)
        yield f"| {titles[name]} | {' | '.join(cells)} |"
    yield ""


def index_lines(gate: Metrics, picture: str) -> Iterator[str]:
    """Yield what the gate measured of the index.

    Args:
        gate: its `gate.json`.
        picture: path of its picture.
    """
    yield from ("## Index", "", f"![what the index finds]({picture})", "")
    times = ", ".join(f"{name} {ms:.2f}" for name, ms in gate["milliseconds"].items())
    yield (
        f"{literal(gate['choice'])}. Measured on {gate['queries']:,} held-out users;"
        f" ms a search: {times}; {gate['bytes_per_ad']:.0f} bytes an ad."
    )
    yield from ("", f"| ads | recall@{gate['k']} | 95% interval |", "|---|---|---|")
    for name, group in {"all": gate, **gate["by_popularity"]}.items():
        spread = f"{group['low']:.4f} to {group['high']:.4f}"
        yield f"| {name} | {group['recall']:.4f} | {spread} |"
    yield ""
    if gate["filtered"]:
        yield "| eligible ads | recall | ms | ms if all are compared |"
        yield "|---|---|---|---|"
        for one in gate["filtered"]:
            times = f"{one['milliseconds']:.2f} | {one['all_milliseconds']:.2f}"
            yield f"| {one['share']:.2%} | {one['recall']:.4f} | {times} |"
        yield ""


def training_lines(stages: Mapping[str, Metrics]) -> Iterator[str]:
    """Yield how each training went, and its evaluations on the validation rows.

    Args:
        stages: by their folder, what they measured of their training.
    """
    yield from (f"## {TRAINING}", "")
    for name, train in stages.items():
        yield (
            f"{name}: {train['steps']:,} of {train['planned_steps']:,} planned steps,"
            f" {train['samples_per_second']:,.0f} rows a second,"
            f" {train['dropped_rows_per_epoch']:,} rows an epoch left out (the"
            f" incomplete last step), {_restarts(train)}."
        )
        retrieved = train.get("retrieved_rows_per_epoch")
        if retrieved:
            yield f"{retrieved:,} rows of an epoch are retrieved ads, not logged ones."
        yield from ("", f"![training loss]({name}/loss.png)", "")
        if train["validation"]:
            judged_by = train.get("judged_by", LOG_LOSS)
            choose = min if judged_by == LOG_LOSS else max
            best = choose(figure for _, figure in train["validation"])
            title = judged_by.replace("_", " ")
            yield from (f"| {name}, step | validation {title} |", "|---|---|")
            for step, figure in train["validation"]:
                yield f"| {step:,} | {figure:.4f}{' (best)' * (figure == best)} |"
            yield ""


def _restarts(train: Metrics) -> str:
    """Say how often the ranks were started again, and after what."""
    after = train.get("restarted_after")  # runs of before have none
    why = f" ({'; '.join(after)})" if after else ""
    return f"{train['restarts']} restarts{why}"
