"""Losses against their definitions, on one rank and on two."""

import subprocess
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F

from torchrec_adrec.distributed.process import process_group
from torchrec_adrec.losses.pointwise import click_loss, value_loss
from torchrec_adrec.losses.softmax import in_batch_softmax
from torchrec_adrec.schema import Label
from torchrec_adrec.tasks import RankingLoss, prediction


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    with process_group("cpu"):
        torch.set_num_threads(1)
        yield


def test_a_label_that_was_not_observed_does_not_count() -> None:
    logits = torch.tensor([1.0, -2.0, 3.0, 5.0])
    labels = torch.tensor([1.0, 0.0, torch.nan, 1.0])
    weights = torch.tensor([1.0, 1.0, 1.0, 0.0])
    expected = F.binary_cross_entropy_with_logits(logits[:2], labels[:2])
    torch.testing.assert_close(click_loss(logits, labels, weights), expected)
    logits.requires_grad_()
    click_loss(logits, labels, weights).backward()
    assert logits.grad is not None and logits.grad[2:].tolist() == [0, 0]


def test_nothing_observed_is_zero() -> None:
    nan = torch.full((3,), torch.nan)
    assert click_loss(torch.zeros(3), nan, torch.ones(3)).item() == 0


def test_the_best_predicted_value_is_the_mean_of_the_observed_ones() -> None:
    values = torch.tensor([0.0, 1.0, 50.0, torch.nan, 9.0])
    weights = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])
    logit = torch.tensor(17.0).log().requires_grad_()
    value_loss(logit.expand(5), values, weights).backward()
    assert logit.grad is not None and abs(logit.grad.item()) < 1e-5
    every = torch.zeros(5, requires_grad=True)
    value_loss(every, values, weights).backward()
    assert every.grad is not None and every.grad[3:].tolist() == [0, 0]
    # exp(0) - y, over the three rows that count
    assert every.grad[:3].tolist() == pytest.approx([1 / 3, 0, -49 / 3])


def test_a_value_is_learnt_and_told_as_a_multiple_of_its_mean() -> None:
    """Fails when training and prediction do not speak of the same unit."""
    click, value = Label(name="click"), Label(name="v", kind="value", mean=20.0)
    loss = RankingLoss((click, value))
    labels = torch.tensor([[1.0, 30.0], [0.0, torch.nan]])
    logits = torch.zeros(2, 2)
    logits[:, 1] = torch.tensor(30.0 / 20.0).log()
    logits.requires_grad_()
    loss(logits, labels, torch.ones(2)).backward()
    assert logits.grad is not None and logits.grad[:, 1].abs().max() < 1e-6
    assert prediction(value, logits[:1, 1]).item() == pytest.approx(30.0)
    assert prediction(click, torch.zeros(1)).item() == 0.5


def test_softmax_masks_other_rows_of_the_same_ad_and_subtracts_log_q() -> None:
    torch.manual_seed(0)
    user, ad = torch.randn(4, 3), torch.randn(4, 3)
    ad[2] = ad[0]
    ids = torch.tensor([7, 8, 7, 9])
    log_q = torch.tensor([0.5, 0.2, 0.5, 0.3]).log()
    anchors = torch.tensor([1.0, 0.0, 0.0, 1.0])
    logits = user @ ad.T / 0.5 - log_q
    # Row 0 competes with columns 1 and 3 only: column 2 is its own ad again.
    first = -(logits[0, 0] - logits[0, [0, 1, 3]].logsumexp(0))
    last = -(logits[3, 3] - logits[3].logsumexp(0))
    found = in_batch_softmax(user, ad, ids, log_q, anchors, 0.5)
    torch.testing.assert_close(found, (first + last) / 2)


def test_an_ad_without_log_q_cannot_be_trained_on_by_mistake() -> None:
    vectors, ids = torch.randn(2, 3), torch.tensor([1, 2])
    log_q = torch.tensor([0.0, torch.nan])
    loss = in_batch_softmax(vectors, vectors, ids, log_q, torch.ones(2), 1.0)
    assert loss.isnan()


