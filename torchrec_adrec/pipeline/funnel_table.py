"""The judged funnel as a table, on a terminal and in the report."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from torchrec_adrec.evaluation.funnel.losses import LOSSES
from torchrec_adrec.evaluation.funnel.names import (
    FOLDER,
    FUNNEL,
    IDEAL,
    NDCG,
    PICTURE,
    RECALL,
    RIVALS,
)

Report = dict[str, Any]


def print_funnel(report: Report, console: Console) -> None:
    """Print the table: losses first, then other lists; and how it was measured."""
    protocol = report["protocol"]
    title = f"The funnel for {protocol['users']} held-out users"
    table = Table(*_header(protocol), title=title)
    for rows in (_losses(report), _lists(report)):
        for row in rows:
            table.add_row(*row)
        table.add_section()
    console.print(table)
    for line in (_protocol(protocol), _speed(report)):
        console.print(line, highlight=False, soft_wrap=True)


def funnel_lines(report: Report) -> Iterator[str]:
    """Yield the same as a section of `report.md`, with the picture."""
    yield from ("## Funnel", "")
    header = _header(report["protocol"])
    yield f"| {' | '.join(header)} |"
    yield "|---" * len(header) + "|"
    for line in (*_losses(report), *_lists(report)):
        yield f"| {' | '.join(line)} |"
    yield from ("", f"![funnel]({FOLDER}/{PICTURE})", "")
    yield f"{_protocol(report['protocol'])}. {_speed(report)}."
    yield ""


def _header(protocol: Report) -> tuple[str, ...]:
    top = protocol["top"]
    share = "share of the oracle's (95%)"
    return ("", f"worth of {top} ads", share, f"recall@{top}", f"NDCG@{top}")


def _losses(report: Report) -> Iterator[tuple[str, ...]]:
    """Yield the way from the oracle's worth to that of the served list."""
    yield ("oracle", f"{report['oracle']:.4f}", "1.0000", "1.0000", "1.0000")
    for name in LOSSES:
        if name == "ranker":
            yield _list(IDEAL, report["rows"][IDEAL])
        loss = report["losses"][name]
        cells = f"{0.0 - loss['mean']:.4f}", _share(loss, sign=-1)
        yield (f"{name} loss", *cells, "", "")
    yield _list("funnel, as served", report["rows"][FUNNEL])


def _lists(report: Report) -> Iterator[tuple[str, ...]]:
    rows = report["rows"]
    return (_list(name, rows[name]) for name in RIVALS if name in rows)


def _list(title: str, row: Report) -> tuple[str, ...]:
    figures = (f"{row[name]['mean']:.4f}" for name in (RECALL, NDCG))
    return (title, f"{row['mean']:.4f}", _share(row), *figures)


def _share(row: Report, sign: int = 1) -> str:
    # Added to 0, because -0 would be printed with its sign.
    low, high = sorted(0.0 + sign * end for end in row["share_interval"])
    return f"{0.0 + sign * row['share']:.4f} ({low:.4f} to {high:.4f})"


def _protocol(protocol: Report) -> str:
    depth, ads = protocol["depth"], protocol["ads"]
    return (
        f"worth: {protocol['worth']}; {protocol['candidates']} candidates of {ads:,}"
        f" ads, exact search to {depth}; seed {protocol['seed']}"
    )


def _speed(report: Report) -> str:
    stages = report["milliseconds"].items()
    times = ", ".join(f"{n} {p['p50']:.1f} / {p['p99']:.1f}" for n, p in stages)
    rate = report["requests_per_second"]
    return f"ms, p50 / p99: {times}; {rate:.1f} requests a second, one at a time"
