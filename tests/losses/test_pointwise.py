"""The losses of clicks and of values, and which rows they leave out."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torchrec_adrec.config.train import RankingConfig
from torchrec_adrec.losses.mean import Share, global_means
from torchrec_adrec.losses.pointwise import click_loss, value_loss
from torchrec_adrec.schema import Label
from torchrec_adrec.tasks.label_heads import prediction
from torchrec_adrec.tasks.objectives import RankingLoss

pytestmark = pytest.mark.usefixtures("one_rank")


def mean(share: Share) -> Tensor:
    """The mean over all rows, of this one rank."""
    return global_means([share])[0]


def test_a_label_that_was_not_observed_does_not_count() -> None:
    logits = torch.tensor([1.0, -2.0, 3.0, 5.0])
    labels = torch.tensor([1.0, 0.0, torch.nan, 1.0])
    weights = torch.tensor([1.0, 1.0, 1.0, 0.0])
    expected = F.binary_cross_entropy_with_logits(logits[:2], labels[:2])
    torch.testing.assert_close(mean(click_loss(logits, labels, weights)), expected)
    logits.requires_grad_()
    mean(click_loss(logits, labels, weights)).backward()
    assert logits.grad is not None and logits.grad[2:].tolist() == [0, 0]


def test_a_row_of_weight_three_counts_as_three_rows() -> None:
    """Also behind the point: a half is half a row of the mean."""
    logits, labels = torch.tensor([1.0, -2.0]), torch.tensor([1.0, 1.0])
    for weights, times in (((1.0, 3.0), (1, 3)), ((1.0, 0.5), (2, 1))):
        repeats = torch.tensor(times)
        rows = logits.repeat_interleave(repeats), labels.repeat_interleave(repeats)
        expected = mean(click_loss(*rows, torch.ones(len(rows[0]))))
        actual = mean(click_loss(logits, labels, torch.tensor(weights)))
        torch.testing.assert_close(actual, expected)


def test_nothing_observed_is_zero() -> None:
    nan = torch.full((3,), torch.nan)
    assert mean(click_loss(torch.zeros(3), nan, torch.ones(3))).item() == 0


def test_the_best_predicted_value_is_the_mean_of_the_observed_ones() -> None:
    values = torch.tensor([0.0, 1.0, 50.0, torch.nan, 9.0])
    weights = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])
    logit = torch.tensor(17.0).log().requires_grad_()
    mean(value_loss(logit.expand(5), values, weights)).backward()
    assert logit.grad is not None and abs(logit.grad.item()) < 1e-4
    every = torch.zeros(5, requires_grad=True)
    mean(value_loss(every, values, weights)).backward()
    assert every.grad is not None and every.grad[3:].tolist() == [0, 0]
    # exp(0) - y, over the three rows that count
    assert every.grad[:3].tolist() == pytest.approx([1 / 3, 0, -49 / 3])


def test_a_row_that_does_not_count_has_no_gradient_whatever_its_logit() -> None:
    """Fails when the loss is masked and not the logit: 0 * exp(90) is NaN backward."""
    for loss, extreme in ((value_loss, 90.0), (click_loss, torch.inf)):
        logits = torch.tensor([0.1, extreme, extreme], requires_grad=True)
        labels = torch.tensor([1.0, torch.nan, 1.0])
        mean(loss(logits, labels, torch.tensor([1.0, 1.0, 0.0]))).backward()
        assert logits.grad is not None and logits.grad.isfinite().all()
        assert logits.grad[0] != 0 and logits.grad[1:].tolist() == [0, 0]


def test_a_value_is_learned_and_predicted_as_a_multiple_of_its_mean() -> None:
    """Fails when training and prediction do not use the same unit."""
    click, value = Label(name="click"), Label(name="v", kind="value", mean=20.0)
    loss = RankingLoss((click, value), RankingConfig())
    labels = torch.tensor([[1.0, 30.0], [0.0, torch.nan]])
    logits = torch.zeros(2, 2)
    logits[:, 1] = torch.tensor(30.0 / 20.0).log()
    logits.requires_grad_()
    loss(logits, logits, labels, torch.ones(2)).backward()
    assert logits.grad is not None and logits.grad[:, 1].abs().max() < 1e-5
    assert prediction(value, logits[:1, 1]).item() == pytest.approx(30.0)
    assert prediction(click, torch.zeros(1)).item() == 0.5