def mean_gradient(log_q_factor: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the ads' scores: averaged over sampled batches, and exact."""
    ads, batch, batches = 200, 64, 1000
    generator = torch.Generator().manual_seed(0)
    shown = 1 / torch.arange(1, ads + 1.0)
    shown /= shown.sum()
    scores = torch.randn(ads, generator=generator)
    positive = 150
    full = torch.softmax(scores, 0)
    full[positive] -= 1
    total = torch.zeros(ads)
    for _ in range(batches):
        drawn = torch.multinomial(shown, batch, True, generator=generator)
        drawn[0] = positive
        ad = scores[drawn][:, None].requires_grad_()
        user = torch.ones(batch, 1)
        log_q = shown.log()[drawn] * log_q_factor
        anchors = torch.zeros(batch)
        anchors[0] = 1
        loss = in_batch_softmax(user, ad, drawn, log_q, anchors, 1.0)
        (gradient,) = torch.autograd.grad(loss, ad)
        total.index_add_(0, drawn, gradient[:, 0])
    return total / batches, full


def test_log_q_makes_the_gradient_that_of_the_full_softmax() -> None:
    """Batches draw ads by impressions; with the sign of log_q turned this fails."""

    def cosine(factor: float) -> float:
        # The positive's own entry is near -1 everywhere and would hide the rest.
        sampled, full = mean_gradient(factor)
        others = torch.arange(len(full)) != 150
        return F.cosine_similarity(sampled[others], full[others], dim=0).item()

    right, without, turned = cosine(1), cosine(0), cosine(-1)
    assert right > 0.95
    assert without < right - 0.2 and turned < right - 0.2


SCRIPT = """
import torch
import torch.distributed as dist
from torchrec_adrec.distributed.process import process_group
from torchrec_adrec.losses.pointwise import click_loss
from torchrec_adrec.losses.softmax import in_batch_softmax

with process_group("cpu") as process:
    torch.manual_seed(0)
    B = 6
    features, ids = torch.randn(B, 4), torch.tensor([1, 2, 1, 3, 2, 4])
    log_q, labels = torch.rand(B).log(), torch.tensor([1.0, 0, 1, 1, 0, 1])
    layer, head = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)

    def loss(at):
        user, ad = layer(features[at]), head(features[at])
        return click_loss((user * ad).sum(1), labels[at], torch.ones(len(labels[at]))
            ) + in_batch_softmax(user, ad, ids[at], log_q[at], labels[at], 0.5)

    share = B // process.world_size
    own = loss(slice(process.rank * share, (process.rank + 1) * share))
    own.backward()
    value = own.detach().clone()
    dist.all_reduce(value)
    grads = [p.grad for p in (*layer.parameters(), *head.parameters())]
    for grad in grads:
        dist.all_reduce(grad)
    flat = torch.cat([g.flatten() for g in grads]) / process.world_size
    if process.is_first:
        mean = value.item() / process.world_size
        print("RESULT", [round(x, 5) for x in [mean, *flat.tolist()]])
"""


def test_two_ranks_have_the_loss_and_gradient_of_one(
    ranks_script: Callable[[int, str], subprocess.CompletedProcess[str]],
) -> None:
    """Fails with a gather that drops the gradient, and with rank-local means."""
    printed = []
    for ranks in (1, 2, 3):
        done = ranks_script(ranks, SCRIPT)
        assert done.returncode == 0, done.stderr
        line = next(x for x in done.stdout.splitlines() if "RESULT" in x)
        printed.append([float(x) for x in line[line.index("[") + 1 : -1].split(",")])
    assert printed[1] == pytest.approx(printed[0], abs=2e-5)
    assert printed[2] == pytest.approx(printed[0], abs=2e-5)
