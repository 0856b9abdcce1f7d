"""Predict a split with a sharded model and gather the predictions of all ranks."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from torchrec_adrec.arrays import Bools, Float64s, Int64s
from torchrec_adrec.batch import Batch
from torchrec_adrec.config.data import Bounds
from torchrec_adrec.data.loader.batch_memory import memory_for
from torchrec_adrec.data.loader.bounds import RepairCounts
from torchrec_adrec.data.loader.collate import batch_columns, collate
from torchrec_adrec.data.loader.parquet import Reader
from torchrec_adrec.data.loader.row_groups import Split
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.evaluation.metrics import Predictions, label_metrics
from torchrec_adrec.runtime.prefetch import prefetch
from torchrec_adrec.runtime.progress import Progress
from torchrec_adrec.schema import Schema
from torchrec_adrec.tasks.calibration import Calibrations
from torchrec_adrec.tasks.label_heads import prediction


@dataclass(frozen=True)
class SplitLogits:
    """The logits of a split's rows, in the order of its files.

    Attributes:
        rows: (N,) their numbers in the split, rising.
        logits: (N, T), of the labels that the model has a logit of.
        labels: (N, T), NaN where not observed.
    """

    rows: Int64s
    logits: Float64s
    labels: Float64s

    def observed(self, label: int) -> Bools:
        """Whether each row observes a label, (N,)."""
        return ~np.isnan(self.labels[:, label])

    def predictions(
        self, schema: Schema, calibrations: Calibrations | None = None
    ) -> Predictions:
        """Predict each label of the rows that observe it.

        Args:
            schema: the labels.
            calibrations: of the checkpoint; None: the model's own predictions.

        Raises:
            PredictionError: one is not finite.
        """
        result = {}
        # The towers have a logit of the first label alone.
        for t, label in enumerate(schema.labels[: self.logits.shape[1]]):
            observed = self.observed(t)
            logits = torch.from_numpy(self.logits[observed, t])
            predicted = prediction(label, logits, calibrations).numpy()
            result[label.name] = (predicted, self.labels[observed, t])
        return result


def _batches(
    split: Split, schema: Schema, process: Process, batch_size: int, bounds: Bounds
) -> Iterator[tuple[Batch, Int64s]]:
    """Read every row of a split once over all ranks, with its number in the split.

    The last step is filled up with rows of weight 0, so that all ranks take the same
    number of steps: lookups are collective.
    """
    # The batch is rounded up to a multiple of the ranks.
    size = -(-batch_size // process.world_size) * process.world_size
    reader = Reader(
        split, batch_columns(schema), size, process.rank, process.world_size
    )
    repaired = RepairCounts()
    memory = memory_for(process.device)
    batches = (
        (collate(rows, schema, bounds, repaired, memory=memory), rows.numbers)
        for rows in reader.epoch()
    )
    with Progress("evaluating", reader.steps) as progress:
        for batch, numbers in prefetch(batches):
            yield batch.to(process.device, non_blocking=True), numbers
            progress.advance(1)
    repaired.report()


def evaluate_split(
    model: nn.Module,
    folder: Path,
    schema: Schema,
    process: Process,
    batch_size: int,
    bounds: Bounds = "raise",
    calibrations: Calibrations | None = None,
) -> dict[str, dict[str, float]]:
    """Compute the metrics of each label over one split. Collective.

    Args:
        model: a task, sharded or in one piece.
        folder: of the split.
        schema: the columns.
        process: this rank.
        batch_size: rows of a step over all ranks.
        bounds: what happens to an id that no table has.
        calibrations: of the checkpoint; None: the model's own predictions.

    Returns:
        Label -> metric -> value, the same on every rank.
    """
    logits = split_logits(model, folder, schema, process, batch_size, bounds)
    return label_metrics(schema, logits.predictions(schema, calibrations))


@torch.no_grad()
def split_logits(
    model: nn.Module,
    folder: Path,
    schema: Schema,
    process: Process,
    batch_size: int,
    bounds: Bounds = "raise",
) -> SplitLogits:
    """Compute the logits of every row of a split. Collective.

    Args:
        model: a task, sharded or in one piece.
        folder: of the split.
        schema: the columns.
        process: this rank.
        batch_size: rows of a step over all ranks.
        bounds: what happens to an id that no table has.

    Returns:
        The same on every rank; rows of weight 0 are not in it.
    """
    model.eval()
    split, numbers, logits, labels = Split.open(folder), [], [], []
    for batch, rows in _batches(split, schema, process, batch_size, bounds):
        _, out = model(batch)
        # Off the device at once: the logits of a whole split need not fit it.
        kept = out.weights > 0
        numbers.append(rows[kept.cpu().numpy()])
        logits.append(out.logits[kept].double().cpu().numpy())
        labels.append(out.labels[kept].double().cpu().numpy())
    parts = [_from_all(part) for part in (numbers, logits, labels)]
    # Each rank has a slice of every step: the numbers restore the order of the files.
    order = np.argsort(parts[0])
    each_once = np.array_equal(parts[0][order], np.arange(split.num_rows))
    assert each_once, "figures are of every row of the split, each once"
    return SplitLogits(parts[0][order], parts[1][order], parts[2][order])


def _from_all(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Concatenate the parts of all ranks, in the order of ranks. Collective."""
    local = np.concatenate(parts)
    gathered: list[NDArray[Any]] = [local] * dist.get_world_size()
    dist.all_gather_object(gathered, local)
    return np.concatenate(gathered)
