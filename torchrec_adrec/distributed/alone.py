"""Looking up and training where there is no other rank to exchange anything with.

TorchRec's pipeline and its sharded modules cost the host 3,600 Python calls a step, two
messages that a rank sends to itself, and waits for the device: on a GPU that is more
time than the card needs for the whole step. A single rank asks the tables directly.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer
from torchrec.sparse.jagged_tensor import (
    JaggedTensor,
    KeyedJaggedTensor,
    KeyedTensor,
)

from torchrec_adrec.batch import Batch
from torchrec_adrec.distributed.torchrec_internals import (
    kernels,
    lookup_groups,
    output_names,
    output_widths,
    pools,
    sharded_collections,
    sharding_types,
    table_configs,
)


def can_be_alone(model: DistributedModelParallel, world_size: int) -> bool:
    """Whether this rank can ask the tables of a model directly.

    It can if it is the only one and every collection is whole on it, its kernels in the
    order of the features: they then take a KJT as it is. A model of numbers alone has
    no tables, so nothing to exchange on any number of ranks.
    """
    collections = sharded_collections(model)
    # TorchRec's pipeline looks for tables by tracing the model, and fails without any.
    if not collections:
        return True
    return world_size == 1 and all(map(_is_whole, collections))


def _is_whole(collection: Any) -> bool:
    if sharding_types(collection) != ["table_wise"]:
        return False
    (lookup,) = lookup_groups(collection)
    kernel_order = [name for c in lookup.grouped_configs for name in c.feature_names()]
    tables = table_configs(collection)
    return kernel_order == [name for table in tables for name in table.feature_names]


class AloneLoop:
    """Takes steps as TorchRec's pipeline does: `progress` and `detach`.

    The next batch is copied to the device while a step runs.
    """

    def __init__(
        self,
        model: DistributedModelParallel,
        optimizer: CombinedOptimizer,
        device: torch.device,
    ) -> None:
        self.model, self.optimizer, self.device = model, optimizer, device
        self._copy_stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._copy_stream = torch.cuda.Stream(device)
        self._next: Batch | None = None
        self._originals: list[tuple[Any, Callable[..., Any]]] = []

    def progress(self, batches: Iterator[Batch]) -> Any:
        """Take a step and return what the model returns beside its loss.

        Raises:
            StopIteration: there are no more batches.
        """
        self._attach()
        batch = self._next or self._copy_next(batches)
        if batch is None:
            raise StopIteration
        self._wait_for_copy(batch)
        self.optimizer.zero_grad()
        loss, outputs = self.model(batch)
        # The forward pass is queued by now: the copy travels while the device computes.
        self._next = self._copy_next(batches)
        loss.backward()
        self.optimizer.step()
        return outputs

    def detach(self) -> None:
        """Give the collections their own forward pass back, to judge or save the model.
        The next `progress` replaces it again.
        """
        for collection, forward in self._originals:
            collection.forward = forward
        self._originals = []

    def _attach(self) -> None:
        if not self._originals:
            for collection in sharded_collections(self.model):
                self._originals.append((collection, collection.forward))
                direct = DirectLookup if pools(collection) else DirectItemLookup
                collection.forward = direct(collection)

    def _copy_next(self, batches: Iterator[Batch]) -> Batch | None:
        batch = next(batches, None)
        if batch is None or self._copy_stream is None:
            return batch
        with torch.cuda.stream(self._copy_stream):
            return batch.to(self.device, non_blocking=True)

    def _wait_for_copy(self, batch: Batch) -> None:
        if self._copy_stream is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_stream(self._copy_stream)
            # The memory belongs to the copying stream: without this, the allocator may
            # give it to the next copy while the step still reads it.
            batch.record_stream(stream)


class DirectLookup:
    """The forward pass of a collection that is whole on this rank."""

    def __init__(self, collection: Any) -> None:
        (lookup,) = lookup_groups(collection)
        self.kernels = kernels(lookup)
        self.feature_counts = [len(c.feature_names()) for c in lookup.grouped_configs]
        self.names = output_names(collection)
        self.widths = output_widths(collection)

    def __call__(self, ids: KeyedJaggedTensor) -> KeyedTensor:
        """Vectors of its features, as the collection's own forward returns them."""
        keys = ids.keys()
        if keys != self.names:
            # It reads some of a side's features: a kernel takes what comes first.
            ids = ids.permute([keys.index(name) for name in self.names])
        parts = [ids] if len(self.kernels) == 1 else ids.split(self.feature_counts)
        pairs = zip(self.kernels, parts, strict=True)
        values: list[Tensor] = [
            kernel(indices=part.values(), offsets=part.offsets())
            for kernel, part in pairs
        ]
        joined = values[0] if len(values) == 1 else torch.cat(values, dim=1)
        return KeyedTensor(self.names, self.widths, joined)


class DirectItemLookup:
    """The forward pass of the one table that is looked up id by id."""

    def __init__(self, collection: Any) -> None:
        (lookup,) = lookup_groups(collection)
        (self.kernel,) = kernels(lookup)
        ((self.name,),) = (t.feature_names for t in table_configs(collection))

    def __call__(self, ids: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """Vectors of all ids, as the collection's own forward returns them."""
        vectors = self.kernel(indices=ids.values(), offsets=ids.offsets())
        return {self.name: JaggedTensor(vectors, ids.lengths(), offsets=ids.offsets())}
