"""The softmax over sampled ads: masks, histories, logQ, choice of negatives."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torchrec_adrec.losses import softmax
from torchrec_adrec.losses.anchors import Anchors, anchors_of
from torchrec_adrec.losses.history import History
from torchrec_adrec.losses.mean import Share, global_means
from torchrec_adrec.losses.negatives import Negatives
from torchrec_adrec.losses.softmax import sampled_softmax

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
    loss = mean(sampled_softmax(user, ad, ids, log_q, anchors_of(anchors), 0.5))
    torch.testing.assert_close(loss, (first + last) / 2)


@pytest.mark.usefixtures("blocks")
def test_an_ad_without_log_q_cannot_be_trained_on_by_mistake() -> None:
    vectors, ids = torch.randn(2, 3), torch.tensor([1, 2])
    log_q = torch.tensor([0.0, torch.nan])
    every = anchors_of(torch.ones(2))
    loss = mean(sampled_softmax(vectors, vectors, ids, log_q, every, 1.0))
    assert loss.isnan()


@pytest.mark.usefixtures("blocks")
def test_no_anchor_on_a_rank_is_no_loss_and_a_whole_backward() -> None:
    user, ad = (torch.randn(3, 2, requires_grad=True) for _ in range(2))
    nobody = Anchors(torch.zeros(4, dtype=torch.int64), torch.zeros(4))
    loss = mean(sampled_softmax(user, ad, torch.arange(3), None, nobody, 1.0))
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
    loss = mean(sampled_softmax(user, ad, ids, None, anchors_of(anchors), 1.0, history))
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
                sampled_softmax(user, ad, torch.arange(4), None, every, temperature)
            )
        else:
            loss = F.cross_entropy(user @ ad.T / temperature, torch.arange(4))
        loss.backward()
        gradients.append(temperature.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


STANDARD = Negatives(corrects_positive=True)


@pytest.mark.usefixtures("blocks")
def test_the_standard_correction_is_of_the_clicked_ad_too() -> None:
    torch.manual_seed(0)
    user, ad = torch.randn(4, 3), torch.randn(6, 3)
    log_q = torch.rand(6).log()
    logits = user @ ad.T / 0.5 - log_q  # log 5 more is in all of them
    loss = mean(
        sampled_softmax(
            *(user, ad, torch.arange(6), log_q, anchors_of(torch.ones(4)), 0.5),
            negatives=STANDARD,
        )
    )
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.arange(4)))


@pytest.mark.usefixtures("blocks")
def test_without_in_batch_negatives_only_the_drawn_ads_are_negatives() -> None:
    """Ads 3 to 5 are drawn: 4 is the clicked ad of row 0 again, 5 in its history."""
    torch.manual_seed(0)
    user, ad = torch.randn(3, 2), torch.randn(6, 2)
    ids = torch.tensor([10, 11, 12, 13, 10, 15])
    history = History(
        values=torch.tensor([7]),
        lengths=torch.tensor([1, 0, 0]),
        items=torch.tensor([2, 3, 4, 5, 2, 7]),
        longest=1,
    )
    log_q = torch.full((6,), 0.1).log()
    scores = user @ ad.T
    drawn = scores[:, 3:] - torch.tensor(3 * 0.1).log()
    first = torch.stack([scores[0, 0], drawn[0, 0]])
    last = torch.stack([scores[2, 2], *drawn[2]])
    first, last = (-row.log_softmax(0)[0] for row in (first, last))
    anchors = anchors_of(torch.tensor([1.0, 0.0, 1.0]))
    loss = mean(
        sampled_softmax(
            *(user, ad, ids, log_q, anchors, 1.0, history),
            Negatives(in_batch=False),
        )
    )
    torch.testing.assert_close(loss, (first + last) / 2)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("count", [1, 3, 99])
def test_the_hardest_are_the_largest_terms_that_are_negatives_at_all(
    count: int,
) -> None:
    torch.manual_seed(0)
    user, ad, log_q = torch.randn(2, 3), torch.randn(8, 3), torch.rand(8).log()
    # The hardest of all for row 0 would be ads 6, another row of its own ad, and 7, of
    # its history.
    ad[6] = ad[7] = 9 * user[0]
    ids = torch.tensor([0, 1, 2, 3, 4, 5, 0, 7])
    history = History(torch.tensor([70]), torch.tensor([1, 0]), 10 * torch.arange(8), 1)
    scores = user[0] @ ad.T
    negatives = (scores - log_q - torch.tensor(7).log())[1:6].sort().values[-count:]
    expected = -torch.stack([scores[0], *negatives]).log_softmax(0)[0]
    anchors = anchors_of(torch.tensor([1.0, 0.0]))
    loss = mean(
        sampled_softmax(
            *(user, ad, ids, log_q, anchors, 1.0, history), Negatives(hardest=count)
        )
    )
    torch.testing.assert_close(loss, expected)


@pytest.mark.usefixtures("blocks")
def test_the_gradient_is_that_of_khrylchenko_et_al() -> None:
    """Their loss weighs a sum without the clicked ad by 1 - p, a constant to it."""
    torch.manual_seed(0)
    user, ad = (torch.randn(5, 3).requires_grad_() for _ in range(2))
    log_q = torch.rand(5).log()
    logits = user @ ad.T
    others = logits - log_q - torch.tensor(4).log()
    others = others.masked_fill(torch.eye(5).bool(), -torch.inf).logsumexp(1)
    positive = logits.diagonal()
    p = (positive - torch.logaddexp(positive, others)).exp()
    theirs = -((1 - p).detach() * (positive - others)).mean()
    every = anchors_of(torch.ones(5))
    ours = mean(sampled_softmax(user, ad, torch.arange(5), log_q, every, 1.0))
    for one, other in zip(
        *(torch.autograd.grad(loss, (user, ad)) for loss in (ours, theirs)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


ADS, USERS, BATCH = 200, 40, 256


ALL = Negatives()
UNIFORM = Negatives(in_batch=False)


def mean_gradients(
    log_q_factor: float | None, uniform: int = 0, negatives: Negatives = ALL
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
    rows = BATCH if negatives.in_batch else 0
    mixed = (rows * shown + uniform / ADS) / (rows + uniform)
    total, batches = torch.zeros(USERS + ADS, 6), 400
    for _ in range(batches):
        drawn = torch.multinomial(shown, BATCH, True, generator=generator)
        extra = torch.randint(ADS, (uniform,), generator=generator)
        users = torch.randint(USERS, (BATCH,), generator=generator)
        ads = torch.cat([drawn, extra])
        log_q = mixed.log()[ads] * factor if (factor := log_q_factor) else None
        every = anchors_of(torch.ones(BATCH))
        loss = mean(
            sampled_softmax(
                *(user[users], ad[ads], ads, log_q, every, 1.0), negatives=negatives
            )
        )
        total += torch.cat(torch.autograd.grad(loss, (user, ad)))
    chance = (shown / USERS).repeat(USERS)
    pairs = torch.log_softmax(user @ ad.T, 1).flatten()
    full = torch.autograd.grad(-(chance * pairs).sum(), (user, ad))
    return total / batches, torch.cat(full)


def error(factor: float | None, uniform: int = 0, negatives: Negatives = ALL) -> float:
    """Of the averaged gradient, relative to the length of the exact one."""
    sampled, full = mean_gradients(factor, uniform, negatives)
    return float((sampled - full).norm() / full.norm())


@pytest.mark.parametrize("uniform", [0, 64])
def test_log_q_makes_the_gradient_that_of_the_full_softmax(uniform: int) -> None:
    """Batches draw ads by impressions; with the sign of log_q turned this fails."""
    corrected, without, turned = (error(f, uniform) for f in (1, None, -1))
    print(
        f"error of the gradient, {uniform} uniform: log_q {corrected:.3f},"
        f" none {without:.3f}, turned {turned:.3f}"
    )
    assert corrected < 0.2 and corrected < without - 0.4 and without < turned


def gradient_by_the_scores(log_q: Tensor | None, negatives: Negatives) -> Tensor:
    """The mean over 500 draws of 64 ads; ads are unit vectors, so that a user's vector
    is his scores.
    """
    generator = torch.Generator().manual_seed(0)
    scores, total = SCORES[None].clone().requires_grad_(), torch.zeros(len(SHARES))
    one, catalog = anchors_of(torch.ones(1)), torch.eye(len(SHARES))
    for _ in range(500):
        drawn = torch.multinomial(SHARES, 64, True, generator=generator)
        ads = torch.cat([torch.tensor([CLICKED]), drawn])
        loss = mean(
            sampled_softmax(
                *(scores, catalog[ads], ads, None if log_q is None else log_q[ads]),
                *(one, 1.0),
                negatives=negatives._replace(in_batch=False),
            )
        )
        total += torch.autograd.grad(loss, scores)[0][0] / 500
    return total


SHARES = torch.tensor([0.4, 0.2, 0.1, 0.1, 0.1, 0.05, 0.03, 0.02])
SCORES = torch.tensor([2.0, 0, 1, -1, 0, 1, 0, 2])
CLICKED = 0


def test_the_correction_without_the_positive_has_the_least_bias() -> None:
    """A popular ad that was clicked is divided by the 26 times it is drawn, and the
    standard correction believes the model to be far more wrong than it is.
    """
    exact = SCORES.softmax(0) - torch.eye(len(SHARES))[CLICKED]
    log_q = SHARES.log()
    refined, standard, none = (
        float((gradient_by_the_scores(q, negatives) - exact).norm() / exact.norm())
        for q, negatives in ((log_q, ALL), (log_q, STANDARD), (None, ALL))
    )
    print(f"bias: without_positive {refined:.3f}, standard {standard:.3f}, {none:.3f}")
    assert refined < 0.1 and standard > 3 * refined and none > 3 * refined


def test_uniform_negatives_alone_have_the_gradient_of_the_full_softmax() -> None:
    assert error(1, 256, UNIFORM) < 0.2
