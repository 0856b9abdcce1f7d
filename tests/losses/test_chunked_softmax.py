"""The softmax in blocks against its definition, all logits at once."""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from rounding import ORDERS, Results, Rounding
from torch import Tensor

from torchrec_adrec.losses import chunked
from torchrec_adrec.losses.chunked import Candidates, chunked_cross_entropy
from torchrec_adrec.losses.matches import matches


def plain_cross_entropy(
    rows: Tensor,
    candidates: Candidates,
    target: Tensor,
    weights: Tensor,
    excluded: Tensor,
) -> Tensor:
    """The definition, with all logits at once."""
    row = torch.arange(len(target))
    logits = rows @ candidates.vectors.T - candidates.correction
    logits[row, target] += candidates.correction[target]
    same = candidates.ids[target][:, None] == candidates.ids[None]
    same[row, target] = False
    logits = logits.masked_fill(same | excluded, -torch.inf)
    return (F.cross_entropy(logits, target, reduction="none") * weights).sum()


@dataclass
class Problem:
    """Rows, candidates and the pairs that are excluded."""

    rows: Tensor
    vectors: Tensor
    target: Tensor
    weights: Tensor
    excluded: Tensor
    ids: Tensor
    correction: Tensor

    @classmethod
    def drawn(cls) -> "Problem":
        torch.manual_seed(0)
        rows, vectors = torch.randn(37, 8) / 3, torch.randn(120, 8) / 3
        target, weights = torch.randint(120, (37,)), torch.rand(37)
        excluded = torch.rand(37, 120) < 0.1
        excluded[torch.arange(37), target] = False
        ids, correction = torch.arange(120) % 40, torch.linspace(-1, 1, 120)
        return cls(rows, vectors, target, weights, excluded, ids, correction)

    def solved(self, in_blocks: bool) -> Results:
        """Three times the loss, and both gradients."""
        a, b = (x.clone().requires_grad_() for x in (self.rows, self.vectors))
        candidates = Candidates(b, self.correction, self.ids)
        if in_blocks:
            row, candidate = self.excluded.nonzero(as_tuple=True)
            loss = chunked_cross_entropy(
                a, candidates, self.target, self.weights, (row, candidate)
            )
        else:
            loss = plain_cross_entropy(
                a, candidates, self.target, self.weights, self.excluded
            )
        loss = 3 * loss / self.weights.sum()
        loss.backward()
        assert a.grad is not None and b.grad is not None
        gradients = {"rows": a.grad, "columns": b.grad}
        return {"losses": {"softmax": loss.detach()}, "gradients": gradients}

    def solved_in_other_orders(self, seed: int) -> Results:
        """The plain solution of turned rows and columns; gradients turned back."""
        generator = torch.Generator().manual_seed(seed)
        rows, columns = (torch.randperm(n, generator=generator) for n in (37, 120))
        turned = Problem(
            self.rows[rows],
            self.vectors[columns],
            columns.argsort()[self.target[rows]],
            self.weights[rows],
            self.excluded[rows][:, columns],
            self.ids[columns],
            self.correction[columns],
        )
        solved = turned.solved(in_blocks=False)
        gradients = {
            "rows": solved["gradients"]["rows"][rows.argsort()],
            "columns": solved["gradients"]["columns"][columns.argsort()],
        }
        return {"losses": solved["losses"], "gradients": gradients}


@pytest.mark.parametrize(
    ("block", "round_"), [(1, 1), (130, 8), (1_000, 1), (1_000, 64), (10**6, 64)]
)
def test_softmax_in_blocks_is_the_plain_one(
    block: int, round_: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value and both gradients but for rounding, whatever the size of a block."""
    monkeypatch.setattr(chunked, "BLOCK", block)
    monkeypatch.setattr(chunked, "ROUND", round_)
    problem = Problem.drawn()
    reordered = [problem.solved_in_other_orders(seed) for seed in ORDERS]
    rounding = Rounding("a softmax", problem.solved(in_blocks=False), *reordered)
    rounding.holds(f"in blocks of {block}", problem.solved(in_blocks=True))
    weights = problem.weights.clone()
    weights[3] = 0
    excluded = problem.excluded.clone()
    excluded[0] = False
    for fault, wrong in (
        ("a row dropped", replace(problem, weights=weights)),
        ("rows times 1.001", replace(problem, rows=problem.rows * 1.001)),
        ("one row's mask lost", replace(problem, excluded=excluded)),
    ):
        rounding.sees(fault, wrong.solved(in_blocks=True))


def test_a_target_of_no_probability_has_its_exact_loss() -> None:
    """Its probability is 0 in float32, its loss is not infinite."""
    candidates = Candidates(torch.eye(3), torch.zeros(3), torch.arange(3))
    rows = torch.tensor([[0.0, 200.0, 0.0]])
    loss = chunked_cross_entropy(rows, candidates, torch.tensor([0]), torch.ones(1))
    assert loss.item() == 200


def test_matches_are_all_pairs_of_equal_ids() -> None:
    generator = torch.Generator().manual_seed(0)
    for count in (0, 1, 7, 40):
        queries = torch.randint(9, (count,), generator=generator)
        ids = torch.randint(2, 11, (30,), generator=generator)
        rows, columns = matches(queries, ids)
        expected = (queries[:, None] == ids).nonzero()
        assert rows.tolist() == expected[:, 0].tolist()  # rising
        assert sorted(zip(rows.tolist(), columns.tolist(), strict=True)) == [
            tuple(pair) for pair in expected.tolist()
        ]


def test_softmax_under_autocast_keeps_its_logits_exact() -> None:
    """Cosines over 0.02 would be off by 0.1 in bfloat16; the gradient may be by 1%."""
    torch.manual_seed(0)
    rows = F.normalize(torch.randn(64, 16), dim=1) / 0.02
    vectors = F.normalize(torch.randn(64, 16), dim=1)
    candidates = Candidates(vectors.requires_grad_(), torch.zeros(64), torch.arange(64))
    values, gradients = [], []
    for use_bfloat16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=use_bfloat16):
            loss = chunked_cross_entropy(
                rows, candidates, torch.arange(64), torch.ones(64)
            )
        values.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, vectors)[0])
    assert torch.equal(values[0], values[1])
    error = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
    assert 0 < error < 0.01
