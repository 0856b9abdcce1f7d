"""Finds where a loss that is not finite comes from."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torchrec_adrec.batch import Batch
from torchrec_adrec.distributed.torchrec_internals import (
    pools,
    sharded_collections,
    table_of_feature,
)
from torchrec_adrec.modules.embeddings import table_of
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
        finite = rows.dense.isfinite().all(dim=0).tolist()
        pairs = zip(schema.dense_names_of(side), finite, strict=True)
        wrong = dict.fromkeys(name for name, is_finite in pairs if not is_finite)
        nonfinite += [f"feature {name}" for name in wrong]
    for collection in sharded_collections(model):
        tables = table_of_feature(collection)
        nonfinite += [
            f"feature {name} (its table {tables[name]})"
            for name, vectors in _looked_up(collection, batch, schema).items()
            if not vectors.isfinite().all()
        ]
    return nonfinite


def _looked_up(collection: Any, batch: Batch, schema: Schema) -> dict[str, Tensor]:
    """Look up the batch's ids of all features of a collection."""
    if not pools(collection):
        return {n: v.values() for n, v in collection(batch.items).items()}
    features = set(table_of_feature(collection))
    (side,) = (
        side
        for side in Side
        if features <= {feature.name for feature in schema.bags_of(side)}
    )
    rows = batch.user if side == Side.USER else batch.ad
    vectors: dict[str, Tensor] = collection(rows.sparse).to_dict()
    return vectors


def _nonfinite_parameters(model: nn.Module) -> list[str]:
    # Tables are left out: their rows of this batch were looked up above, and a scan of
    # all rows would take longer than the step.
    return [
        f"parameter {name}"
        for name, parameter in model.named_parameters()
        if not table_of(name) and not parameter.isfinite().all()
    ]
