"""Measures a model for TensorBoard: norms, touched rows, the rank of the ad vectors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer

from torchrec_adrec.distributed.torchrec_internals import (
    pools,
    sharded_collections,
    table_of_feature,
)
from torchrec_adrec.modules.embeddings import keyed, table_of

Sums = dict[str, Tensor]
"""Scalars on the device by their names; all are read at once, at the end."""


class ModelStatistics:
    """Measures one step: wrap the step in `watched`, then ask for `figures`."""

    def __init__(
        self, model: DistributedModelParallel, optimizer: CombinedOptimizer
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self._gradients: Sums = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note the gradient of every table's looked-up vectors while a step runs."""
        self._gradients = {}
        hooks = [
            collection.register_forward_hook(self._watch_gradient)
            for collection in sharded_collections(self.model)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _watch_gradient(self, collection: Any, inputs: Any, output: Any) -> None:
        # A table's own gradient never exists: it is used up inside backward. That of
        # the vectors that were looked up says as much.
        tables = table_of_feature(collection)
        if not pools(collection):
            output = _keyed(output)
        widths, values = output.length_per_key(), output.values()
        names = [tables[feature] for feature in output.keys()]  # noqa: SIM118
        if not values.requires_grad:
            return

        def keep(gradient: Tensor) -> None:
            parts = torch.split(gradient, widths, dim=1)
            for name, part in zip(names, parts, strict=True):
                self._gradients[name] = _sum_of_squares(part)

        values.register_hook(keep)

    def figures(self, ads: Tensor) -> dict[str, float]:
        """Return every figure by its name, the same on every rank. Collective.

        Args:
            ads: (N, D) ad vectors of this rank's step, or (0, 0).
        """
        # Backward's gradients are those of W times this rank's share of the loss.
        ranks = dist.get_world_size()
        sums = {f"gradient/{n}": v / ranks**2 for n, v in self._gradients.items()}
        sums |= _table_weights(self.model) | _touched_rows(self.optimizer)
        replicated = _dense_norms(self.model)
        if ads.numel():
            replicated["ads/effective_rank"] = effective_rank(ads)
        return _norms_and_shares(_sum_over_ranks(_to_host(sums))) | _to_host(replicated)


def _keyed(output: Any) -> Any:
    """Read the output of the one table that is looked up id by id as that of a bag."""
    ((name, vectors),) = output.items()
    return keyed(name, vectors.values())


def _to_host(figures: Sums) -> dict[str, float]:
    """Read all figures in one copy: each copy waits for the device."""
    if not figures:
        return {}
    values = torch.stack([value.double() for value in figures.values()]).tolist()
    return dict(zip(figures, values, strict=True))


def _norms_and_shares(sums: dict[str, float]) -> dict[str, float]:
    """Norms of sums of squares, and touched rows as a share of all rows."""
    figures = {
        name: value**0.5 if name.startswith(("gradient", "weight")) else value
        for name, value in sums.items()
    }
    rows = {n: figures.pop(n) for n in list(figures) if n.startswith("rows/")}
    for name in [n for n in figures if n.startswith("touched/")]:
        figures[name] /= max(rows[name.replace("touched", "rows")], 1)
    return figures


def effective_rank(vectors: Tensor) -> Tensor:
    """Return how many directions vectors use: 1 when all point one way (a collapsed
    tower), D when they use every direction alike.

    It is exp of the entropy of the singular values, each as a share of their sum.

    Source: Roy and Vetterli, The effective rank, EUSIPCO 2007.

    Args:
        vectors: (N, D).
    """
    # Eigenvalues of the D x D products: an SVD of all N vectors waits for the device
    # several times. In float64, for they are squares.
    vectors = vectors.double()
    values = torch.linalg.eigvalsh(vectors.T @ vectors).clamp(min=0).sqrt()
    shares = values / values.sum().clamp(min=1e-12)
    return torch.xlogy(shares, shares).sum().neg().exp()


def _table_weights(model: DistributedModelParallel) -> Sums:
    """Squared norms of this rank's parts of the tables."""
    sums: Sums = {}
    for name, value in model.state_dict().items():
        if hasattr(value, "local_shards"):
            for shard in value.local_shards():
                _add(sums, f"weight/{table_of(name)}", _sum_of_squares(shard.tensor))
    return sums


def _touched_rows(optimizer: CombinedOptimizer) -> Sums:
    """Rows whose Adagrad state has left 0: those that training has ever updated."""
    sums: Sums = {}
    for name, state in optimizer.state_dict()["state"].items():
        for value in state.values():
            if hasattr(value, "local_shards"):
                for shard in value.local_shards():
                    rows, table = shard.tensor, table_of(name)
                    _add(sums, f"touched/{table}", (rows > 0).sum())
                    _add(sums, f"rows/{table}", torch.ones_like(rows).sum())
    return sums


def _dense_norms(model: DistributedModelParallel) -> Sums:
    """Norms of what every rank holds whole, by the module two levels down."""
    sums: Sums = {}
    for name, parameter in model.named_parameters():
        if table_of(name):
            continue
        part = ".".join(name.split(".")[:2])
        for kind, value in (("weight", parameter), ("gradient", parameter.grad)):
            if value is not None:
                _add(sums, f"{kind}/{part}", _sum_of_squares(value.detach()))
    return {name: value.sqrt() for name, value in sums.items()}


def _add(sums: Sums, name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value


def _sum_over_ranks(sums: dict[str, float]) -> dict[str, float]:
    # Ranks hold different tables, so they exchange the names with the numbers.
    by_rank: list[dict[str, float]] = [sums] * dist.get_world_size()
    dist.all_gather_object(by_rank, sums)
    total: dict[str, float] = {}
    for part in by_rank:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


def _sum_of_squares(values: Tensor) -> Tensor:
    return values.float().square().sum()
