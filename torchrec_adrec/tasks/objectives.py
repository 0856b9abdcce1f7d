"""What each label of a ranker is trained on, and how much its loss counts.

Shape letters: B rows, T labels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec_adrec.config.objectives import parents_first
from torchrec_adrec.config.train import RankingConfig
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.losses.mean import global_means
from torchrec_adrec.schema import Label
from torchrec_adrec.tasks.label_heads import LABEL_HEADS

CLICK_WEIGHT = 1.0


def check_label_names(labels: Sequence[Label], config: RankingConfig) -> None:
    """Refuse settings of labels that the data do not have, or that cannot be given.

    Raises:
        ConfigError: names the setting, the label and those that there are.
    """
    names = {label.name for label in labels}
    binary = {label.name for label in labels if label.kind == "binary"}
    parents = {rule.given for rule in config.conditional.values()}
    for setting, used, allowed in (
        ("label_weights", set(config.label_weights), names),
        ("conditional", set(config.conditional), names - {labels[0].name}),
        ("conditional", parents, binary),
    ):
        if used - allowed:
            kind = "given" if used is parents else "label"
            raise ConfigError(
                f"ranking.{setting}: {kind} {sorted(used - allowed)}, expected one of"
                f" {sorted(allowed)}, the labels of the data that may stand there"
            )


class RankingLoss(nn.Module):
    """The weighted sum of the labels' losses, each over the rows that it is trained on.

    A label that was not observed has no loss. A conditional one has it where its
    `given` label is 1, on the head's logit; or, as ESMM has it, everywhere, on the
    logit of the product.

    Attributes:
        label_weights: (T,).
    """

    label_weights: Tensor

    def __init__(self, labels: tuple[Label, ...], config: RankingConfig) -> None:
        super().__init__()
        check_label_names(labels, config)
        number = {label.name: t for t, label in enumerate(labels)}
        rules = config.conditional
        self.labels, self.negative_rate = labels, config.negative_rate
        self.links = [
            (number[name], number[rules[name].given]) for name in parents_first(rules)
        ]
        self.on_all_rows = {
            number[name] for name, rule in rules.items() if rule.train_on == "all"
        }
        weights = [
            config.label_weights.get(label.name, LABEL_HEADS[label.kind].weight)
            for label in labels
        ]
        weights[0] = config.label_weights.get(labels[0].name, CLICK_WEIGHT)
        self.register_buffer("label_weights", torch.tensor(weights), persistent=False)

    def forward(
        self, logits: Tensor, final_logits: Tensor, labels: Tensor, weights: Tensor
    ) -> Tensor:
        """Compute the loss; 0 in evaluation.

        Args:
            logits: (B, T) of the head.
            final_logits: (B, T) of what is predicted.
            labels: (B, T), `completed`.
            weights: (B,).
        """
        if not self.training:
            return logits.new_zeros(())
        given, shares = dict(self.links), []
        for t, label in enumerate(self.labels):
            observed, scores = labels[:, t], logits[:, t]
            if t in self.on_all_rows:
                scores = final_logits[:, t]
            elif t in given:
                observed = observed.where(labels[:, given[t]] == 1, torch.nan)
            # The click's own loss is corrected in its logit and not by weights.
            rows = self._standing_for_all(labels, weights) if t else weights
            shares.append(LABEL_HEADS[label.kind].loss(label, scores, observed, rows))
        # Not `@`, which is bfloat16 under autocast.
        return (global_means(shares) * self.label_weights).sum()

    def completed(self, labels: Tensor) -> Tensor:
        """Fill in what follows: a label is 0 where the one that it is given is 0."""
        if not self.links:
            return labels
        columns = list(labels.unbind(1))
        for t, given in self.links:
            follows = columns[t].isnan() & (columns[given] == 0)
            columns[t] = columns[t].masked_fill(follows, 0.0)
        return torch.stack(columns, dim=1)

    def _standing_for_all(self, labels: Tensor, weights: Tensor) -> Tensor:
        """Weights that make up for rows that were not read, (B,)."""
        if self.negative_rate == 1:
            return weights
        return weights.where(labels[:, 0] != 0, weights / self.negative_rate)
