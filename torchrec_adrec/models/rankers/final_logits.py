"""From a head's logits to those of what is predicted, over all impressions.

Everyone who predicts gets the latter: evaluation, calibration, serving and
`recommend.rank_by` need not know how a label was trained.

Shape letters: B rows, T labels.
"""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchrec_adrec.config.objectives import parents_first
from torchrec_adrec.config.train import RankingConfig
from torchrec_adrec.schema import Label, LabelKind


def probability_product(given: Tensor, label: Tensor) -> Tensor:
    """Logit of sigmoid(given) * sigmoid(label), (B,), (B,) -> (B,).

    In logarithms, as the product of two small probabilities, or 1 less that of two
    large ones, is nothing in float32.
    """
    both = F.logsigmoid(given) + F.logsigmoid(label)
    # 1 - p q = (1 - p) + p (1 - q)
    neither = F.logsigmoid(given) + F.logsigmoid(-label)
    return both - torch.logaddexp(F.logsigmoid(-given), neither)


def mean_product(given: Tensor, label: Tensor) -> Tensor:
    """Logarithm of sigmoid(given) * exp(label), (B,), (B,) -> (B,)."""
    return F.logsigmoid(given) + label


PRODUCTS: Mapping[LabelKind, Callable[[Tensor, Tensor], Tensor]] = {
    "binary": probability_product,
    "value": mean_product,
}
"""Of a logit of the label that is given and one of the label's kind."""


class FinalLogits(nn.Module):
    """Corrects for dropped rows, then multiplies conditional predictions out.

    Attributes:
        correction: (T,), added to the head's logits: the logarithm of
            `ranking.negative_rate` for the click. It is saved with the weights, because
            they are wrong without it; absent where no row was dropped.
    """

    correction: Tensor | None

    def __init__(self, labels: tuple[Label, ...], config: RankingConfig) -> None:
        super().__init__()
        number = {label.name: t for t, label in enumerate(labels)}
        rules = config.conditional
        self.links = tuple(
            (number[name], number[rules[name].given]) for name in parents_first(rules)
        )
        self.products = [PRODUCTS[label.kind] for label in labels]
        correction = None
        if config.negative_rate < 1:
            # Of the rows that are kept, p / (1 - p) is larger by 1 / rate (King and
            # Zeng, 2001; He et al., ADKDD 2014).
            correction = torch.zeros(len(labels))
            correction[0] = math.log(config.negative_rate)
        self.register_buffer("correction", correction)

    def forward(self, logits: Tensor) -> Tensor:
        """(B, T) of the head -> (B, T)."""
        if self.correction is not None:
            logits = logits + self.correction
        if not self.links:
            return logits
        columns = list(logits.unbind(1))
        for label, given in self.links:
            columns[label] = self.products[label](columns[given], columns[label])
        return torch.stack(columns, dim=1)
