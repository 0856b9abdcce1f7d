"""What the schema, the model side and evaluation must agree on for a kind of label."""

from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch

from torchrec_adrec.distributed.process import process_group
from torchrec_adrec.evaluation.metrics import LABEL_METRICS, label_metrics
from torchrec_adrec.losses.mean import global_means
from torchrec_adrec.models.rankers.final_logits import PRODUCTS
from torchrec_adrec.schema import Label, Schema
from torchrec_adrec.tasks.label_heads import LABEL_HEADS, prediction

# What may be observed of each kind, and what `prepare` would have fitted.
OBSERVED: dict[str, list[float]] = {
    "binary": [1.0, 0.0, 0.0, 1.0, 0.0],
    "value": [0.0, 12.0, 90.0, 3.0, 45.0],
}
FITTED: dict[str, dict[str, Any]] = {"value": {"max_value": 100.0, "mean": 20.0}}


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    with process_group("cpu"):
        yield


@pytest.fixture(params=LABEL_HEADS)
def label(request: pytest.FixtureRequest) -> Label:
    kind = request.param
    fitted = FITTED.get(kind, {})
    return Label.model_validate({"name": "label", "kind": kind, **fitted})


def test_everybody_knows_the_same_kinds() -> None:
    kinds = set(get_args(Label.model_fields["kind"].annotation))
    assert set(LABEL_HEADS) == set(LABEL_METRICS) == set(OBSERVED) == kinds
    assert set(PRODUCTS) == kinds


def loss_of(label: Label, logits: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
    weights = torch.ones(len(observed))
    share = LABEL_HEADS[label.kind].loss(label, logits, observed, weights)
    return global_means([share])[0]


def test_the_best_constant_predicts_the_mean_in_the_labels_unit(label: Label) -> None:
    """Fails when the loss and the prediction speak of different units."""
    observed = torch.tensor([*OBSERVED[label.kind], torch.nan])
    logit = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([logit], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(label, logit.expand(len(observed)), observed)
        loss.backward()
        return loss

    optimizer.step(closure)
    mean = observed[:-1].mean().item()
    assert prediction(label, logit.detach()).item() == pytest.approx(mean, rel=1e-3)


def test_a_row_that_was_not_observed_has_no_gradient(label: Label) -> None:
    observed = torch.tensor([OBSERVED[label.kind][0], torch.nan])
    logits = torch.tensor([0.3, 90.0], requires_grad=True)
    loss_of(label, logits, observed).backward()
    assert logits.grad is not None and logits.grad[1] == 0 != logits.grad[0]


def test_metrics_are_those_of_the_kind(label: Label) -> None:
    """A perfect prediction has no error, whatever figure says so."""
    schema = Schema.model_construct(dense=(), sparse=(), labels=(label,))
    observed = torch.tensor(OBSERVED[label.kind], dtype=torch.float64).numpy()
    metrics = label_metrics(schema, {"label": (observed, observed)})["label"]
    assert metrics == LABEL_METRICS[label.kind](observed, observed)
    assert metrics["calibration"] == 1 and metrics["rows"] == len(observed)
