"""What a served list is worth in a known world, against the best list there is.

    adrec run --config configs/synthetic_demo.yaml --out runs/demo
    python benchmarks/regret.py --run runs/demo

Users of the test rows ask for ads, and the law says what each ad would earn if it were
shown to them first at that moment: p(click) * E[value | click]. The worth of a list is
the sum over its first ten ads; its regret is what it lacks, as a share of the worth of
the oracle's ten. The oracle chooses from all ads that are born (`whole funnel`) or from
the candidates that the towers found (`second stage`: the order alone).
"""

import argparse
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table
from timing import keep_result

from torchrec_adrec.arrays import Bools, Float64s, Int64s
from torchrec_adrec.data.adapters import synthetic
from torchrec_adrec.data.adapters.criteo import COLUMNS, INTEGERS
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.evaluation.attainable import KnownRows
from torchrec_adrec.evaluation.bootstrap import interval, resampled_means
from torchrec_adrec.evaluation.true_top import TrueTop, ads_of
from torchrec_adrec.schema import AD_ID, Side
from torchrec_adrec.serve.recommender import Recommender

SHOWN = 10
ORDERS = {
    "click * value": pl.col("click") * pl.col("value"),
    "click": pl.col("click"),
    "towers' score": pl.col("score"),
}


def main() -> None:
    """Ask for every user, judge each order of the candidates, print, keep."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--run", type=Path, required=True, help="a finished run")
    arguments.add_argument("--users", type=int, default=300)
    args = arguments.parse_args()
    data = args.run / "data"
    recommender = Recommender.load(args.run)
    known, catalog = KnownRows.of(data), load_catalog(data)
    top = TrueTop.of(known, catalog, data, args.users, SHOWN, seed=0)
    columns = recommender.encoder.schema.sources_of(Side.USER)
    users = requests(data, len(known.truth), columns)
    numbers, ids = ads_of(catalog, data), catalog[AD_ID].to_numpy()
    candidates = min(recommender.settings.candidates, len(catalog))
    worths: dict[str, list[float]] = {}
    for row in top.rows.tolist():
        shown = known.truth.row(row, named=True)
        worth = known.world.worth(
            np.array([shown["user"]]), numbers, "value", shown["time"], shown["device"]
        )[0]
        born = known.world.ads.birth[numbers] <= shown["time"]
        answer = recommender.recommend(users[row], candidates).ads
        for name, value in judged(answer, ids, worth, born).items():
            worths.setdefault(name, []).append(value)
    report = regrets({name: np.array(values) for name, values in worths.items()})
    keep_result("regret", {"users": len(top.rows), "shown": SHOWN, "regret": report})
    table = Table(
        title=f"Regret of the first {SHOWN}, by value, 95% interval over users"
    )
    for column in ("order", "whole funnel", "second stage"):
        table.add_column(column)
    for name, cells in report.items():
        table.add_row(name, *(f"{m:.3f} ({a:.3f} to {b:.3f})" for m, a, b in cells))
    Console(width=100).print(table)


def requests(data: Path, rows: int, names: tuple[str, ...]) -> list[dict[str, object]]:
    """Return the raw user of each of the last rows of a log."""
    log = pl.scan_csv(
        data / synthetic.TSV,
        separator="\t",
        has_header=False,
        new_columns=list(COLUMNS),
        schema_overrides={n: pl.String for n in COLUMNS if n not in INTEGERS},
    )
    return log.select(names).tail(rows).collect().to_dicts()


def judged(
    answer: pl.DataFrame, ids: Int64s, worth: Float64s, born: Bools
) -> dict[str, float]:
    """Return what the first ads of every order are worth to one user.

    Args:
        answer: all candidates with their predictions.
        ids: (N,) of the catalog, rising.
        worth: (N,) what each ad would earn.
        born: (N,) which ads there are yet; no list may show another.
    """
    rows = np.searchsorted(ids, answer[AD_ID].to_numpy())
    is_born = born[rows]
    sums = {"all": _best(worth[born]), "candidates": _best(worth[rows[is_born]])}
    for name, order in ORDERS.items():
        score = answer.select(order).to_series().to_numpy()[is_born]
        first = np.argsort(-score, kind="stable")[:SHOWN]
        sums[name] = float(worth[rows[is_born][first]].sum())
    return sums


def _best(worth: Float64s) -> float:
    return float(np.sort(worth)[-SHOWN:].sum())


def regrets(worths: dict[str, Float64s]) -> dict[str, list[list[float]]]:
    """Return mean and interval of each order's regret, against both oracles."""
    names = [*ORDERS, "candidates"]
    report = {}
    for name in names:
        cells = []
        for oracle in ("all", "candidates"):
            lacks = 1 - worths[name] / worths[oracle]
            low, high = interval(resampled_means(lacks[:, None], 0))[:, 0]
            cells.append([float(lacks.mean()), float(low), float(high)])
        report["oracle's order" if name == "candidates" else name] = cells
    return report


if __name__ == "__main__":
    main()
