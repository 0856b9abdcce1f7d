"""The softmax over the batch's ads: masks, histories, logQ, temperature."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torchrec_adrec.losses import softmax
from torchrec_adrec.losses.anchors import Anchors, anchors_of
from torchrec_adrec.losses.history import History
from torchrec_adrec.losses.mean import Share, global_means
from torchrec_adrec.losses.softmax import in_batch_softmax

pytestmark = pytest.mark.usefixtures("one_rank")


def mean(share: Share) -> Tensor:
    """The mean over all rows, of this one rank."""
    return global_means([share])[0]


@pytest.fixture(params=["small blocks", "large blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both softmaxes, the CPU's and that of other devices."""
    large = request.param == "large blocks"
    monkeypatch.setattr(softmax, "in_large_blocks", lambda device: large)


@pytest.mark.usefixtures("blocks")
def test_softmax_masks_other_rows_of_the_same_ad_and_subtracts_log_q() -> None:
    torch.manual_seed(0)
    user, ad = torch.randn(4, 3), torch.randn(4, 3)
    ad[2] = ad[0]
    ids = torch.tensor([7, 8, 7, 9])
    log_q = torch.tensor([0.5, 0.2, 0.5, 0.3]).log()
    anchors = torch.tensor([1.0, 0.0, 0.0, 1.0])
    scores, logits = (
        user @ ad.T / 0.5,
        user @ ad.T / 0.5 - log_q - torch.tensor(3).log(),
    )
    # Row 0 competes with columns 1 and 3 only: column 2 is its own ad again.
    first = torch.stack([scores[0, 0], logits[0, 1], logits[0, 3]])
    last = torch.stack([scores[3, 3], *logits[3, :3]])
    first, last = (-row.log_softmax(0)[0] for row in (first, last))
    loss = mean(in_batch_softmax(user, ad, ids, log_q, anchors_of(anchors), 0.5))
    torch.testing.assert_close(loss, (first + last) / 2)


@pytest.mark.usefixtures("blocks")
def test_an_ad_without_log_q_cannot_be_trained_on_by_mistake() -> None:
    vectors, ids = torch.randn(2, 3), torch.tensor([1, 2])
    log_q = torch.tensor([0.0, torch.nan])
    every = anchors_of(torch.ones(2))
    loss = mean(in_batch_softmax(vectors, vectors, ids, log_q, every, 1.0))
    assert loss.isnan()


@pytest.mark.usefixtures("blocks")
def test_no_anchor_on_a_rank_is_no_loss_and_a_whole_backward() -> None:
    user, ad = (torch.randn(3, 2, requires_grad=True) for _ in range(2))
    nobody = Anchors(torch.zeros(4, dtype=torch.int64), torch.zeros(4))
    loss = mean(in_batch_softmax(user, ad, torch.arange(3), None, nobody, 1.0))
    loss.backward()
    assert loss.item() == 0
    assert user.grad is not None and ad.grad is not None
    assert not user.grad.any() and not ad.grad.any()


@pytest.mark.usefixtures("blocks")
def test_ads_of_the_history_are_no_negatives() -> None:
    """Unknown items (id 1) are not one item and stay negatives."""
    torch.manual_seed(0)
    user, ad = torch.randn(3, 2), torch.randn(5, 2)  # two ads belong to no row
    items = torch.tensor([7, 1, 8, 9, 7])
    history = History(
        values=torch.tensor([9, 8, 1, 8]),
        lengths=torch.tensor([2, 0, 2]),
        items=items,
        longest=3,
    )
    ids = torch.arange(5)
    anchors = torch.tensor([1.0, 0.0, 1.0])
    logits = user @ ad.T
    # Row 0 clicked items 9 and 8 before: ads 3 and 2. Row 2: item 8, its own ad.
    first = -(logits[0, 0] - logits[0, [0, 1, 4]].logsumexp(0))
    last = -(logits[2, 2] - logits[2].logsumexp(0))
    loss = mean(
        in_batch_softmax(user, ad, ids, None, anchors_of(anchors), 1.0, history)
    )
    torch.testing.assert_close(loss, (first + last) / 2)


@pytest.mark.usefixtures("blocks")
def test_a_learned_temperature_has_the_gradient_of_its_definition() -> None:
    torch.manual_seed(0)
    user, ad = torch.randn(4, 3), torch.randn(4, 3)
    gradients = []
    for softmax_of in ("ours", "plain"):
        temperature = torch.tensor(0.5, requires_grad=True)
        if softmax_of == "ours":
            every = anchors_of(torch.ones(4))
            loss = mean(
                in_batch_softmax(user, ad, torch.arange(4), None, every, temperature)
            )
        else:
            loss = F.cross_entropy(user @ ad.T / temperature, torch.arange(4))
        loss.backward()
        gradients.append(temperature.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


ADS, USERS, BATCH = 200, 40, 256


def mean_gradients(
    log_q_factor: float | None, uniform: int = 0
) -> tuple[Tensor, Tensor]:
    """Gradients of users' and ads' vectors: averaged over sampled batches, and exact.

    A batch is drawn as a log is: 256 impressions, ads by their popularity, each clicked
    by a random user; `uniform` more ads as negatives.
    """
    generator = torch.Generator().manual_seed(0)
    shown = 1 / torch.arange(1, ADS + 1.0)
    shown /= shown.sum()
    user = torch.randn(USERS, 6, generator=generator).requires_grad_()
    ad = (torch.randn(ADS, 6, generator=generator) / 2).requires_grad_()
    mixed = (BATCH * shown + uniform / ADS) / (BATCH + uniform)
    total, batches = torch.zeros(USERS + ADS, 6), 600
    for _ in range(batches):
        drawn = torch.multinomial(shown, BATCH, True, generator=generator)
        negatives = torch.randint(ADS, (uniform,), generator=generator)
        users = torch.randint(USERS, (BATCH,), generator=generator)
        ads = torch.cat([drawn, negatives])
        log_q = mixed.log()[ads] * factor if (factor := log_q_factor) else None
        every = anchors_of(torch.ones(BATCH))
        loss = mean(in_batch_softmax(user[users], ad[ads], ads, log_q, every, 1.0))
        total += torch.cat(torch.autograd.grad(loss, (user, ad)))
    chance = (shown / USERS).repeat(USERS)
    pairs = torch.log_softmax(user @ ad.T, 1).flatten()
    full = torch.autograd.grad(-(chance * pairs).sum(), (user, ad))
    return total / batches, torch.cat(full)


@pytest.mark.parametrize("uniform", [0, 64])
def test_log_q_makes_the_gradient_that_of_the_full_softmax(uniform: int) -> None:
    """Batches draw ads by impressions; with the sign of log_q turned this fails."""

    def cosine(factor: float | None) -> float:
        sampled, full = mean_gradients(factor, uniform)
        return F.cosine_similarity(sampled.flatten(), full.flatten(), dim=0).item()

    corrected, without, turned = cosine(1), cosine(None), cosine(-1)
    print(f"cosine: log_q {corrected:.4f}, without {without:.4f}, turned {turned:.4f}")
    assert corrected > 0.98
    assert without < corrected - 0.1 and turned < without
