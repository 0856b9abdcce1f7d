"""The softmax in large blocks, as on a device, against the plain one in float64."""

import math
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from torchrec_adrec.losses import device_blocks
from torchrec_adrec.losses.chunked import Candidates
from torchrec_adrec.losses.device_blocks import large_block_cross_entropy
from torchrec_adrec.losses.excluded import ExcludedCandidates
from torchrec_adrec.losses.matches import matches
from torchrec_adrec.losses.products import as_left, as_right, halves, wide_product

ANCHORS, COLUMNS, ADS = 61, 190, 70


class Case:
    """Unit vectors, logQ, accidental hits, histories and uneven weights; the targets
    lie anywhere among the candidates, as those of a second rank do.
    """

    def __init__(self, width: int, temperature: float) -> None:
        generator = torch.Generator().manual_seed(width)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.rows = F.normalize(normal(ANCHORS, width), dim=1) / temperature
        self.vectors = F.normalize(normal(COLUMNS, width), dim=1)
        self.ids = torch.randint(ADS, (COLUMNS,), generator=generator)
        log_q = torch.rand(COLUMNS, generator=generator, dtype=torch.float64).log()
        self.correction = log_q + math.log(COLUMNS - 1)
        self.target = torch.randperm(COLUMNS, generator=generator)[:ANCHORS]
        self.weights = torch.rand(ANCHORS, generator=generator, dtype=torch.float64)
        self.history = torch.randint(-1, ADS, (ANCHORS, 4), generator=generator)

    def plain(self) -> tuple[Tensor, ...]:
        rows, vectors = (x.clone().requires_grad_() for x in (self.rows, self.vectors))
        logits = rows @ vectors.T
        target_logits = logits.gather(1, self.target[:, None])
        excluded = self.ids[self.target][:, None] == self.ids
        excluded |= (self.history[:, :, None] == self.ids).any(dim=1)
        logits = (logits - self.correction).masked_fill(excluded, -torch.inf)
        logits = logits.scatter(1, self.target[:, None], target_logits)
        loss = F.cross_entropy(logits, self.target, reduction="none") @ self.weights
        return (loss.detach(), *torch.autograd.grad(loss, (rows, vectors)))

    def blocks(self) -> tuple[Tensor, ...]:
        rows, vectors = (x.float().requires_grad_() for x in (self.rows, self.vectors))
        candidates = Candidates(vectors, self.correction.float(), self.ids)
        excluded = ExcludedCandidates(self.history, self.ids)
        loss = large_block_cross_entropy(
            rows, candidates, self.target, self.weights.float(), excluded
        )
        return (loss.detach(), *torch.autograd.grad(loss, (rows, vectors)))


