"""Write an estimate, or a comparison of several, as text of at most 110 columns."""

from collections import Counter
from collections.abc import Callable
from textwrap import wrap

from torchrec_adrec.config.sharding import ShardingConfig
from torchrec_adrec.distributed.plan_report import (
    WIDTH,
    columns,
    in_bytes,
    named,
    sizes,
    table_lines,
)
from torchrec_adrec.distributed.planner import DENSE_SHARE
from torchrec_adrec.errors import PlanError
from torchrec_adrec.planning.estimate import Estimate
from torchrec_adrec.planning.launches import Calls, all_of
from torchrec_adrec.planning.step_time import PEAK_SHARE

CAUTION = (
    "An estimate: figures of data sheets, TorchRec's planner for tables, products at"
    f" {PEAK_SHARE:.0%} of the peak,",
    "a launch's cost as measured on one H200. Nothing with more than one GPU was"
    " measured.",
)


def report(estimate: Estimate, config: ShardingConfig) -> list[str]:
    """Write all that is known of one cluster."""
    each = estimate.batch // estimate.cluster.ranks
    return [
        *CAUTION,
        "",
        f"cluster {estimate.cluster}; batch {estimate.batch:,}: {each:,} rows a GPU",
        "",
        *table_lines(estimate.plan, config),
        "",
        *_memory(estimate),
        "",
        *_sent(estimate),
        "",
        *_calls(estimate.time.calls),
        "",
        *_time(estimate),
        "",
        *_cost(estimate),
        *_disk(estimate),
    ]


def _memory(estimate: Estimate) -> list[str]:
    dense = estimate.dense
    head = ("GPU", "tables", "optimizer", "buffers", "dense", "all", "of", "tables ms")
    capacity = in_bytes(estimate.cluster.gpu.memory * 2**30)
    rows = [
        (
            name,
            *map(in_bytes, sizes(load)[:3]),
            in_bytes(dense.memory),
            in_bytes(load.memory + dense.memory),
            capacity,
            f"{load.ms:.2f}",
        )
        for name, load in named(estimate.loads)
    ]
    lines = columns([head, *rows], right=tuple(range(1, 8)))
    lines.append(
        f"dense: {dense.parameters:,} parameters with gradient and AdamW,"
        f" {in_bytes(dense.activations)} of activations; {DENSE_SHARE:.0%} of a GPU is"
        " kept for it"
    )
    # Only tables that asked for it stand in host memory: usually there is nothing.
    host = max(load.host for load in estimate.loads)
    if host:
        lines.append(f"host memory beside the GPU that takes most: {in_bytes(host)}")
    return lines


def _sent(estimate: Estimate) -> list[str]:
    head = ("sent in a step", "a GPU, mean", "most", "all GPUs", "ms")
    rows: list[tuple[str, ...]] = [head]
    for name, sent in estimate.sent.parts().items():
        counts = map(in_bytes, (sent.mean(), sent.max(), sent.sum()))
        rows.append((NAMES[name], *counts, f"{estimate.links[name]:.3f}"))
    return columns(rows, right=(1, 2, 3, 4))


NAMES = {
    "ids": "ids: input all-to-all",
    "vectors": "vectors: output all-to-all",
    "gradients": "gradients: the same backward",
    "dense": "dense: all-reduce",
    "ads": "ads: gather and its gradient",
}


def _calls(parts: dict[str, Calls]) -> list[str]:
    named = {**parts, "all": all_of(parts)}
    rows = [("the host calls on a GPU", "launches", "copies")]
    rows += [(name, f"{c.launches:,}", f"{c.copies:,}") for name, c in named.items()]
    return columns(rows, right=(1, 2))


def _time(estimate: Estimate) -> list[str]:
    time = estimate.time
    rows = [
        ("part of a step", "ms", ""),
        ("host", f"{time.host:.3f}", "launches and copies; the device works meanwhile"),
        ("device", f"{time.device:.3f}", "the four below, one after the other"),
        ("  products", f"{time.products:.3f}", ""),
        ("  memory", f"{time.memory:.3f}", "all other kernels of the dense part"),
        ("  tables", f"{time.tables:.3f}", "lookup and update"),
        (
            "  communication",
            f"{time.communication:.3f}",
            "vectors, gradients, ads, dense",
        ),
        ("copies", f"{time.copies:.3f}", "the next batch, meanwhile"),
        ("ids", f"{time.ids:.3f}", "of the next batch between ranks, meanwhile"),
        ("all", f"{time.total:.3f}", f"limited by {time.limit}"),
    ]
    rate = estimate.batch / estimate.step_ms / 1e3
    return [*columns(rows, right=(1,)), f"{rate:,.1f} million rows/s"]


