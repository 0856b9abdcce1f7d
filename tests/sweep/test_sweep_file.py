"""The file of a sweep: every key is checked before anything runs."""

import json
from pathlib import Path

import pytest
from conftest import REPOSITORY

from torchrec_adrec.errors import ConfigError, DataError
from torchrec_adrec.sweep.metric import Metric
from torchrec_adrec.sweep.plan import Plan, read_sweep


def read(tmp_path: Path, text: str, *overrides: str) -> Plan:
    config = REPOSITORY / "configs/movie_lab.yaml"
    path = tmp_path / "sweep.yaml"
    path.write_text(f"config: {config}\n{text}")
    return read_sweep(path, overrides)


def test_a_grid_crosses_the_variants(tmp_path: Path) -> None:
    text = """
variants: {plain: {}, wide: {ranking.hidden: [128, 64]}}
grid: {ranking.optimizer.dense_lr: [0.01, 0.1], ranking.dropout: [0, 0.5]}
"""
    plan = read(tmp_path, text)
    assert len(plan.variants) == 8
    assert plan.variants[1].name == "plain dense_lr=0.01 dropout=0.5"
    assert dict(plan.variants[6].settings) == {
        "ranking.hidden": [128, 64],
        "ranking.optimizer.dense_lr": 0.1,
        "ranking.dropout": 0,
    }


def test_keys_that_end_alike_are_named_in_full(tmp_path: Path) -> None:
    text = "grid: {ranking.dropout: [0], retrieval.dropout: [0.1]}"
    (variant,) = read(tmp_path, text).variants
    assert variant.name == "ranking.dropout=0 retrieval.dropout=0.1"


def test_a_variant_keeps_its_own_value_of_a_key_of_the_command_line(
    tmp_path: Path,
) -> None:
    text = "settings: {train.epochs: 9}\nvariants: {a: {ranking.dropout: 0.5}}"
    plan = read(tmp_path, text, "train.epochs=1", "ranking.dropout=0")
    words = plan.words(plan.variants[0], 2)
    assert words.index("train.epochs=9") < words.index("train.epochs=1")
    assert words.index("ranking.dropout=0") < words.index("ranking.dropout=0.5")
    assert words[-1] == "seed=2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("varants: {}", "unknown key 'varants', did you mean 'variants'"),
        ("variants: {a: {ranking.drpout: 0}}", "'ranking.drpout', did you mean"),
        ("grid: {ranking.dropout: [0, 1.5]}", "dropout=1.5: .*less than 1, found 1.5"),
        ("grid: {ranking.dropout: []}", "grid.ranking.dropout.*at least 1 item"),
        ("settings: {train.epoch: 1}", "'train.epoch', did you mean 'train.epochs'"),
        ("search: {train.epoch: {low: 1, high: 2}}", "unknown key 'train.epoch'"),
        ("search: {train.epochs: {low: 0, high: 2}}", "train.epochs: .*found 0"),
        ("search: {train.epochs: {low: 2, high: 2}}", "low 2 must be below high 2"),
        (
            "search: {ranking.dropout: {low: 0, high: 0.5, log: true}}",
            "above 0 on a logarithmic",
        ),
        (
            "search: {ranking.dropout: [0, 0.1]}\ngrid: {train.epochs: [1]}",
            "leave variants and grid out",
        ),
        ("variants: {a: {seed: 3}}", "list them in `seeds`"),
        ("seeds: [0, 0]", "one of them is there twice"),
        ("seeds: []", "seeds: .*at least 1 item"),
        ("metric: ranking.click.rows", "nothing is known of rows"),
        ("metric: export.recall@10", "of a stage in retrieval, ranking"),
        ("variants: {a b: {}, a/b: {}}", "two variants have the name 'a/b'"),
        ("settings: {data.split: {train: 0.9, valid: 0}}", "data.split.valid is 0"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_key(
    text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)


def test_a_metric_of_lists_asks_for_validation_clicks(tmp_path: Path) -> None:
    plan = read(tmp_path, "stages: [export]")
    assert plan.metric == Metric("export", "", "recall@100")
    assert plan.stages == ("data", "retrieval", "export")
    words = plan.words(plan.variants[0], 0)
    assert any(word.startswith("evaluation.valid_queries=") for word in words)


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({"log_loss": 0.5}, "no ranking.click.auc; name one of log_loss as the"),
        ({"auc": float("nan")}, "no ranking.click.auc; are there validation rows of"),
        ({}, "no ranking.click.auc; are there validation rows of"),
    ],
)
def test_a_figure_that_is_not_there_is_an_error(
    figures: dict[str, float], message: str, tmp_path: Path
) -> None:
    (tmp_path / "ranking").mkdir()
    metrics = json.dumps({"valid": {"click": figures}})
    (tmp_path / "ranking/metrics.json").write_text(metrics)
    with pytest.raises(DataError, match=message):
        Metric("ranking", "click", "auc").valid(tmp_path)


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "configs/sweeps").glob("*.yaml")), ids=lambda p: p.stem
)
def test_the_shipped_files_can_be_read(path: Path) -> None:
    assert read_sweep(path).variants
