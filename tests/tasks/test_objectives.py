"""What each label is trained on, and that its predictions are those of all rows."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torchrec_adrec.config.run import load_config
from torchrec_adrec.config.train import RankingConfig
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.models.rankers.final_logits import PRODUCTS, FinalLogits
from torchrec_adrec.schema import Label
from torchrec_adrec.tasks.label_heads import prediction
from torchrec_adrec.tasks.objectives import RankingLoss

pytestmark = pytest.mark.usefixtures("one_rank")
LABELS = (
    Label(name="click"),
    Label(name="engagement"),
    Label(name="value", kind="value", mean=2.0),
)
NAN = float("nan")
# One group of rows that nothing sets apart: 20 rows, 10 clicks, 4 of them engaged.
# Engagement and value were looked at in clicked rows alone.
ROWS = torch.tensor(
    [[1.0, 1.0, 6.0]] * 4 + [[1.0, 0.0, 1.0]] * 6 + [[0.0, NAN, NAN]] * 10
)
MEANS = (10 / 20, 4 / 20, (4 * 6 + 6) / 20)


def config_of(**settings: Any) -> RankingConfig:
    return RankingConfig.model_validate(settings)


def loss_of(config: RankingConfig, logits: Tensor, labels: Tensor) -> Tensor:
    loss = RankingLoss(LABELS, config)
    final = FinalLogits(LABELS, config)(logits)
    labels = loss.completed(labels)
    total: Tensor = loss(logits, final, labels, torch.ones(len(labels)))
    return total


def best(config: RankingConfig, labels: Tensor) -> list[float]:
    """The predictions of the head's logits that have the least loss on equal rows."""
    logits = torch.zeros(1, len(LABELS), requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=99, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(config, logits.expand(len(labels), -1), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    final = FinalLogits(LABELS, config)(logits.detach())
    return [prediction(label, final[:, t]).item() for t, label in enumerate(LABELS)]


@pytest.mark.parametrize(
    ("train_on", "rate"), itertools.product(("given", "all"), (1.0, 0.2))
)
def test_the_best_predictions_are_the_means_over_all_impressions(
    train_on: str, rate: float
) -> None:
    """Given another label or not, with or without the rows that are not read."""
    rule = {"given": "click", "train_on": train_on}
    config = config_of(
        conditional={"engagement": rule, "value": rule}, negative_rate=rate
    )
    clicks = ROWS[ROWS[:, 0] == 1]
    negatives = ROWS[ROWS[:, 0] == 0][: int(10 * rate)]
    predicted = best(config, torch.cat([clicks, negatives]))
    assert predicted == pytest.approx(MEANS, rel=1e-3)


def test_labels_of_all_rows_count_rows_that_are_not_read() -> None:
    """A label that depends on nothing, and is observed in rows without a click too."""
    rows = ROWS.clone()
    rows[10:, 1] = torch.tensor([1.0, 0.0] * 5)
    rows[10:, 2] = 3.0
    expected = (10 / 20, (4 + 5) / 20, (4 * 6 + 6 + 30) / 20)
    read = torch.cat([rows[:10], rows[10:14]])
    assert best(config_of(negative_rate=0.4), read) == pytest.approx(expected, rel=1e-3)


def test_a_chain_is_multiplied_out() -> None:
    config = config_of(
        conditional={"value": {"given": "engagement"}, "engagement": {"given": "click"}}
    )
    rows = ROWS.clone()
    rows[4:10, 2] = NAN  # known of engaged rows alone
    expected = (MEANS[0], MEANS[1], 4 * 6 / 20)
    assert best(config, rows) == pytest.approx(expected, rel=1e-3)
    completed = RankingLoss(LABELS, config).completed(rows)
    assert completed[:, 2].tolist() == [6.0] * 4 + [0.0] * 16
    unknown = torch.tensor([[NAN, NAN, NAN], [1.0, NAN, NAN]])
    assert RankingLoss(LABELS, config).completed(unknown)[:, 1:].isnan().all()


def test_the_loss_is_the_weighted_sum_and_what_was_not_observed_is_masked() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(len(ROWS), 3, generator=generator, requires_grad=True)
    clicked = ROWS[:10]
    bce = F.binary_cross_entropy_with_logits
    parts = [
        bce(logits[:, 0], ROWS[:, 0]),
        bce(logits[:10, 1], clicked[:, 1]),
        (logits[:10, 2].exp() - clicked[:, 2] / 2.0 * logits[:10, 2]).mean(),
    ]
    for weights, given in (
        ((1.0, 0.5, 0.3), {}),
        ((1.0, 2.0, 0.3), {"engagement": 2.0}),
        ((3.0, 0.5, 0.1), {"click": 3.0, "value": 0.1}),
    ):
        loss = loss_of(config_of(label_weights=given), logits, ROWS)
        expected = sum(w * part for w, part in zip(weights, parts, strict=True))
        torch.testing.assert_close(loss, expected)
    loss.backward()
    assert logits.grad is not None and (logits.grad[10:, 1:] == 0).all()


def test_esmm_is_the_loss_of_the_product_over_all_rows() -> None:
    """As the paper writes it, with probabilities; p(engaged | click) has no loss."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(len(ROWS), 3, generator=generator)
    config = config_of(
        conditional={"engagement": {"given": "click", "train_on": "all"}},
        label_weights={"engagement": 1.0, "value": 1e-9},
    )
    click, conversion = logits[:, 0].sigmoid(), logits[:, 1].sigmoid()
    bce = F.binary_cross_entropy
    expected = bce(click, ROWS[:, 0]) + bce(
        click * conversion, ROWS[:, 1].nan_to_num(0.0)
    )
    torch.testing.assert_close(loss_of(config, logits, ROWS), expected)


@pytest.mark.parametrize("kind", PRODUCTS)
def test_products_are_those_of_the_predictions(kind: Any) -> None:
    """Also where float32 has no probability between its own and 0, or 1."""
    grid = torch.tensor([-120.0, -20.0, -1.0, 0.0, 2.0, 20.0, 120.0])
    given, label = torch.cartesian_prod(grid, grid).unbind(1)
    product = PRODUCTS[kind](given, label).double()
    p = given.double().sigmoid()
    if kind == "binary":
        q = label.double().sigmoid()
        one_less = (-given.double()).sigmoid() + p * (-label.double()).sigmoid()
        expected = (p * q).log() - one_less.log()
    else:
        expected = p.log() + label.double()
    torch.testing.assert_close(product, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_weights": {"buys": 2}}, r"label_weights: label \['buys'\]"),
        ({"conditional": {"buys": {"given": "click"}}}, r"label \['buys'\], expected"),
        ({"conditional": {"engagement": {"given": "value"}}}, r"given \['value'\]"),
        ({"conditional": {"click": {"given": "engagement"}}}, r"label \['click'\]"),
    ],
)
def test_labels_that_the_data_do_not_have_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        RankingLoss(LABELS, config_of(**settings))


def test_a_label_that_is_given_itself_is_refused() -> None:
    circle = "{value: {given: engagement}, engagement: {given: value}}"
    with pytest.raises(ConfigError, match="cannot be given itself"):
        load_config(None, [f"ranking.conditional={circle}"])
