"""Figures of several seeds in one cell of a table."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev

Spread = dict[str, float | None]  # `mean` and `sd`, as a result keeps them
Summary = dict[str, dict[str, Spread]]


def shown(values: Sequence[float]) -> str:
    """Return the mean (standard deviation); of one seed there is no deviation."""
    return cell_of(spread_of(values))


def spread_of(values: Sequence[float], digits: int = 12) -> Spread:
    """Return both, rounded; of one seed the deviation is None, and not 0."""
    sd = round(stdev(values), digits) if len(values) > 1 else None
    return {"mean": round(mean(values), digits), "sd": sd}


def summary_of(rows: Mapping[str, Sequence[Mapping[str, float]]]) -> Summary:
    """Return the spread of every metric of every row, over its seeds.

    Args:
        rows: name -> the metrics of each seed, which are the same ones.
    """
    return {
        name: {metric: spread_of([s[metric] for s in seeds]) for metric in seeds[0]}
        for name, seeds in rows.items()
        if seeds
    }


def cell_of(spread: Spread) -> str:
    """Write what `spread_of` returned, (mean and deviation) with four digits."""
    sd = "" if spread["sd"] is None else f" ({spread['sd']:.4f})"
    return f"{spread['mean']:.4f}{sd}"
