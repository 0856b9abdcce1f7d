"""Losses against their definitions, on one rank and on two."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from rounding import ORDERS, Results, Rounding
from torch import Tensor

from torchrec_adrec.distributed.process import Process, process_group
from torchrec_adrec.losses import softmax
from torchrec_adrec.losses.anchors import Anchors, anchors_of
from torchrec_adrec.losses.gather import gather
from torchrec_adrec.losses.history import History
from torchrec_adrec.losses.mean import Share, global_means
from torchrec_adrec.losses.pairwise import pairwise_loss
from torchrec_adrec.losses.pointwise import click_loss, value_loss
from torchrec_adrec.losses.softmax import in_batch_softmax
from torchrec_adrec.schema import Label
from torchrec_adrec.tasks.label_heads import prediction
from torchrec_adrec.tasks.ranking import RankingLoss


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    with process_group("cpu"):
        torch.set_num_threads(1)
        yield


def mean(share: Share) -> Tensor:
    """The mean over all rows, of this one rank."""
    return global_means([share])[0]


@pytest.fixture(params=["small blocks", "large blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of the softmax, the CPU's and that of other devices."""
    large = request.param == "large blocks"
    monkeypatch.setattr(softmax, "in_large_blocks", lambda device: large)


def test_a_label_that_was_not_observed_does_not_count() -> None:
    logits = torch.tensor([1.0, -2.0, 3.0, 5.0])
    labels = torch.tensor([1.0, 0.0, torch.nan, 1.0])
    weights = torch.tensor([1.0, 1.0, 1.0, 0.0])
    expected = F.binary_cross_entropy_with_logits(logits[:2], labels[:2])
    torch.testing.assert_close(mean(click_loss(logits, labels, weights)), expected)
    logits.requires_grad_()
    mean(click_loss(logits, labels, weights)).backward()
    assert logits.grad is not None and logits.grad[2:].tolist() == [0, 0]


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
    for loss, unseen in ((value_loss, 90.0), (click_loss, torch.inf)):
        logits = torch.tensor([0.1, unseen, unseen], requires_grad=True)
        labels = torch.tensor([1.0, torch.nan, 1.0])
        mean(loss(logits, labels, torch.tensor([1.0, 1.0, 0.0]))).backward()
        assert logits.grad is not None and logits.grad.isfinite().all()
        assert logits.grad[0] != 0 and logits.grad[1:].tolist() == [0, 0]


def test_a_value_is_learnt_and_told_as_a_multiple_of_its_mean() -> None:
    """Fails when training and prediction do not speak of the same unit."""
    click, value = Label(name="click"), Label(name="v", kind="value", mean=20.0)
    loss = RankingLoss((click, value))
    labels = torch.tensor([[1.0, 30.0], [0.0, torch.nan]])
    logits = torch.zeros(2, 2)
    logits[:, 1] = torch.tensor(30.0 / 20.0).log()
    logits.requires_grad_()
    loss(logits, labels, torch.ones(2)).backward()
    assert logits.grad is not None and logits.grad[:, 1].abs().max() < 1e-5
    assert prediction(value, logits[:1, 1]).item() == pytest.approx(30.0)
    assert prediction(click, torch.zeros(1)).item() == 0.5


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
    found = mean(in_batch_softmax(user, ad, ids, log_q, anchors_of(anchors), 0.5))
    torch.testing.assert_close(found, (first + last) / 2)


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
    """Unknown items (id 1) equal each other by no meaning and stay negatives."""
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
    found = mean(
        in_batch_softmax(user, ad, ids, None, anchors_of(anchors), 1.0, history)
    )
    torch.testing.assert_close(found, (first + last) / 2)


@pytest.mark.usefixtures("blocks")
def test_a_learned_temperature_has_the_gradient_of_its_definition() -> None:
    torch.manual_seed(0)
    user, ad = torch.randn(4, 3), torch.randn(4, 3)
    found = []
    for way in ("ours", "plain"):
        temperature = torch.tensor(0.5, requires_grad=True)
        if way == "ours":
            every = anchors_of(torch.ones(4))
            loss = mean(
                in_batch_softmax(user, ad, torch.arange(4), None, every, temperature)
            )
        else:
            loss = F.cross_entropy(user @ ad.T / temperature, torch.arange(4))
        loss.backward()
        found.append(temperature.grad)
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("way", ["bpr", "triplet"])
def test_pairs_pull_the_clicked_ad_up_and_others_down(way: str) -> None:
    torch.manual_seed(0)
    user = torch.ones(2, 1)
    ad = torch.zeros(6, 1, requires_grad=True)
    ids = torch.tensor([5, 6, 5, 7, 8, 9])  # ad 2 is ad 0 again
    anchors = torch.tensor([1.0, 0.0])
    loss = mean(pairwise_loss(way, user, ad, ids, anchors_of(anchors), 1.0))
    expected = {"bpr": torch.tensor(2.0).log().item(), "triplet": 1.0}
    assert loss.item() == pytest.approx(expected[way])
    loss.backward()
    assert ad.grad is not None
    assert ad.grad[0] < 0 and ad.grad[2] == 0 and (ad.grad[[1, 3, 4, 5]] >= 0).all()
    assert ad.grad.sum().abs() < 1e-5


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
        more = torch.randint(ADS, (uniform,), generator=generator)
        who = torch.randint(USERS, (BATCH,), generator=generator)
        ads = torch.cat([drawn, more])
        log_q = mixed.log()[ads] * factor if (factor := log_q_factor) else None
        every = anchors_of(torch.ones(BATCH))
        loss = mean(in_batch_softmax(user[who], ad[ads], ads, log_q, every, 1.0))
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

    right, without, turned = cosine(1), cosine(None), cosine(-1)
    print(f"cosine: log_q {right:.4f}, without {without:.4f}, turned {turned:.4f}")
    assert right > 0.98
    assert without < right - 0.1 and turned < without