def _cost(estimate: Estimate) -> list[str]:
    return [
        f"cost: ${estimate.dollars_per_hour:,.2f} an hour,"
        f" ${estimate.dollars_per_billion_rows:,.2f} a billion rows, assuming"
        f" ${estimate.cluster.gpu.dollars:.2f} an hour and GPU (--price)"
    ]


def _disk(estimate: Estimate) -> list[str]:
    index = "not counted: give the number of ads, --ads"
    if estimate.index is not None:
        index = f"{in_bytes(estimate.index)} of host memory where it is searched"
    return [f"checkpoint: {in_bytes(estimate.checkpoint)}", f"FAISS shard: {index}"]


# The rows of a comparison, in order.
FIGURES: dict[str, Callable[[Estimate], str]] = {
    "GPUs": lambda e: f"{e.cluster.ranks}",
    "fullest GPU": lambda e: in_bytes(e.fullest),
    "of": lambda e: in_bytes(e.cluster.gpu.memory * 2**30),
    "sent by a GPU": lambda e: in_bytes(
        sum(sent.mean() for sent in e.sent.parts().values())
    ),
    "ms, host": lambda e: f"{e.time.host:.2f}",
    "ms, products": lambda e: f"{e.time.products:.2f}",
    "ms, memory": lambda e: f"{e.time.memory:.2f}",
    "ms, tables": lambda e: f"{e.time.tables:.2f}",
    "ms, communication": lambda e: f"{e.time.communication:.2f}",
    "ms, all": lambda e: f"{e.step_ms:.2f}",
    "million rows/s": lambda e: f"{e.batch / e.step_ms / 1e3:.1f}",
    "$ a billion rows": lambda e: f"{e.dollars_per_billion_rows:.2f}",
    "checkpoint": lambda e: in_bytes(e.checkpoint),
}


def compare(
    name: str, first: Estimate, others: dict[str, Estimate | PlanError]
) -> list[str]:
    """Compare the first cluster with others, or with the reason why they do not fit.

    Args:
        name: of the first cluster.
        first: its estimate.
        others: by name.
    """
    estimates = {name: first, **others}
    rows = [["", *estimates]]
    for label, figure in FIGURES.items():
        rows.append([label, *(_cell(one, figure) for one in estimates.values())])
    lines = columns(rows, right=tuple(range(1, len(estimates) + 1)))
    for other in others.items():
        lines += ["", *_changes((name, first), other)]
    return lines


def _cell(estimate: Estimate | PlanError, figure: Callable[[Estimate], str]) -> str:
    return "does not fit" if isinstance(estimate, PlanError) else figure(estimate)


def _changes(
    one: tuple[str, Estimate], two: tuple[str, Estimate | PlanError]
) -> list[str]:
    """Name the tables that are cut in another way on the second cluster."""
    (first, a), (second, b) = one, two
    if isinstance(b, PlanError):
        return wrap(f"{second}: {b}", WIDTH)
    before, after = _types(a), _types(b)
    # Of a thousand tables most stay as they are; those that change are grouped.
    moved = Counter(
        (before[table], after[table])
        for table in before
        if before[table] != after[table]
    )
    head = f"{first} to {second}:"
    if not moved:
        return [f"{head} no table changes its type"]
    lines = [head]
    for (old, new), count in moved.most_common():
        names = [t for t in before if (before[t], after[t]) == (old, new)]
        text = f"  {count} {old} -> {new}: {' '.join(names)}"
        lines += wrap(text, WIDTH, subsequent_indent="    ")
    return lines


def _types(estimate: Estimate) -> dict[str, str]:
    return {option.name: option.sharding_type for option in estimate.plan.chosen}
