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
    rows: Tensor, columns: Candidates, own: Tensor, weights: Tensor, hidden: Tensor
) -> Tensor:
    """The definition, with all logits at once."""
    at = torch.arange(len(own))
    logits = rows @ columns.vectors.T - columns.correction
    logits[at, own] += columns.correction[own]
    same = columns.ids[own][:, None] == columns.ids[None]
    same[at, own] = False
    logits = logits.masked_fill(same | hidden, -torch.inf)
    return (F.cross_entropy(logits, own, reduction="none") * weights).sum()


@dataclass
class Problem:
    """Rows, columns and what is hidden; `blocks` and `plain` solve it."""

    rows: Tensor
    vectors: Tensor
    own: Tensor
    weights: Tensor
    hidden: Tensor
    ids: Tensor
    correction: Tensor

    @classmethod
    def drawn(cls) -> "Problem":
        torch.manual_seed(0)
        rows, vectors = torch.randn(37, 8) / 3, torch.randn(120, 8) / 3
        own, weights = torch.randint(120, (37,)), torch.rand(37)
        hidden = torch.rand(37, 120) < 0.1
        hidden[torch.arange(37), own] = False
        ids, correction = torch.arange(120) % 40, torch.linspace(-1, 1, 120)
        return cls(rows, vectors, own, weights, hidden, ids, correction)

    def solved(self, in_blocks: bool) -> Results:
        """Three times the loss, and both gradients."""
        a, b = (x.clone().requires_grad_() for x in (self.rows, self.vectors))
        columns = Candidates(b, self.correction, self.ids)
        if in_blocks:
            masked = self.hidden.nonzero(as_tuple=True)
            loss = chunked_cross_entropy(a, columns, self.own, self.weights, masked)
        else:
            loss = plain_cross_entropy(a, columns, self.own, self.weights, self.hidden)
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
            columns.argsort()[self.own[rows]],
            self.weights[rows],
            self.hidden[rows][:, columns],
            self.ids[columns],
            self.correction[columns],
        )
        found = turned.solved(in_blocks=False)
        gradients = {
            "rows": found["gradients"]["rows"][rows.argsort()],
            "columns": found["gradients"]["columns"][columns.argsort()],
        }
        return {"losses": found["losses"], "gradients": gradients}


@pytest.mark.parametrize(
    ("block", "round_"), [(1, 1), (130, 8), (1_000, 1), (1_000, 64), (10**6, 64)]
)
def test_softmax_in_blocks_is_the_plain_one(
    block: int, round_: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value and both gradients but for rounding, whatever a block takes."""
    monkeypatch.setattr(chunked, "BLOCK", block)
    monkeypatch.setattr(chunked, "ROUND", round_)
    problem = Problem.drawn()
    reordered = [problem.solved_in_other_orders(seed) for seed in ORDERS]
    rounding = Rounding("a softmax", problem.solved(in_blocks=False), *reordered)
    rounding.holds(f"in blocks of {block}", problem.solved(in_blocks=True))
    lacking = problem.weights.clone()
    lacking[3] = 0
    shown = problem.hidden.clone()
    shown[0] = False
    for fault, wrong in (
        ("a row dropped", replace(problem, weights=lacking)),
        ("rows times 1.001", replace(problem, rows=problem.rows * 1.001)),
        ("one row's mask lost", replace(problem, hidden=shown)),
    ):
        rounding.sees(fault, wrong.solved(in_blocks=True))


def test_a_right_ad_of_no_probability_has_its_exact_loss() -> None:
    """Its probability is 0 in float32, its loss is not infinite."""
    columns = Candidates(torch.eye(3), torch.zeros(3), torch.arange(3))
    rows = torch.tensor([[0.0, 200.0, 0.0]])
    loss = chunked_cross_entropy(rows, columns, torch.tensor([0]), torch.ones(1))
    assert loss.item() == 200


def test_matches_are_all_pairs_of_equal_ids() -> None:
    generator = torch.Generator().manual_seed(0)
    for count in (0, 1, 7, 40):
        wanted = torch.randint(9, (count,), generator=generator)
        ids = torch.randint(2, 11, (30,), generator=generator)
        places, columns = matches(wanted, ids)
        expected = (wanted[:, None] == ids).nonzero()
        assert places.tolist() == expected[:, 0].tolist()  # rising
        assert sorted(zip(places.tolist(), columns.tolist(), strict=True)) == [
            tuple(pair) for pair in expected.tolist()
        ]


def test_softmax_under_autocast_keeps_its_logits_exact() -> None:
    """In bfloat16 cosines over .02 would be off by .1; the gradient may be by 1%."""
    torch.manual_seed(0)
    rows = F.normalize(torch.randn(64, 16), dim=1) / 0.02
    vectors = F.normalize(torch.randn(64, 16), dim=1)
    columns = Candidates(vectors.requires_grad_(), torch.zeros(64), torch.arange(64))
    values, gradients = [], []
    for low in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = chunked_cross_entropy(
                rows, columns, torch.arange(64), torch.ones(64)
            )
        values.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, vectors)[0])
    assert torch.equal(values[0], values[1])
    error = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
    assert 0 < error < 0.01
