"""`adrec compare`: two runs on the same test rows, with paired intervals.

Shape letters: B test rows, Q held-out clicks.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.table import Table

from torchrec_adrec.arrays import Float64s, Int64s
from torchrec_adrec.config.run import Config
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import DataError
from torchrec_adrec.evaluation.comparison import (
    Difference,
    mean_terms,
    paired,
    prediction_terms,
)
from torchrec_adrec.evaluation.exact_search import search
from torchrec_adrec.evaluation.full_catalog import held_out_clicks
from torchrec_adrec.evaluation.funnel.names import (
    FOLDER,
    FUNNEL,
    METRICS,
    PER_USER,
    RECALL,
    VALUE,
)
from torchrec_adrec.evaluation.ranking_metrics import cuts_of, one_relevant
from torchrec_adrec.evaluation.row_keys import RowKeys, read_row_keys
from torchrec_adrec.evaluation.scorers import InnerProduct
from torchrec_adrec.export.export import QUERIES
from torchrec_adrec.index.manifest import load_vectors
from torchrec_adrec.runs.run_folder import read_settings
from torchrec_adrec.runs.stages import EXPORT, RANKING, check, load_record
from torchrec_adrec.schema import AD_ID, USER_KEY, Schema
from torchrec_adrec.tasks.calibration import load_calibrations
from torchrec_adrec.training.open_evaluator import open_evaluator

METRICS_OF_ROWS = ("auc", "log_loss")
METRICS_OF_LISTS = ("ndcg@10",)


@dataclass(frozen=True)
class Comparison:
    """What two runs differ in.

    Attributes:
        differences: by metric.
        notes: what was not compared, and why.
        test_hash: of the test rows of both.
    """

    differences: list[Difference]
    notes: list[str]
    test_hash: str

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        rows = [vars(d) | {"verdict": d.verdict} for d in self.differences]
        return {"test_hash": self.test_hash, "metrics": rows, "notes": self.notes}


class _NotComparableError(Exception):
    """Says why some metrics of two runs cannot be paired."""


def compare(a: Path, b: Path, seed: int, process: Process) -> Comparison:
    """Judge what both runs serve on the same test rows, clicks and users.

    Args:
        a: one run.
        b: the other.
        seed: of the resamples.
        process: this rank; there is one.

    Raises:
        DataError: the test rows differ, or stand in another order.
        ManifestError: a stage is missing or was made with other settings.
    """
    hashes = [_test_hash(run) for run in (a, b)]
    if hashes[0] != hashes[1]:
        raise DataError(
            f"the test rows of {a} have hash {hashes[0]}, those of {b} {hashes[1]}:"
            " figures of different rows do not compare models; compare runs of the same"
            " data, split and labels"
        )
    settings = [read_settings(None, None, run) for run in (a, b)]
    runs = list(zip((a, b), settings, strict=True))
    for run, config in runs:
        for stage in (RANKING, EXPORT):
            check(stage, config, run)
    one, other = (_predictions(run, config, process) for run, config in runs)
    differences, notes = _compare_predictions(one, other, seed), []
    towers = [_retrieval(run, config, process) for run, config in runs]
    try:
        differences += _compare_retrieval(towers[0], towers[1], seed)
    except _NotComparableError as error:
        notes.append(f"retrieval: {error}")
    try:
        differences += _compare_funnels(_funnel(a), _funnel(b), seed)
    except _NotComparableError as error:
        notes.append(f"funnel: {error}")
    return Comparison(differences, notes, hashes[0])


def _test_hash(run: Path) -> str:
    report = json.loads((run / "data/report.json").read_text())
    return str(report["splits"]["test"]["hash"])


@dataclass(frozen=True)
class _Predictions:
    """The click of the test rows that observe it, (B,) each; no user may be named."""

    predicted: Float64s
    label: Float64s
    user: Int64s | None


def _predictions(run: Path, config: Config, process: Process) -> _Predictions:
    """Predict the test rows with the ranker as it is served."""
    evaluator, model, checkpoint = open_evaluator("ranking", run, config, process)
    logits = evaluator.logits(model, "test")
    served = logits.predictions(evaluator.schema, load_calibrations(checkpoint))
    predicted, label = served[evaluator.schema.labels[0].name]
    keys = read_row_keys(run / "data", "test", logits.rows, evaluator.schema)
    return _Predictions(predicted, label, keys.select(logits.observed(0)).user)


def _compare_predictions(
    a: _Predictions, b: _Predictions, seed: int
) -> list[Difference]:
    users = [RowKeys(x.user).clusters(len(x.label)) for x in (a, b)]
    if not (np.array_equal(a.label, b.label) and np.array_equal(users[0], users[1])):
        raise DataError(
            "the test rows are the same and stand in another order, or name other"
            " users: they cannot be paired; prepare both runs from the same files in"
            " the same order"
        )
    one, other = (prediction_terms(x.predicted, x.label, x.user) for x in (a, b))
    names = METRICS_OF_ROWS + (() if a.user is None else METRICS_OF_LISTS)
    return _titled("click", paired(one, other, users[0], seed, names))


@dataclass(frozen=True)
class _Retrieval:
    """The held-out clicks: their ads and users, the ads of the catalog, the ranks."""

    clicks: pl.DataFrame
    ads: Int64s
    ranks: Int64s


def _retrieval(run: Path, config: Config, process: Process) -> _Retrieval:
    """Search for the held-out clicks with the exported vectors, exactly."""
    data, export = run / "data", run / EXPORT.name
    schema = Schema.load(data / "schema.json")
    ids, vectors = load_vectors(export)
    _, queries = load_vectors(export, QUERIES)
    clicks, _ = held_out_clicks(data, schema, len(queries), config.seed)
    clicked = np.searchsorted(ids, clicks[AD_ID].to_numpy())
    scorer = InnerProduct.of(queries, vectors, 0, process.device)
    names = [n for n in (AD_ID, USER_KEY) if n in clicks.columns]
    ranks = search(scorer, clicked, 1, process).ranks
    return _Retrieval(clicks.select(names), ids, ranks)


def _compare_retrieval(a: _Retrieval, b: _Retrieval, seed: int) -> list[Difference]:
    if not np.array_equal(a.ads, b.ads):
        raise _NotComparableError("the catalogs hold different ads")
    if not a.clicks.equals(b.clicks):
        raise _NotComparableError(
            "other clicks were drawn; give both runs the same seed and"
            " evaluation.queries"
        )
    cuts = cuts_of(len(a.ads))
    one, other = (mean_terms(one_relevant(x.ranks, cuts)) for x in (a, b))
    has_users = USER_KEY in a.clicks.columns
    user = a.clicks[USER_KEY].to_numpy() if has_users else None
    clusters = RowKeys(user).clusters(len(a.ranks))
    names = (*(f"recall@{k}" for k in cuts), "mrr")
    return _titled("retrieval", paired(one, other, clusters, seed, names))


@dataclass(frozen=True)
class _Funnel:
    """The figures of each user, and how they were measured."""

    users: pl.DataFrame
    protocol: dict[str, Any]


def _funnel(run: Path) -> _Funnel:
    folder = run / FOLDER
    if not (folder / METRICS).exists():
        raise _NotComparableError(
            f"{run} has none; run `adrec evaluate funnel --out {run}`"
        )
    report = json.loads((folder / METRICS).read_text())
    builds = {name: load_record(run, name).build_id for name in report["made_from"]}
    if builds != report["made_from"]:
        raise _NotComparableError(
            f"{run} was made again since it was judged; run `adrec evaluate funnel"
            f" --out {run}`"
        )
    return _Funnel(pl.read_parquet(folder / PER_USER), report["protocol"])


def _compare_funnels(a: _Funnel, b: _Funnel, seed: int) -> list[Difference]:
    for name in ("worth", "top"):
        if a.protocol[name] != b.protocol[name]:
            raise _NotComparableError(
                f"{name} differs: {a.protocol[name]!r} and {b.protocol[name]!r}"
            )
    if not a.users["row"].equals(b.users["row"]):
        raise _NotComparableError(
            "other users were drawn; give both the same seed and"
            " evaluation.funnel_users"
        )
    top = a.protocol["top"]
    columns = {f"worth of {top} ads": VALUE, f"recall@{top}": RECALL}
    one, other = (
        mean_terms(
            {n: x.users[f"{FUNNEL}: {c}"].to_numpy() for n, c in columns.items()}
        )
        for x in (a, b)
    )
    # One request a user: each row is a cluster of its own.
    clusters = np.arange(len(a.users))
    return _titled("funnel", paired(one, other, clusters, seed, tuple(columns)))


def _titled(title: str, differences: list[Difference]) -> list[Difference]:
    return [replace(d, metric=f"{title}, {d.metric}") for d in differences]


def comparison_table(comparison: Comparison, a: Path, b: Path) -> Table:
    """Return the table for a terminal.

    Args:
        comparison: of the runs.
        a: folder of one run.
        b: folder of the other.
    """
    table = Table(
        *("metric", "A", "B", "B - A (95%, paired)", "better"),
        title=f"A: {a}, B: {b}; test rows {comparison.test_hash}",
    )
    for row in _cells(comparison):
        table.add_row(*row)
    return table


def _cells(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    for d in comparison.differences:
        interval = f"{d.b - d.a:+.4f} ({d.low:+.4f} to {d.high:+.4f})"
        yield (d.metric, f"{d.a:.4f}", f"{d.b:.4f}", interval, d.verdict)
