"""Where a loss that is not finite comes from."""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection

from torchrec_adrec.batch import Batch
from torchrec_adrec.schema import Schema, Side


@torch.no_grad()
def find_nonfinite(model: nn.Module, batch: Batch, schema: Schema) -> list[str]:
    """The features and parameters that are not finite, of all ranks. Collective.

    Args:
        model: sharded, out of its pipeline.
        batch: of the step, on the model's device.
    """
    own = [*_features(model, batch, schema), *_parameters(model)]
    everyone: list[list[str]] = [own] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    return sorted({name for names in everyone for name in names})


def _features(model: nn.Module, batch: Batch, schema: Schema) -> list[str]:
    """Features whose looked-up vectors or numbers are not finite."""
    found = []
    for side, rows in ((Side.USER, batch.user), (Side.AD, batch.ad)):
        for at, feature in enumerate(schema.dense_of(side)):
            if not rows.dense[:, at].isfinite().all():
                found.append(f"feature {feature.name}")
        for tables in _collections(model, schema, side):
            names = {t.feature_names[0]: t.name for t in tables._embedding_bag_configs}
            found += [
                f"feature {name} (its table {names[name]})"
                for name, looked_up in tables(rows.sparse).to_dict().items()
                if not looked_up.isfinite().all()
            ]
    return found


def _collections(model: nn.Module, schema: Schema, side: Side) -> list[Any]:
    wanted = {feature.name for feature in schema.bags_of(side)}
    return [
        module
        for module in model.modules()
        if isinstance(module, ShardedEmbeddingBagCollection)
        and wanted
        == {n for t in module._embedding_bag_configs for n in t.feature_names}
    ]


def _parameters(model: nn.Module) -> list[str]:
    return [
        f"parameter {name}"
        for name, parameter in model.named_parameters()
        if "embedding_bags" not in name and not parameter.isfinite().all()
    ]
