"""Baselines that any model must beat: a constant, and a logistic regression.

Where the rows come from a known rule, the rule itself is judged too: no model beats it.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.sparse import csr_matrix, hstack
from sklearn.linear_model import LogisticRegression

from torchrec_adrec.arrays import Float64s, Int64s
from torchrec_adrec.errors import ManifestError
from torchrec_adrec.evaluation.metrics import click_metrics
from torchrec_adrec.schema import Schema

INVERSE_L2 = 0.1
MAX_ROWS = 1_000_000  # the latest training rows; more would not fit a laptop's memory
PREDICTIONS = "test.parquet"
TRUTH = "truth/rows.parquet"  # exists if the rows come from a known world


def baselines(data: Path, out: Path) -> dict[str, Any]:
    """Fit on the training split, judge on the test split, write `metrics.json`.

    `test.parquet` gets the label and the prediction of each observed row, so that other
    models can be compared row by row.
    """
    schema = Schema.load(data / "schema.json")
    label = schema.labels[0].name
    train, test = _observed(data, "train", label), _observed(data, "test", label)
    y_train, y_test = (f[label].to_numpy().astype(np.float64) for f in (train, test))
    constant = np.full(len(y_test), y_train.mean())
    model = LogisticRegression(C=INVERSE_L2, max_iter=200, tol=1e-3)
    model.fit(_one_hot(train, schema), y_train)
    predicted = model.predict_proba(_one_hot(test, schema))[:, 1]
    metrics: dict[str, Any] = {
        "constant": {"test": click_metrics(constant, y_test)},
        "logistic_regression": {
            "test": click_metrics(predicted, y_test),
            "train_rows": len(train),
            "inverse_l2": INVERSE_L2,
        },
    }
    columns = {label: y_test, "logistic_regression": predicted}
    pl.DataFrame(columns).write_parquet(out / PREDICTIONS)
    report = json.loads((data / "report.json").read_text())
    if (data / TRUTH).exists() and report["split_by"] == "time":
        metrics["truth"] = {
            "test": click_metrics(_truth(data, report, len(test)), y_test)
        }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    return metrics


def _observed(data: Path, split: str, label: str) -> pl.DataFrame:
    """Read the latest rows of a split whose label was observed."""
    rows = pl.scan_parquet(data / f"{split}/*.parquet")
    return rows.filter(pl.col(label).is_not_nan()).tail(MAX_ROWS).collect()


def _truth(data: Path, report: dict[str, Any], rows: int) -> Float64s:
    """Read the known p(click) of the test rows, which are the last ones of all.

    Raises:
        ManifestError: the truth is not that of these rows.
    """
    truth = pl.read_parquet(data / TRUTH, columns=["p_click"])["p_click"].to_numpy()
    if report["bad_rows"]["count"] or len(truth) != report["rows_in"]:
        raise ManifestError(
            f"{data / TRUTH} has {len(truth)} rows, the data"
            f" {report['rows_in']}; run `adrec prepare` again"
        )
    return np.asarray(truth[-rows:], dtype=np.float64)


def _one_hot(frame: pl.DataFrame, schema: Schema) -> csr_matrix:
    """Encode every id as a column of its own; numbers stay as they are."""
    dense = frame.select(f.name for f in schema.dense).to_numpy()
    if not schema.sparse:
        return csr_matrix(dense)
    sizes = [f.num_embeddings for f in schema.sparse]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    ids: Int64s = np.stack(
        [frame[f.name].to_numpy() + starts[i] for i, f in enumerate(schema.sparse)],
        axis=1,
    )
    rows, width = ids.shape
    # Every row has as many ones as there are features, so row i begins at i * width.
    pointers = np.arange(0, rows * width + 1, width)
    ones = np.ones(ids.size, dtype=np.float32)
    hot = csr_matrix((ones, ids.ravel(), pointers), shape=(rows, int(starts[-1])))
    if not schema.dense:
        return hot
    return hstack([hot, csr_matrix(dense)], format="csr")