ROWS, SCALE = 12, 1.001
SCRIPT = """
import torch
from test_losses import FAULTS_OF_RANKS, joint_loss
from torchrec_adrec.distributed.process import process_group

with process_group("cpu") as process:
    found = {{"right": joint_loss(process)}}
    for name, planted in FAULTS_OF_RANKS.items():
        with planted():
            found[name] = joint_loss(process)
    if process.is_first:
        torch.save(found, {path!r})
"""
Change = Callable[[Tensor], Tensor]


def joint_loss(
    process: Process, order: int | None = None, change: Change | None = None
) -> Results:
    """Click loss and softmax over all ranks' rows; `change` harms the gradients."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(ROWS, 4, generator=generator)
    log_q = torch.rand(ROWS, generator=generator).log()
    labels = torch.tensor([1.0] * 7 + [0, 0, 1, 0, torch.nan])  # no rank's are alike
    weights = [torch.randn(3, 4, generator=generator).requires_grad_() for _ in "ua"]
    places = torch.arange(ROWS)
    if order is not None:
        places = torch.randperm(ROWS, generator=generator.manual_seed(order))
    at = places.chunk(process.world_size)[process.rank]
    user, ad = (features[at] @ weight.T for weight in weights)
    if change is not None:
        user.register_hook(change)
        ad.register_hook(change)
    clicks = click_loss((user * ad).sum(1), labels[at], torch.ones(len(at)))
    anchors = anchors_of((labels[at] == 1).float())
    contrast = in_batch_softmax(user, ad, at % 5, log_q[at], anchors, 0.5)
    loss = global_means([clicks, contrast]).sum()
    loss.backward()
    found = [loss.detach().clone(), *(weight.grad for weight in weights)]
    for value in found:
        assert value is not None
        dist.all_reduce(value)
        value /= process.world_size
    gradients = dict(zip(("user", "ad"), found[1:], strict=True))
    return {"losses": {"joint": found[0]}, "gradients": gradients}  # type: ignore[dict-item]


def without_a_row(gradient: Tensor) -> Tensor:
    return gradient.index_fill(0, torch.tensor(3), 0)


def half_scaled(gradient: Tensor) -> Tensor:
    return torch.cat([gradient[: ROWS // 2], gradient[ROWS // 2 :] * SCALE])


def all_scaled(gradient: Tensor) -> Tensor:
    return gradient * SCALE


FAULTS = (without_a_row, half_scaled, all_scaled)
LOSSES = "torchrec_adrec.losses"
FAULTS_OF_RANKS = {
    "ads of other ranks without their gradient": lambda: patch(
        f"{LOSSES}.gather.all_gather_single_autograd", lambda ads, *_: gather(ads)
    ),
    "means over a rank's own rows": lambda: patch(
        f"{LOSSES}.mean.dist", SimpleNamespace(get_world_size=lambda: 1)
    ),
}


def test_ranks_have_the_loss_and_gradient_of_one(
    ranks_script: Callable[[int, str], subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    """Within the rounding that another order of the rows makes; no fault is."""
    alone = Process(0, 1, 1, torch.device("cpu"))
    reordered = [joint_loss(alone, order) for order in ORDERS]
    rounding = Rounding("losses over ranks", joint_loss(alone), *reordered)
    for change in FAULTS:
        rounding.sees(change.__name__, joint_loss(alone, change=change))
    for ranks in (2, 3):
        path = tmp_path / f"{ranks}.pt"
        done = ranks_script(ranks, SCRIPT.format(path=str(path)))
        assert done.returncode == 0, done.stderr
        found = torch.load(path)
        rounding.holds(f"{ranks} ranks", found.pop("right"))
        for name, wrong in found.items():
            rounding.sees(f"{name}, {ranks} ranks", wrong)
