"""Predictions of a sharded model over a split, from all ranks."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from torchrec_adrec.batch import Batch
from torchrec_adrec.data.collate import batch_columns, collate
from torchrec_adrec.data.parquet import Reader, Split
from torchrec_adrec.data.prefetch import prefetch
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.evaluation.metrics import Floats, click_metrics
from torchrec_adrec.progress import Progress
from torchrec_adrec.schema import Schema

# Per label: predicted probability and observed label, both (N,).
Predictions = dict[str, tuple[Floats, Floats]]


def _batches(
    split: Split, schema: Schema, process: Process, batch_size: int
) -> Iterator[Batch]:
    """Every row of a split once, over all ranks; the last step is filled up."""
    size = -(-batch_size // process.world_size) * process.world_size
    reader = Reader(
        split, batch_columns(schema), size, process.rank, process.world_size
    )
    with Progress("evaluating", reader.steps) as progress:
        for batch in prefetch(collate(rows, schema) for rows in reader.epoch()):
            yield batch.to(process.device)
            progress.advance(1)


def evaluate_split(
    model: nn.Module, folder: Path, schema: Schema, process: Process, batch_size: int
) -> dict[str, dict[str, float]]:
    """Figures per label over one split, the same on every rank. Collective."""
    found = predict_split(model, folder, schema, process, batch_size)
    return {name: click_metrics(*predictions) for name, predictions in found.items()}


@torch.no_grad()
def predict_split(
    model: nn.Module, folder: Path, schema: Schema, process: Process, batch_size: int
) -> Predictions:
    """Probability and label of every row of a split, the same on every rank.

    Collective. Rows of weight 0 and labels that were not observed do not count.
    """
    model.eval()
    logits, labels = [], []
    for batch in _batches(Split.open(folder), schema, process, batch_size):
        _, out = model(batch)
        kept = out.weights > 0
        logits.append(out.logits[kept].double().cpu().numpy())
        labels.append(out.labels[kept].double().cpu().numpy())
    all_logits, all_labels = _from_all(logits), _from_all(labels)
    result = {}
    for t, name in enumerate(schema.labels[: all_logits.shape[1]]):
        observed = ~np.isnan(all_labels[:, t])
        probability = 1 / (1 + np.exp(-all_logits[observed, t]))
        result[name] = (probability, all_labels[observed, t])
    return result


def _from_all(parts: list[Floats]) -> Floats:
    own = np.concatenate(parts)
    gathered: list[Floats] = [own] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    return np.concatenate(gathered)
