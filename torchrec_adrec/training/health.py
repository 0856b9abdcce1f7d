"""Signs of health for TensorBoard: norms, touched rows, the rank of the ad vectors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer

Sums = dict[str, float]


class Health:
    """What is measured in one step: wrap it in `watched`, then ask `figures`."""

    def __init__(
        self, model: DistributedModelParallel, optimizer: CombinedOptimizer
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self._grads: Sums = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note the gradient of every table's looked-up vectors while a step runs."""
        self._grads = {}
        hooks = [
            module.register_forward_hook(self._note)
            for module in self.model.modules()
            if isinstance(module, ShardedEmbeddingBagCollection)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _note(self, module: Any, inputs: Any, output: Any) -> None:
        tables = {t.feature_names[0]: t.name for t in module._embedding_bag_configs}
        widths, values = output.length_per_key(), output.values()
        names = [tables[feature] for feature in output.keys()]  # noqa: SIM118
        if not values.requires_grad:
            return

        def keep(gradient: Tensor) -> None:
            parts = torch.split(gradient, widths, dim=1)
            for name, part in zip(names, parts, strict=True):
                self._grads[name] = _square(part)

        values.register_hook(keep)

    def figures(self, ads: Tensor) -> dict[str, float]:
        """Every figure by its name; the same on every rank. Collective.

        Args:
            ads: (N, D) ad vectors of this rank's step, or (0, 0).
        """
        # Backward's gradients are those of W times this rank's share of the loss.
        ranks = dist.get_world_size()
        own = {f"gradient/{n}": v / ranks**2 for n, v in self._grads.items()}
        own |= _weights(self.model) | _touched(self.optimizer)
        found = {
            name: value**0.5 if name.startswith(("gradient", "weight")) else value
            for name, value in _add_up(own).items()
        }
        rows = {n: found.pop(n) for n in list(found) if n.startswith("rows/")}
        for name in [n for n in found if n.startswith("touched/")]:
            found[name] /= max(rows[name.replace("touched", "rows")], 1)
        found |= _dense(self.model)
        if ads.numel():
            found["ads/effective_rank"] = effective_rank(ads)
        return found


def effective_rank(vectors: Tensor) -> float:
    """exp of the entropy of the singular values as shares: 1 when all vectors point one
    way (a collapsed tower), D when they use every direction alike.

    Source: Roy and Vetterli, The effective rank, EUSIPCO 2007.

    Args:
        vectors: (N, D).
    """
    values = torch.linalg.svdvals(vectors.float())
    shares = values / values.sum().clamp(min=1e-12)
    return float(torch.special.entr(shares).sum().exp())


def _weights(model: DistributedModelParallel) -> Sums:
    """Squared norms of this rank's parts of the tables."""
    found: Sums = {}
    for name, value in model.state_dict().items():
        if hasattr(value, "local_shards"):
            parts = [shard.tensor for shard in value.local_shards()]
            found[f"weight/{_table(name)}"] = sum(map(_square, parts))
    return found


def _touched(optimizer: CombinedOptimizer) -> Sums:
    """Rows whose Adagrad state has left 0: those that training has ever updated."""
    found: Sums = {}
    for name, state in optimizer.state_dict()["state"].items():
        for value in state.values():
            if hasattr(value, "local_shards"):
                for shard in value.local_shards():
                    table = _table(name)
                    count = float((shard.tensor > 0).sum())
                    found[f"touched/{table}"] = found.get(f"touched/{table}", 0) + count
                    size = float(shard.tensor.numel())
                    found[f"rows/{table}"] = found.get(f"rows/{table}", 0) + size
    return found


def _dense(model: DistributedModelParallel) -> dict[str, float]:
    """Norms of what every rank holds whole, by the module two levels down."""
    sums: Sums = {}
    for name, parameter in model.named_parameters():
        if "embedding_bags" in name:
            continue
        part = ".".join(name.split(".")[:2])
        for kind, value in (("weight", parameter), ("gradient", parameter.grad)):
            if value is not None:
                key = f"{kind}/{part}"
                sums[key] = sums.get(key, 0.0) + _square(value.detach())
    return {name: value**0.5 for name, value in sums.items()}


def _add_up(own: Sums) -> Sums:
    """Ranks hold different tables, so they exchange names with the numbers."""
    everyone: list[Sums] = [own] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    total: Sums = {}
    for sums in everyone:
        for name, value in sums.items():
            total[name] = total.get(name, 0.0) + value
    return total


def _table(name: str) -> str:
    return name.split("embedding_bags.")[1].split(".")[0]


def _square(values: Tensor) -> float:
    return float(values.float().square().sum())
