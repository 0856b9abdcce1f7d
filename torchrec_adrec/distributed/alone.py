"""Looking up and training where there is no other rank to exchange anything with.

TorchRec's pipeline and its sharded modules cost the host 3,600 Python calls a step,
two messages that a rank sends to itself, and waits for the device: on a GPU more than
all that the card has to do. A rank that is alone asks the tables directly.

The only file that knows how a sharded collection holds its kernels (torchrec 1.8.0).
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from torchrec_adrec.batch import Batch


def can_be_alone(model: DistributedModelParallel, world_size: int) -> bool:
    """Whether every collection of a model is whole on this rank, in the order of the
    features: then its kernels take a KJT as it is.
    """
    return world_size == 1 and all(map(_is_whole, _collections(model)))


def _collections(model: DistributedModelParallel) -> list[Any]:
    modules = model.modules()
    return [m for m in modules if isinstance(m, ShardedEmbeddingBagCollection)]


def _is_whole(collection: Any) -> bool:
    if collection._sharding_types != ["table_wise"]:
        return False
    (lookup,) = collection._lookups
    kernels = [name for c in lookup.grouped_configs for name in c.feature_names()]
    features = [
        n for table in collection._embedding_bag_configs for n in table.feature_names
    ]
    return kernels == features


class AloneLoop:
    """Takes steps as TorchRec's pipeline does: `progress`, `detach`.

    The next batch is copied to the device while a step runs.
    """

    def __init__(
        self,
        model: DistributedModelParallel,
        optimizer: CombinedOptimizer,
        device: torch.device,
    ) -> None:
        self.model, self.optimizer, self.device = model, optimizer, device
        self._copies: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._copies = torch.cuda.Stream(device)
        self._next: Batch | None = None
        self._originals: list[tuple[Any, Callable[..., Any]]] = []

    def progress(self, batches: Iterator[Batch]) -> Any:
        """Take a step; returns what the model returns beside its loss.

        Raises:
            StopIteration: there are no more batches.
        """
        self._attach()
        batch = self._next or self._copied(batches)
        if batch is None:
            raise StopIteration
        self._await(batch)
        self.optimizer.zero_grad()
        loss, outputs = self.model(batch)
        self._next = self._copied(batches)
        loss.backward()
        self.optimizer.step()
        return outputs

    def detach(self) -> None:
        """Give the collections their own forward back, to judge or save the model; the
        next `progress` takes it again.
        """
        for collection, forward in self._originals:
            collection.forward = forward
        self._originals = []

    def _attach(self) -> None:
        if not self._originals:
            for collection in _collections(self.model):
                self._originals.append((collection, collection.forward))
                collection.forward = DirectLookup(collection)

    def _copied(self, batches: Iterator[Batch]) -> Batch | None:
        batch = next(batches, None)
        if batch is None or self._copies is None:
            return batch
        with torch.cuda.stream(self._copies):
            return batch.to(self.device, non_blocking=True)

    def _await(self, batch: Batch) -> None:
        if self._copies is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_stream(self._copies)
            batch.record_stream(stream)


class DirectLookup:
    """The forward pass of a collection that is whole on this rank."""

    def __init__(self, collection: Any) -> None:
        (lookup,) = collection._lookups
        self.kernels = [kernel.emb_module for kernel in lookup._emb_modules]
        self.features = [len(c.feature_names()) for c in lookup.grouped_configs]
        self.names = collection._embedding_names
        self.widths = collection._embedding_dims

    def __call__(self, ids: KeyedJaggedTensor) -> KeyedTensor:
        """Vectors of all features, as the collection's own forward returns them."""
        parts = [ids] if len(self.kernels) == 1 else ids.split(self.features)
        pairs = zip(self.kernels, parts, strict=True)
        values: list[Tensor] = [
            kernel(indices=part.values(), offsets=part.offsets())
            for kernel, part in pairs
        ]
        joined = values[0] if len(values) == 1 else torch.cat(values, dim=1)
        return KeyedTensor(self.names, self.widths, joined)
