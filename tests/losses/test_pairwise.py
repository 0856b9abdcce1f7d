"""The losses of pairs: the clicked ad is pulled up, other ads are pushed down."""

import pytest
import torch

from torchrec_adrec.losses.anchors import anchors_of
from torchrec_adrec.losses.mean import global_means
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
