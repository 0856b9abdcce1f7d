"""Rows of `benchmarks/negatives.py` are what they are called, whatever CONFIG is."""

import sys
from pathlib import Path
from typing import Any

from conftest import REPOSITORY

from torchrec_adrec.config.contrast import ContrastSettings
from torchrec_adrec.config.run import load_config

sys.path.append(str(REPOSITORY / "benchmarks"))
from negatives import rows, rows_of_vectors

PLAIN = REPOSITORY / "configs/amazon_beauty.yaml"
MIXED = REPOSITORY / "configs/amazon_beauty_attention.yaml"  # with uniform negatives


def contrasts(config: Path) -> dict[str, dict[str, Any]]:
    """The settings of every row's contrast, with and without vectors of LightGCN."""
    vectors = rows_of_vectors(1024, Path("run/lightgcn"))
    settings = rows(1024, 64, "run/step-1") | vectors
    same = "retrieval.temperature=0.1"
    towers = {n: load_config(config, [*r, same]).retrieval for n, r in settings.items()}
    fields = {*ContrastSettings.model_fields, "start_from", "teacher"}
    return {n: t.model_dump(include=fields) for n, t in towers.items()}


def test_a_row_has_nothing_of_the_configuration_that_it_is_about() -> None:
    plain, mixed = contrasts(PLAIN), contrasts(MIXED)
    assert load_config(MIXED, []).retrieval.uniform_negatives
    assert plain == mixed
    assert mixed["softmax, in-batch, log_q none"]["uniform_negatives"] == 0
    assert mixed["softmax, mixed, log_q none"]["uniform_negatives"] == 1024


def test_no_two_rows_are_the_same() -> None:
    every = contrasts(MIXED)
    scratch = every.pop("from scratch")
    assert scratch == every["softmax, mixed, log_q without_positive"]
    settings = list(every.values())
    assert all(row not in settings[:n] for n, row in enumerate(settings))
