"""Mined negatives in the softmax: of their own row alone, weighted by their chance."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from torchrec_adrec.losses import softmax
from torchrec_adrec.losses.anchors import Anchors
from torchrec_adrec.losses.mean import global_means
from torchrec_adrec.losses.mined import Mined, mined_log_odds
from torchrec_adrec.losses.negatives import Negatives
from torchrec_adrec.losses.softmax import sampled_softmax

ROWS, DRAWS, WIDTH, TEMPERATURE = 5, 3, 4, 0.5
# Row 0 is no click, has no list, and pads the anchors; the list of row 4 is empty.
LIST_SIZES = torch.tensor([0.0, 7, 20, 2, 0])
LOG_Q = (1 / LIST_SIZES).log()[:, None].expand(ROWS, DRAWS)
ANCHORS = Anchors(torch.tensor([1, 2, 4, 0, 0]), torch.tensor([1.0, 2, 1, 0, 0]))

pytestmark = pytest.mark.usefixtures("one_rank")


def plain(vectors: list[Tensor], shares: Tensor | None, standard: bool) -> Tensor:
    """The mean loss by one softmax a row, over a matrix of its own terms."""
    user, ad, mined = vectors
    total = torch.zeros(())
    for row, weight in ((1, 1.0), (2, 2.0), (4, 1.0)):
        logits = user[row] @ ad.T / TEMPERATURE
        hard = user[row] @ mined[row].T / TEMPERATURE
        if shares is not None:
            expected = (len(ad) - 1) * shares
            logits = torch.where(
                (torch.arange(len(ad)) == row) & torch.tensor(not standard),
                logits,
                logits - expected.log(),
            )
            hard = hard + (LIST_SIZES[row] / DRAWS).log()
        if not LIST_SIZES[row]:
            hard = hard[:0]
        terms = torch.cat([logits, hard])
        total = total - weight * terms.log_softmax(0)[row]
    return total / 4


@pytest.mark.parametrize("large", [False, True], ids=["small blocks", "large blocks"])
@pytest.mark.parametrize("correction", ["none", "standard", "without_positive"])
def test_a_row_meets_its_own_mined_ads_and_no_others(
    correction: str, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(softmax, "in_large_blocks", lambda device: large)
    torch.manual_seed(0)
    shapes = (ROWS, WIDTH), (ROWS + 2, WIDTH), (ROWS, DRAWS, WIDTH)
    vectors = [torch.randn(*shape, requires_grad=True) for shape in shapes]
    user, ad, hard = vectors
    shares = None if correction == "none" else torch.rand(ROWS + 2)
    is_standard = correction == "standard"
    share = sampled_softmax(
        user,
        ad,
        torch.arange(ROWS + 2),
        None if shares is None else shares.log(),
        ANCHORS,
        TEMPERATURE,
        negatives=Negatives(corrects_positive=is_standard),
        mined=Mined(hard, LOG_Q),
    )
    loss, expected = global_means([share])[0], plain(vectors, shares, is_standard)
    torch.testing.assert_close(loss, expected)
    for one, other in zip(
        *(torch.autograd.grad(x, vectors) for x in (loss, expected)), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("draws", [1, 2])
def test_what_is_drawn_weighs_as_much_as_the_whole_list(draws: int) -> None:
    """The mean over all that could be drawn is the sum over the list."""
    torch.manual_seed(0)
    row, ads = torch.randn(WIDTH), torch.randn(6, WIDTH)
    drawn = torch.tensor(list(product(range(6), repeat=draws)))
    mined = Mined(ads[drawn], torch.full(drawn.shape, -math.log(6)))
    rows, positives = row.expand(len(drawn), WIDTH), torch.full((len(drawn),), 0.3)
    odds = mined_log_odds(rows, positives, mined, is_corrected=True).exp()
    torch.testing.assert_close(odds.mean(), ((ads @ row) - 0.3).exp().sum())
