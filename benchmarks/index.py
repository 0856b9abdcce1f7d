"""Does `auto` choose well at a million ads, and what does a query cost?

    python benchmarks/index.py                            # half an hour on two cores
    python benchmarks/index.py --rows 20000 --dim 64 --k 100   # small: does it work?

Every kind of the grid is built once over made vectors and tuned to each recall target
by the gate. Then all that reached it are timed in turn: single queries on one thread,
tower left out, Python included. `auto` chooses from a sample, as in `adrec index`; its
time is divided by the fastest of the grid.
"""

import argparse
import time
from functools import partial
from typing import Any

import numpy as np
from index_vectors import falling_clusters, interleaved_microseconds, print_table
from timing import keep_result

from torchrec_adrec.arrays import Float32s
from torchrec_adrec.errors import GateError
from torchrec_adrec.index.choose import SAMPLE, Purpose, choose
from torchrec_adrec.index.exported import Exported
from torchrec_adrec.index.gate import gate_questions, tune_and_validate
from torchrec_adrec.index.kinds import derive_kind
from torchrec_adrec.index.kinds.kind import IndexKind, SearchSetting, describe
from torchrec_adrec.index.sharded import ShardedIndex, set_search_threads
from torchrec_adrec.index.tune import one_thread

GRID: dict[str, tuple[str, dict[str, int]]] = {
    "ivf_sqfp16": ("ivf_sqfp16", {}),
    "ivf_sq8_refined": ("ivf_sq8_refined", {}),
    "ivf_pq_refined": ("ivf_pq_refined", {}),
    "pca32_ivf_sq8_refined": ("pca_ivf_sq8_refined", {"pca": 32}),
    "pca48_ivf_sq8_refined": ("pca_ivf_sq8_refined", {"pca": 48}),
    "pca64_ivf_sq8_refined": ("pca_ivf_sq8_refined", {"pca": 64}),
}


def main() -> None:
    """Build, tune, time and keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--k", type=int, default=500)
    parser.add_argument("--targets", type=float, nargs="+", default=[0.95, 0.99])
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--timed", type=int, default=200, help="queries")
    parser.add_argument("--threads", type=int, default=2, help="while building")
    parser.add_argument("--grid", nargs="+", default=list(GRID), choices=GRID)
    args = parser.parse_args()
    vectors = falling_clusters(args.rows, args.dim, 1)
    exported = Exported.by_id(np.arange(args.rows) * 3 + 2**61, vectors)
    users = falling_clusters(args.users, args.dim, 2)
    questions = gate_questions(users, args.rows, args.k, ())
    exact = [exported.exact_top(one.queries, one.k) for one in questions]
    choices = {
        target: choose(
            exported.vectors[np.random.default_rng(0).permutation(args.rows)[:SAMPLE]],
            users,
            Purpose(args.rows, args.k, target),
        )
        for target in args.targets
    }
    kinds = {
        name: derive_kind(GRID[name][0], GRID[name][1], args.rows, args.dim)
        for name in args.grid
        if GRID[name][1].get("pca", 0) <= args.dim
    }
    for target, choice in choices.items():
        print(f"auto at {target:g}: {choice.kind}, {choice.reason}", flush=True)
        if choice.kind not in kinds.values():
            kinds[f"auto at {target:g}"] = choice.kind
    rows: list[dict[str, Any]] = []
    searches: dict[float, dict[str, Any]] = {target: {} for target in args.targets}
    for name, kind in kinds.items():
        set_search_threads(args.threads)
        index, build_s = _built(kind, exported)
        for target in args.targets:
            row: dict[str, Any] = {"name": name, "target": target, "build_s": build_s}
            row |= _tuned(index, exported, users, args.k, target, exact)
            rows.append(row)
            if "recall" in row:
                setting: SearchSetting = dict(index.setting)
                searches[target][name] = partial(_search, index, users, args.k, setting)
            print(row, flush=True)
    ratios = {}
    for target, ways in searches.items():
        with one_thread():
            times = interleaved_microseconds(ways, min(args.timed, args.users))
        for row in rows:
            if row["target"] == target:
                row |= times.get(row["name"], {})
        by_clock = {name: each["p50"] for name, each in times.items()}
        kind = choices[target].kind
        auto = next((n for n in by_clock if kinds[n] == kind), None)
        best = min(by_clock, key=lambda name: by_clock[name])
        ratios[f"{target:g}"] = {
            "best": best,
            "auto": auto,
            "auto_over_best": by_clock[auto] / by_clock[best] if auto else None,
        }
    shown = ("name", "target", "recall", "search", "p10", "p50", "processor_p50")
    print_table([row for row in rows if "p50" in row], shown)
    keep_result("index", {**vars(args), "auto": ratios, "grid": rows})


def _built(kind: IndexKind, exported: Exported) -> tuple[ShardedIndex, float]:
    began = time.perf_counter()
    index = ShardedIndex.of_vectors(kind, exported.ids, exported.vectors)
    return index, round(time.perf_counter() - began, 1)


def _tuned(
    index: ShardedIndex,
    exported: Exported,
    users: Float32s,
    k: int,
    target: float,
    exact: Any,
) -> dict[str, Any]:
    """Let the gate tune a kind; what it refuses is a row without times."""
    try:
        gate = tune_and_validate(
            index, exported, users, k, target, shares=(), exact=exact
        )
    except GateError as error:
        return {"refusal": str(error)}
    interval = [round(gate.low, 4), round(gate.high, 4)]
    return {
        "search": describe(index.setting),
        "recall": round(gate.recall, 4),
        "interval": interval,
        "score_error": gate.score_error,
    }


def _search(
    index: ShardedIndex, users: Float32s, k: int, setting: SearchSetting, number: int
) -> Any:
    # Users that the gate did not choose by come last; they are the ones to be timed.
    row = len(users) - 1 - number
    index.setting = setting
    return index.search(users[row : row + 1], k)


if __name__ == "__main__":
    main()
