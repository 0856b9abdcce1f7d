"""Finds a model that learns nothing, while it is trained and not a day later.

Users of other systems met an AUC of exactly .5 at the end of a run: a logarithm of a
negative number, a column of 1e13. Here a dead model stops the job and the column that
stands out is named.
"""

import logging
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch.distributed as dist
from sklearn.metrics import roc_auc_score
from torch import Tensor

from torchrec_adrec.arrays import Float64s
from torchrec_adrec.batch import Batch
from torchrec_adrec.errors import TrainingError
from torchrec_adrec.schema import Schema, Side

ROWS = 20_000  # of all ranks, looked at together, or more:
NOISE = 0.01  # until an AUC is known so well; at a click rate of .1%, 830,000 rows
WINDOWS = 3  # with an AUC of .5, one after the other, before it counts
EVERY = (
    50  # steps from one window to the next: an AUC of 65,536 rows costs more than the
)
# step that a GPU takes meanwhile
SAME = 1e-5  # spread of logits that are one number, in units of that number
OUTSTANDING = 100.0  # a fitted number has a deviation of about 1

log = logging.getLogger(__name__)


@dataclass
class DeadModelAlarm:
    """Looks at the first label's logits of some steps at a time.

    Attributes:
        mode: what follows: an error, or a warning.
    """

    schema: Schema
    mode: Literal["raise", "warn"]
    _parts: list[tuple[Float64s, Float64s]] = field(default_factory=list)
    _rows: int = 0
    _chance: int = 0
    _wanted: int = ROWS
    _next: int = 0
    _open: bool = False

    def rows_of(self, number: int) -> int:
        """How many of this rank's rows it wants to see of a step; the same on all."""
        if not self._open and number < self._next:
            return 0
        if not self._open:
            self._open, self._next = True, number + EVERY
        return -(-self._wanted // dist.get_world_size())

    @property
    def is_open(self) -> bool:
        """Whether rows are still wanted: steps are looked at late, so of the step
        after a window's last one they were asked for in vain.
        """
        return self._open

    def look(self, logits: Tensor, labels: Tensor, batch: Batch) -> None:
        """Take a step's logits and labels, (B, T) on the host, or some rows of them.
        Collective: all ranks do at the same steps.

        Raises:
            TrainingError: the model is dead; on every rank.
        """
        first = [part[:, 0].double().numpy() for part in (logits, labels)]
        self._parts.append((first[0], first[1]))
        self._rows += len(logits) * dist.get_world_size()
        if self._rows < self._wanted:
            return
        own = tuple(np.concatenate(part) for part in zip(*self._parts, strict=True))
        self._parts, self._rows, self._open = [], 0, False
        everyone: list[tuple[Float64s, ...]] = [own] * dist.get_world_size()
        dist.all_gather_object(everyone, own)
        logit, label = (np.concatenate(part) for part in zip(*everyone, strict=True))
        self._wanted = rows_wanted(label)
        fault = self._fault(logit, label)
        if fault:
            self._say(f"{fault}; {suspects(batch, self.schema)}")

    def _fault(self, logit: Float64s, label: Float64s) -> str:
        if np.ptp(logit) <= SAME * max(1.0, float(np.abs(logit).max())):
            return f"the model is dead: all {len(logit)} logits are {logit[0]:.6g}"
        clicks = int((label == 1).sum())
        others = int((label == 0).sum())
        if not clicks or not others:
            return ""
        seen = ~np.isnan(label)
        noise = np.sqrt((clicks + others + 1) / (12 * clicks * others))
        if noise > 1.1 * NOISE:  # the window was still too short
            return ""
        auc = roc_auc_score(label[seen], logit[seen])
        self._chance = self._chance + 1 if abs(auc - 0.5) < 2 * noise else 0
        if self._chance < WINDOWS:
            return ""
        self._chance = 0
        return (
            f"the model is dead: the AUC of the last {WINDOWS} times {len(logit)}"
            f" training rows is .5 within its noise of {noise:.4f} (last {auc:.4f})"
        )

    def _say(self, fault: str) -> None:
        if self.mode == "raise":
            raise TrainingError(f"{fault}; or train on with train.dead_model=warn")
        log.warning("%s", fault)


def rows_wanted(label: Float64s) -> int:
    """Rows with as many clicks that an AUC's noise is `NOISE`, 1 / sqrt(12 clicks)."""
    rate = max(float(np.nansum(label)) / len(label), 1e-5)
    return max(ROWS, int(1 / (12 * NOISE**2 * rate * max(1 - rate, 1e-5))))


def suspects(batch: Batch, schema: Schema) -> str:
    """The dense columns of a batch that stand out, in words."""
    found = []
    for side, rows in ((Side.USER, batch.user), (Side.AD, batch.ad)):
        if not rows.dense.numel():
            continue
        largest = rows.dense.abs().amax(dim=0).tolist()
        names = [feature.name for feature in schema.dense_of(side)]
        pairs = zip(names, largest, strict=True)
        found += [f"{n} (up to {m:.3g})" for n, m in pairs if m > OUTSTANDING]
    if not found:
        return "no column stands out: look at the learning rates"
    return f"columns that stand out: {', '.join(found)}"
