"""Finds where a loss that is not finite comes from."""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from torchrec_adrec.batch import Batch
from torchrec_adrec.distributed.torchrec_internals import (
    sharded_collections,
    table_of_feature,
)
from torchrec_adrec.schema import Schema, Side


@torch.no_grad()
def find_nonfinite(model: nn.Module, batch: Batch, schema: Schema) -> list[str]:
    """Name the features and parameters that are not finite, of all ranks. Collective.

    Args:
        model: sharded, out of its pipeline.
        batch: of the step, on the model's device.
        schema: of the batch.
    """
    local = [*_nonfinite_features(model, batch, schema), *_nonfinite_parameters(model)]
    by_rank: list[list[str]] = [local] * dist.get_world_size()
    dist.all_gather_object(by_rank, local)
    return sorted({name for names in by_rank for name in names})


def _nonfinite_features(model: nn.Module, batch: Batch, schema: Schema) -> list[str]:
    """Features whose looked-up vectors or numbers are not finite."""
    nonfinite = []
    for side, rows in ((Side.USER, batch.user), (Side.AD, batch.ad)):
        for column, feature in enumerate(schema.dense_of(side)):
            if not rows.dense[:, column].isfinite().all():
                nonfinite.append(f"feature {feature.name}")
        for collection in _collections(model, schema, side):
            tables = table_of_feature(collection)
            nonfinite += [
                f"feature {name} (its table {tables[name]})"
                for name, vectors in collection(rows.sparse).to_dict().items()
                if not vectors.isfinite().all()
            ]
    return nonfinite


def _collections(model: nn.Module, schema: Schema, side: Side) -> list[Any]:
    """The side's collections: those that look up its features."""
    features = {feature.name for feature in schema.bags_of(side)}
    return [
        c for c in sharded_collections(model) if features >= set(table_of_feature(c))
    ]


def _nonfinite_parameters(model: nn.Module) -> list[str]:
    # Tables are left out: their rows of this batch were looked up above, and a scan of
    # all rows would take longer than the step.
    return [
        f"parameter {name}"
        for name, parameter in model.named_parameters()
        if "embedding_bags" not in name and not parameter.isfinite().all()
    ]
