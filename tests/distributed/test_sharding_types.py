"""Every sharding type on several ranks is the unsharded model: weights and losses.

The reference is plain PyTorch on the joint batch: `EmbeddingBag`s, autograd, and
row-wise Adagrad written out, one accumulator per row and slice of columns. That is what
`column_wise` defines: with it the sharded model differs from other types by design.
"""

import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fifty_steps import (
    CASES,
    SCHEMAS,
    STEPS,
    Case,
    config,
    results_of,
    rows_of,
    set_start,
    start_of,
    train,
)
from planted import faults, smooth
from rounding import ORDERS, Results, Rounding
from torch import Tensor

from torchrec_adrec.distributed.process import process_group
from torchrec_adrec.distributed.sharding import codecs
from torchrec_adrec.modules.embeddings import table_of
from torchrec_adrec.tasks.task import build_task

EPSILON = 1e-8  # of FBGEMM's kernel
FAULTS = faults("embedding_bags.user_a.weight")
SCRIPT = """
import os
import torch
from fifty_steps import CASES, FP16, train
from torchrec_adrec.distributed.process import process_group

os.environ["LOCAL_WORLD_SIZE"] = {local!r}
results = {{}}
with process_group("cpu") as process:
    for name, case in {{**CASES, "fp16": FP16}}.items():
        results[name] = train(case, process)
    if process.is_first:
        torch.save(results, {path!r})
"""
Run = Callable[[int, str], subprocess.CompletedProcess[str]]


def launched(ranks: int, local: int, run: Run, folder: Path) -> dict[str, Any]:
    """All cases in one launch: ranks in nodes of `local`."""
    path = folder / "results.pt"
    done = run(ranks, SCRIPT.format(local=str(local), path=str(path)))
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(torch.load(path, weights_only=False))


@pytest.fixture(scope="module")
def two_ranks(
    ranks_script: Run, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    return launched(2, 2, ranks_script, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four_ranks(
    ranks_script: Run, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Two nodes of two, so that table_row_wise has ranks without the table."""
    return launched(4, 2, ranks_script, tmp_path_factory.mktemp("four"))


class SlicedAdagrad:
    """G[r, s] += mean over slice s of g[r]^2; w -= lr g / (sqrt(G) + epsilon)."""

    def __init__(self, weight: Tensor, slices: int, rate: float) -> None:
        self.weight, self.rate = weight, rate
        self.sums = torch.zeros(len(weight), slices, 1)

    @torch.no_grad()
    def step(self) -> None:
        assert self.weight.grad is not None
        gradient = self.weight.grad.to_dense().view(*self.sums.shape[:2], -1)
        self.sums += gradient.square().mean(dim=2, keepdim=True)
        change = gradient / (self.sums.sqrt() + EPSILON) * self.rate
        self.weight -= change.view_as(self.weight)
        self.weight.grad = None


@cache
def unsharded(
    slices: tuple[tuple[str, int], ...],
    order: int | None = None,
    fault: str | None = None,
    encoder: str = "mean",
) -> Results:
    """Fifty steps of the plain model; tables of more than one slice are named.

    Args:
        order: seed of another order of the rows.
        fault: one of `FAULTS` to plant.
        encoder: of the history.
    """
    whole = config(encoder=encoder)
    settings, schema = whole.retrieval.optimizer, SCHEMAS[encoder]
    with process_group("cpu"):
        model = build_task("retrieval", schema, whole, torch.device("cpu"))
        smooth(model)
        set_start(model)
        if fault is not None:
            FAULTS[fault](model)
        named = dict(model.named_parameters())
        tables = [
            SlicedAdagrad(
                weight, dict(slices).get(name.split(".")[-2], 1), settings.tables_lr
            )
            for name, weight in named.items()
            if table_of(name)
        ]
        dense = torch.optim.AdamW(
            [weight for name, weight in named.items() if not table_of(name)],
            lr=settings.dense_lr,
            weight_decay=settings.weight_decay,
        )
        losses = []
        for step in range(STEPS):
            dense.zero_grad()
            loss = model(rows_of(step, 0, 1, order, encoder))[0]
            loss.backward()
            for table in tables:
                table.step()
            dense.step()
            losses.append(loss.item())
    return results_of(losses, model.state_dict())


@cache
def rounding_of(slices: tuple[tuple[str, int], ...], encoder: str = "mean") -> Rounding:
    reordered = (unsharded(slices, order, encoder=encoder) for order in ORDERS)
    name = f"fifty steps of {encoder}, sliced tables: {dict(slices) or 'none'}"
    return Rounding(name, unsharded(slices, encoder=encoder), *reordered)


def check(trained: dict[str, Any], case: Case, name_of_run: str) -> None:
    """Types are those asked for; losses and weights the reference's but for rounding.

    And every weight has moved further than that.
    """
    assert trained["types"] == case.types
    rounding = rounding_of(case.slices, case.encoder)
    for name, weight in rounding.right["weights"].items():
        assert (weight - start_of(name, weight.shape)).abs().max() > 1e-3, name
    rounding.holds(name_of_run, trained["results"])


@pytest.mark.parametrize("name", CASES)
def test_one_rank(name: str) -> None:
    with process_group("cpu") as process:
        trained = train(CASES[name], process)
    check(trained, CASES[name], f"{name} on one rank")


@pytest.mark.parametrize("name", CASES)
def test_two_ranks(name: str, two_ranks: dict[str, Any]) -> None:
    check(two_ranks[name], CASES[name], f"{name} on two ranks")


@pytest.mark.four_ranks
@pytest.mark.parametrize("name", CASES)
def test_four_ranks(name: str, four_ranks: dict[str, Any]) -> None:
    check(four_ranks[name], CASES[name], f"{name} on four ranks")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "slices", sorted({c.slices for c in CASES.values() if c.encoder == "mean"})
)
def test_faults_are_no_rounding(
    fault: str, slices: tuple[tuple[str, int], ...]
) -> None:
    rounding_of(slices).sees(fault, unsharded(slices, fault=fault))


def test_slices_of_columns_are_another_optimizer() -> None:
    """The reference tells them apart, so a pass above says which one was run."""
    one, four = unsharded(()), unsharded(CASES["column_wise"].slices)
    name = "model.user_tower.tables.embedding_bags.user_a.weight"
    assert (one["weights"][name] - four["weights"][name]).abs().max() > 1e-2


def test_vectors_in_fp16_are_near_and_not_equal(two_ranks: dict[str, Any]) -> None:
    """Apart by what fp16 rounds, 5e-4 of a value: the format's rounding, anywhere."""
    half, whole = (two_ranks[n]["results"]["losses"] for n in ("fp16", "row_wise"))
    apart = (half["of each step"] - whole["of each step"]).abs().max()
    assert 0 < apart < 2e-3


def test_gradients_are_never_fp16() -> None:
    """Of 65,536 rows a gradient is about 1e-7: in fp16 two steps of 6e-8, or none."""
    codecs_by_name = codecs("fp16", torch.device("cpu"))
    assert codecs_by_name is not None
    gradient = torch.tensor([1.1e-7, 2e-8])
    for codec in (one.backward for one in codecs_by_name.values()):
        assert codec.decode(codec.encode(gradient)).tolist() == gradient.tolist()
    for codec in (one.forward for one in codecs_by_name.values()):
        assert codec.encode(gradient).dtype == torch.float16
