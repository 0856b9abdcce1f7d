"""Finds a model that learns nothing, while it is trained and not a day later.

Users of other systems met an AUC of exactly 0.5 at the end of a run: a logarithm of a
negative number, a column of 1e13. Here a dead model stops the job, and the column that
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

# Rows of all ranks that make a window, which is judged as a whole; more of them until
# the noise of its AUC is at most NOISE: at a click rate of 0.1% that takes 830,000.
ROWS = 20_000
NOISE = 0.01
WINDOWS = 3  # with an AUC of 0.5, one after the other, before it counts
# Steps from one window to the next: an AUC of 65,536 rows costs more than the step that
# a GPU takes meanwhile.
EVERY = 50
SAME = 1e-5  # spread of logits that are one number, in units of that number
OUTSTANDING = 100.0  # a fitted number has a deviation of about 1

log = logging.getLogger(__name__)


@dataclass
class DeadModelAlarm:
    """Judges windows of the first label's logits.

    A window is open from a step on until enough rows of later steps have come in, then
    it is judged and closed. The next one opens `EVERY` steps after it had opened.

    Attributes:
        schema: names the columns.
        mode: what a dead model leads to, an error or a warning.
        learns_clicks: whether the order of the logits is learnt; an AUC of 0.5 is a
            fault only then.
    """

    schema: Schema
    mode: Literal["raise", "warn"]
    learns_clicks: bool = True
    _parts: list[tuple[Float64s, Float64s]] = field(default_factory=list)
    _rows: int = 0
    _rows_expected: int = ROWS
    _windows_by_chance: int = 0
    _next_window: int = 0
    _is_open: bool = False

    def rows_to_watch(self, step: int) -> int:
        """How many of this rank's rows it needs of a step; the same on all ranks."""
        if not self._is_open and step < self._next_window:
            return 0
        if not self._is_open:
            self._is_open, self._next_window = True, step + EVERY
        return -(-self._rows_expected // dist.get_world_size())

    @property
    def is_open(self) -> bool:
        """Whether it still needs rows. Steps arrive late: when a window is closed, rows
        of the step after it have been asked for already.
        """
        return self._is_open

    def observe(self, logits: Tensor, labels: Tensor, batch: Batch) -> None:
        """Take rows of a step, and judge the window if it is full. Collective: all
        ranks call it at the same steps.

        Args:
            logits: (B, T) on the host, of all rows or some.
            labels: of the same rows.
            batch: of the step, on the host; its columns may be named.

        Raises:
            TrainingError: the model is dead; on every rank.
        """
        first = [part[:, 0].double().numpy() for part in (logits, labels)]
        self._parts.append((first[0], first[1]))
        self._rows += len(logits) * dist.get_world_size()
        if self._rows < self._rows_expected:
            return
        local = tuple(np.concatenate(part) for part in zip(*self._parts, strict=True))
        self._parts, self._rows, self._is_open = [], 0, False
        by_rank: list[tuple[Float64s, ...]] = [local] * dist.get_world_size()
        dist.all_gather_object(by_rank, local)
        logit, label = (np.concatenate(part) for part in zip(*by_rank, strict=True))
        self._rows_expected = rows_needed(label)
        fault = self._fault(logit, label)
        if fault:
            self._report(f"{fault}; {suspects(batch, self.schema)}")

    def _fault(self, logit: Float64s, label: Float64s) -> str:
        if np.ptp(logit) <= SAME * max(1.0, float(np.abs(logit).max())):
            return f"the model is dead: all {len(logit)} logits are {logit[0]:.6g}"
        clicks = int((label == 1).sum())
        others = int((label == 0).sum())
        if not clicks or not others or not self.learns_clicks:
            return ""
        observed = ~np.isnan(label)
        noise = np.sqrt((clicks + others + 1) / (12 * clicks * others))
        if noise > 1.1 * NOISE:  # the window was still too short
            return ""
        auc = roc_auc_score(label[observed], logit[observed])
        # A model that learns may pass through 0.5 once, and chance may put it there:
        # so several windows in a row have to agree.
        is_chance = abs(auc - 0.5) < 2 * noise
        self._windows_by_chance = self._windows_by_chance + 1 if is_chance else 0
        if self._windows_by_chance < WINDOWS:
            return ""
        self._windows_by_chance = 0
        return (
            f"the model is dead: the AUC of the last {WINDOWS} times {len(logit)}"
            f" training rows is 0.5 within its noise of {noise:.4f} (last {auc:.4f})"
        )

    def _report(self, fault: str) -> None:
        if self.mode == "raise":
            raise TrainingError(f"{fault}; or train on with train.dead_model=warn")
        log.warning("%s", fault)


def rows_needed(label: Float64s) -> int:
    """Rows with so many clicks that an AUC's noise, 1 / sqrt(12 clicks), is `NOISE`.

    Where all rows are clicks there is no AUC to wait for.
    """
    if (label == 1).all():
        return ROWS
    rate = max(float(np.nansum(label)) / len(label), 1e-5)
    return max(ROWS, int(1 / (12 * NOISE**2 * rate * max(1 - rate, 1e-5))))


def suspects(batch: Batch, schema: Schema) -> str:
    """Name the dense columns of a batch that stand out."""
    outstanding = []
    for side, rows in ((Side.USER, batch.user), (Side.AD, batch.ad)):
        if not rows.dense.numel():
            continue
        largest = rows.dense.abs().amax(dim=0).tolist()
        names = schema.dense_names_of(side)
        pairs = zip(names, largest, strict=True)
        outstanding += [f"{n} (up to {m:.3g})" for n, m in pairs if m > OUTSTANDING]
    if not outstanding:
        return "no column stands out: look at the learning rates"
    return f"columns that stand out: {', '.join(outstanding)}"