def largest_error(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> float:
    """Relative to each tensor's largest value."""
    pairs = zip(one, other, strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


@pytest.mark.parametrize("block", [1, 5 * COLUMNS, 1 << 28])
@pytest.mark.parametrize("temperature", [0.02, 0.05])
@pytest.mark.parametrize("width", [64, 256])
def test_large_blocks_are_the_plain_softmax(
    width: int, temperature: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_blocks, "BLOCK", block)
    case = Case(width, temperature)
    error = largest_error(case.blocks(), case.plain())
    print(f"D={width} T={temperature} block={block}: {error:.2g}")
    assert error < 1e-5


def planted(fault: str) -> Case:
    case = Case(64, 0.05)
    if fault == "logQ":
        case.correction = case.correction * 1.001
    elif fault == "an accidental hit":
        case.ids = case.ids.clone()
        case.ids[case.target[0]] = ADS + 1
    elif fault == "a history":
        case.history = torch.full_like(case.history, -1)
    elif fault == "a weight":
        case.weights = case.weights * torch.linspace(1, 1.001, ANCHORS).double()
    return case


@pytest.mark.parametrize(
    "fault", ["logQ", "an accidental hit", "a history", "a weight"]
)
def test_a_planted_fault_is_seen(fault: str) -> None:
    assert largest_error(planted(fault).blocks(), Case(64, 0.05).plain()) > 1e-4


def test_what_a_history_leaves_out_is_every_pair_of_equal_items() -> None:
    generator = torch.Generator().manual_seed(0)
    history = torch.randint(-1, 9, (20, 6), generator=generator)
    items = torch.randint(0, 12, (33,), generator=generator)
    mask = ExcludedCandidates(history, items).mask(slice(3, 17))
    expected = torch.zeros(20, 33, dtype=torch.bool)
    for position in range(6):
        rows, columns = matches(history[:, position].contiguous(), items)
        expected[rows, columns] = True
    assert torch.equal(mask, expected[3:17])


def test_a_product_of_halves_is_as_exact_as_float32() -> None:
    """Also of vectors that are not of length one, whose small numbers float16 lacks."""
    generator = torch.Generator().manual_seed(0)
    for size in (1e-6, 1.0, 3e5):
        a = torch.randn(50, 256, generator=generator) * size
        b = torch.randn(70, 256, generator=generator)
        exact = a.double() @ b.double().T
        one, other = halves(a), halves(b)
        product = wide_product(as_left(one), as_right(other).T)
        product = product * (one.scale * other.scale)
        norm = a.norm(dim=1, keepdim=True).double() * b.norm(dim=1).double()
        error = float(((product - exact) / norm).abs().max())
        short = a.half().double() @ b.half().double().T
        short_error = float(((short - exact) / norm).abs().max())
        assert error < 4e-7
        assert not short_error < 20 * error  # one half alone would be seen


KERNEL = """
import torch
from torchrec_adrec.losses.block import Block
from torchrec_adrec.losses.grad_logits import grad_logits_by_torch
from torchrec_adrec.losses.grad_logits_kernel import grad_logits_by_kernel

generator = torch.Generator().manual_seed(0)
for columns in (37, 300, 4500):
    rows = 6
    # From rows whose target matters to rows that one candidate rules.
    spread = torch.linspace(0.3, 9, rows)[:, None]
    products = torch.randn(rows, columns, generator=generator) * spread
    target = torch.randint(columns, (rows,), generator=generator)
    mask = torch.rand(rows, columns, generator=generator) < 0.2
    for excluded in (None, mask):
        block = Block(
            products,
            torch.tensor(1.7),
            torch.randn(columns, generator=generator),
            torch.randint(columns // 3, (columns,), generator=generator),
            target,
            torch.rand(rows, generator=generator),
            excluded,
        )
        exact = Block(*(
            x.double() if x is not None and x.is_floating_point() else x for x in block
        ))
        expected = grad_logits_by_torch(exact, torch.float64)
        actual = grad_logits_by_kernel(block, torch.float32)
        error = max(float((a - b).abs().max()) for a, b in zip(actual, expected))
        print("ERROR", error)
"""


def test_the_kernel_is_the_plain_softmax_in_the_interpreter() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KERNEL],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    errors = [float(line.split()[1]) for line in done.stdout.splitlines()]
    print("largest error of the kernel:", max(errors))
    assert len(errors) == 6 and max(errors) < 2e-5


def test_no_shape_follows_from_the_data() -> None:
    """Fails with `nonzero`, masks as indices, `item`, `bool` in a block."""
    case = Case(64, 0.05)
    with FakeTensorMode() as fake:
        for name, value in vars(case).items():
            setattr(case, name, fake.from_tensor(value))
        loss, rows, vectors = case.blocks()
        assert loss.shape == () and rows.shape == case.rows.shape
        assert vectors.shape == case.vectors.shape
        with pytest.raises(DataDependentOutputException):
            float(loss)


def old_line(logits: Tensor, mask: Tensor) -> None:
    logits[mask] = -torch.inf
    logits[mask.nonzero(as_tuple=True)] = 0


@pytest.mark.parametrize("fault", [old_line])
def test_a_mask_as_an_index_would_be_seen(fault: Callable[..., None]) -> None:
    with FakeTensorMode(), pytest.raises(Exception, match=r"nonzero|data"):
        fault(torch.zeros(3, 4), torch.zeros(3, 4) > 0)
