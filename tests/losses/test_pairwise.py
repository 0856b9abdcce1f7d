"""The losses of pairs: the clicked ad is pulled up, other ads are pushed down."""

import pytest
import torch

from torchrec_adrec.losses.anchors import anchors_of
from torchrec_adrec.losses.history import History
from torchrec_adrec.losses.mean import global_means
from torchrec_adrec.losses.negatives import Negatives
from torchrec_adrec.losses.pairwise import pairwise_loss

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.mark.parametrize("name", ["bpr", "triplet"])
def test_pairs_pull_the_clicked_ad_up_and_others_down(name: str) -> None:
    torch.manual_seed(0)
    user = torch.ones(2, 1)
    ad = torch.zeros(6, 1, requires_grad=True)
    ids = torch.tensor([5, 6, 5, 7, 8, 9])  # ad 2 is ad 0 again
    anchors = torch.tensor([1.0, 0.0])
    share = pairwise_loss(name, user, ad, ids, anchors_of(anchors), 1.0)
    loss = global_means([share])[0]
    expected = {"bpr": torch.tensor(2.0).log().item(), "triplet": 1.0}
    assert loss.item() == pytest.approx(expected[name])
    loss.backward()
    assert ad.grad is not None
    assert ad.grad[0] < 0 and ad.grad[2] == 0 and (ad.grad[[1, 3, 4, 5]] >= 0).all()
    assert ad.grad.sum().abs() < 1e-5


@pytest.mark.parametrize(
    ("negatives", "pushed_down"),
    [
        (Negatives(), {1, 4, 5, 6}),
        (Negatives(in_batch=False), {4, 5, 6}),
        (Negatives(hardest=2), {5, 6}),
        (Negatives(hardest=20), {1, 4, 5, 6}),
        (Negatives(in_batch=False, hardest=1), {6}),
    ],
)
def test_pairs_are_made_with_the_chosen_negatives_and_no_known_positive(
    negatives: Negatives, pushed_down: set[int]
) -> None:
    """Ad 2 is ad 0 again and ad 3 is in the history: both score highest of all."""
    torch.manual_seed(0)
    user = torch.ones(2, 1)
    ad = torch.tensor([0.0, 0.1, 9, 9, 0.2, 0.3, 0.4])[:, None].requires_grad_()
    ids = torch.tensor([5, 6, 5, 7, 8, 9, 10])
    history = History(
        torch.tensor([70]),
        torch.tensor([1, 0]),
        10 * torch.tensor([5, 6, 5, 7, 8, 9, 1]),
        1,
    )
    anchors = anchors_of(torch.tensor([1.0, 0.0]))
    share = pairwise_loss("bpr", user, ad, ids, anchors, 1.0, history, negatives)
    global_means([share])[0].backward()
    assert ad.grad is not None
    assert set((ad.grad[:, 0] > 0).nonzero()[:, 0].tolist()) == pushed_down
    assert ad.grad[0] < 0


def test_an_anchor_that_knows_all_ads_has_no_pair() -> None:
    user, ad = torch.ones(1, 1), torch.ones(2, 1, requires_grad=True)
    history = History(torch.tensor([7]), torch.tensor([1]), torch.tensor([6, 7]), 1)
    for hardest in (None, 1):
        share = pairwise_loss(
            *("bpr", user, ad, torch.arange(2), anchors_of(torch.ones(1)), 1.0),
            history,
            Negatives(hardest=hardest),
        )
        assert share.total == 0
