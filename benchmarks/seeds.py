"""Figures of several seeds in one cell of a table."""

from collections.abc import Sequence
from statistics import mean, stdev


def shown(values: Sequence[float]) -> str:
    """Return the mean (standard deviation); of one seed there is no deviation."""
    spread = f" ({stdev(values):.4f})" if len(values) > 1 else ""
    return f"{mean(values):.4f}{spread}"
