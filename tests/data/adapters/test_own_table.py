"""Your own table through the whole of `prepare`: histories, values, times, ranks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from conftest import adrec, on_ranks

from torchrec_adrec.config.run import load_config
from torchrec_adrec.data.loader.collate import batch_columns, collate
from torchrec_adrec.data.loader.parquet import Reader
from torchrec_adrec.data.loader.row_groups import Split
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.prepare.split_counts import exact_sums, total
from torchrec_adrec.data.request import raw_user
from torchrec_adrec.distributed import checkpoint
from torchrec_adrec.errors import DataError
from torchrec_adrec.evaluation.baselines import baselines
from torchrec_adrec.evaluation.below import below_baselines
from torchrec_adrec.evaluation.metrics import click_metrics
from torchrec_adrec.schema import RESERVED, Label, Schema, Side, SparseFeature
from torchrec_adrec.tasks.task import build_task

ROWS = 1500
TABLE: dict[str, Any] = {
    "labels": {"click": "binary", "spent": {"kind": "value", "max_value": 1e6}},
    "time": {"column": "ts", "kind": "number"},
    "user_id": "uid",
    "user": {
        "uid": "text",
        "country": "text",
        "history": {"column": "seen", "kind": "sequence", "max_length": 4},
        "lately": {"column": "seen", "kind": "sequence", "max_length": 1},
    },
    "ad": {"creative": "text"},
}


def write(folder: Path) -> Path:
    """Three files whose times overlap, from 0 to nanoseconds since 1970."""
    rng = np.random.default_rng(0)
    rows = pl.DataFrame(
        {
            "ts": rng.permutation(np.linspace(0, 1.7e18, ROWS).astype(np.int64)),
            "uid": [f"u{i}" for i in rng.integers(100, size=ROWS)],
            "country": rng.choice(["NL", "DE", ""], ROWS),
            "seen": [
                " ".join(rng.choice(["a", "b", "c"], n))
                for n in rng.integers(6, size=ROWS)
            ],
            "creative": [f"ad {i}" for i in rng.integers(20, size=ROWS)],
            "click": rng.integers(2, size=ROWS),
            "spent": np.round(rng.lognormal(0, 3, ROWS), 3),
        }
    )
    for i in range(3):
        rows[i * 500 : (i + 1) * 500].write_csv(folder / f"part_{i}.csv")
    mapping = {**TABLE, "labels": {"click": {}, "spent": TABLE["labels"]["spent"]}}
    data = {"adapter": "table", "raw": f"{folder}/part_*.csv", "table": mapping}
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump({"data": {**data, "min_count": 2}}))
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    done = adrec("prepare", "--config", write(folder), "--out", folder / "one")
    assert done.returncode == 0, done.stderr
    return folder


def rows_of(folder: Path, split: str) -> pl.DataFrame:
    return pl.read_parquet(folder / f"one/data/{split}/*.parquet")


def test_ranks_do_not_change_it(folder: Path) -> None:
    """Sums of values would, added up in another order."""
    config = folder / "config.yaml"
    done = on_ranks(2, "prepare", "--config", config, "--out", folder / "two")
    assert done.returncode == 0, done.stderr
    for path in (folder / "one/data").rglob("*"):
        if path.suffix in (".json", ".parquet", ".md") and path.name != "stage.json":
            other = folder / "two" / path.relative_to(folder / "one")
            assert other.read_bytes() == path.read_bytes(), path


def test_the_latest_rows_are_held_out(folder: Path) -> None:
    report = json.loads((folder / "one/data/report.json").read_text())
    assert [s["rows"] for s in report["splits"].values()] == [1200, 150, 150]
    rows, spent = np.array(report["label_periods"]["spent"])
    assert rows.tolist() == [25] * 60  # evenly spread over the time, not the files
    raw = pl.concat(pl.read_csv(p) for p in sorted(folder.glob("part_*.csv"))).sort(
        "ts"
    )
    assert sorted(rows_of(folder, "test")["spent"]) == pytest.approx(
        sorted(raw["spent"][-150:])
    )
    assert spent.sum() == pytest.approx(raw["spent"].sum())
    schema = Schema.load(folder / "one/data/schema.json")
    assert schema.labels[1].mean == pytest.approx(raw["spent"][:1200].mean())


def test_serving_encodes_as_prepare_did(folder: Path) -> None:
    encoder = Encoder.load(folder / "one/data")
    users = json.loads((folder / "one/data/example_users.json").read_text())
    columns = encoder.schema.columns_of(Side.USER)
    prepared = set(rows_of(folder, "test").select(columns).iter_rows())
    for user in users:
        encoded = encoder.encode(raw_user(user, encoder.schema), Side.USER)
        assert tuple(encoded[name][0] for name in columns) in prepared
    gap = {**users[0], "history": ["a", "", "b"], "lately": ["b"]}
    whole = {**users[0], "history": ["a", "b"], "lately": ["b"]}
    actual, expected = (
        encoder.encode(raw_user(user, encoder.schema), Side.USER)
        for user in (gap, whole)
    )
    assert len(users) == 150
    assert all(actual[name][0] == expected[name][0] for name in columns)


def test_a_history_is_no_drift_where_its_items_are_none(folder: Path) -> None:
    report = json.loads((folder / "one/data/report.json").read_text())
    assert all(value < 0.5 for value in report["drift"].values())
    assert set(report["drift"]) == {"uid", "country", "creative", "history", "lately"}


def test_ids_alone_have_a_baseline(folder: Path, tmp_path: Path) -> None:
    metrics = baselines(folder / "one/data", tmp_path)
    assert 0.3 < metrics["logistic_regression"]["test"]["auc"] < 0.7


@pytest.mark.slow
def test_histories_of_sharded_tables_are_those_of_whole_ones(folder: Path) -> None:
    """On two ranks, each of which holds half of the rows that a mean is taken of.

    The labels are drawn by lot: what the baselines do better, training says.
    """
    done = adrec("baselines", "--out", folder / "one")
    assert done.returncode == 0, done.stderr
    rows = "sharding.types=[row_wise]"
    arguments = ["train.batch_size=100", rows, "--out", folder / "one"]
    done = on_ranks(2, "train", "retrieval", *arguments)
    assert done.returncode == 0, done.stderr
    stage, data = folder / "one/retrieval", folder / "one/data"
    metrics = json.loads((stage / "metrics.json").read_text())
    beaten = json.loads((folder / "one/baselines/metrics.json").read_text())
    worse = below_baselines({"baselines": beaten, "retrieval": metrics})
    assert done.stderr.count("evaluation.below | ") == len(worse)
    assert all(f"evaluation.below | {line}: look at" in done.stderr for line in worse)
    sharded = metrics["test"]["click"]
    schema = Schema.load(data / "schema.json")
    task = build_task("retrieval", schema, load_config(stage / "config.yaml")).eval()
    last = checkpoint.latest(stage / "checkpoints")
    assert last is not None
    checkpoint.load(last, task, schema)
    reader = Reader(Split.open(data / "test"), batch_columns(schema), 150)
    batch = collate(next(reader.epoch()), schema)
    with torch.no_grad():
        logits = task(batch)[1].logits[:, 0]
    whole = click_metrics(logits.double().sigmoid().numpy(), batch.labels[:, 0].numpy())
    assert sharded["rows"] == whole["rows"] == 150
    assert sharded["log_loss"] == pytest.approx(whole["log_loss"], abs=1e-6)


def test_sums_do_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(1)
    values = (rng.lognormal(0, 6, 10_000) - 1).astype(np.float32)
    values[:3] = 0, 1e-45, -3e38
    groups = rng.integers(4, size=len(values))
    whole = exact_sums(values, groups, 4)
    order = rng.permutation(len(values))
    parts = [exact_sums(values[p], groups[p], 4) for p in np.array_split(order, 7)]
    assert (sum(parts[1:], parts[0]) == whole).all()
    expected = [values[groups == g].astype(np.float64).sum() for g in range(4)]
    assert total(whole) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", [*RESERVED, "raw_creative"])
def test_names_that_prepare_writes_are_refused(name: str) -> None:
    sides = (Side.USER, Side.AD)
    sparse = [
        SparseFeature(name=n, side=s, source=n)
        for n, s in zip((name, "a"), sides, strict=True)
    ]
    with pytest.raises(ValueError, match="rename them"):
        Schema(dense=(), sparse=tuple(sparse), labels=(Label(name="click"),))


@pytest.mark.parametrize("value", ["1_0", " 5", "٣", "nan", "1e400", 2**63, True, [1]])
def test_numbers_are_read_as_in_a_file(prepared: Path, value: object) -> None:
    schema = Schema.load(prepared / "schema.json")
    with pytest.raises(DataError, match="I1 is "):
        raw_user({"I1": value}, schema)  # type: ignore[dict-item]
