"""The batches that flow through the models: tensors that are views of one buffer.

One buffer of bytes is one copy to a device, one piece of pinned memory, one message
from the reader process. `data.loader.collate` alone fills buffers, and this file is THE
ONLY MAKER OF KEYED JAGGED TENSORS (KJTs), from a buffer and its layout: a sharded
`EmbeddingBagCollection` keeps the key order of the first KJT that it sees, and a later
one in another order gives wrong vectors and no error.

Shape letters: B batch, N ads, F features, T tasks, A anchors.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import accumulate
from math import prod
from typing import Any, Self

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

ALIGNMENT = 64  # bytes: a cache line, and four times what a GPU thread reads at once
ITEMS = "items"  # the one key of the ids that histories share with the ads
Section = tuple[torch.dtype, tuple[int, ...]]


class _Layout(ABC):
    """Tensors one after the other in a buffer, each at a multiple of `ALIGNMENT`."""

    @cached_property
    @abstractmethod
    def sections(self) -> tuple[Section, ...]:
        """Type and shape of each tensor."""

    @cached_property
    def _starts(self) -> list[int]:
        """The byte where each section begins, and where the buffer ends."""
        sizes = (dtype.itemsize * prod(shape) for dtype, shape in self.sections)
        aligned = (-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)
        return list(accumulate(aligned, initial=0))

    @property
    def nbytes(self) -> int:
        """The size of the whole buffer in bytes."""
        return self._starts[-1]

    def views(self, buffer: Tensor) -> list[Tensor]:
        """The tensors of the sections, as views of the buffer."""
        # The buffer may itself be a view: a side's buffer lies within the batch's.
        first = buffer.storage_offset()
        typed = {dtype: buffer.view(dtype) for dtype in self._types}
        return [
            # One operation a tensor; slice, view and reshape took 0.05 ms a batch.
            typed[dtype].as_strided(shape, strides, (first + start) // dtype.itemsize)
            for (dtype, shape), strides, start in self._placed_sections
        ]

    @cached_property
    def _types(self) -> set[torch.dtype]:
        return {dtype for dtype, _ in self.sections}

    @cached_property
    def _placed_sections(self) -> list[tuple[Section, tuple[int, ...], int]]:
        """Each section with its strides and its first byte."""
        # Sections have one or two dimensions: strides (1,) or (columns, 1).
        strides = [(*shape[1:], 1) for _, shape in self.sections]
        return list(zip(self.sections, strides, self._starts[:-1], strict=True))


@dataclass(frozen=True)
class TowerLayout(_Layout):
    """Where the tensors of one side lie in its buffer.

    Attributes:
        keys: the features with ids, in schema order; histories are the last ones.
        rows: B of the user's side, N of the ad's.
        dense: the number of dense features.
        histories: the number of ids of each history over all rows; every other key has
            one id a row.
        items: the key of the history that shares its ids with the ads, or of the ads'
            feature; None where there is no such history.
    """

    keys: tuple[str, ...]
    rows: int
    dense: int
    histories: tuple[int, ...] = ()
    items: str | None = None

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """The ids, key after key; the number of ids in each bag; the dense features."""
        # Without histories every bag holds one id: such lengths are not stored, all
        # batches share those of `single_id_bags`.
        bags = len(self.keys) * self.rows if self.histories else 0
        return (
            (torch.int32, (sum(self.ids_per_key),)),
            (torch.int32, (bags,)),
            (torch.float32, (self.rows, self.dense)),
        )

    @cached_property
    def ids_per_key(self) -> list[int]:
        """The number of ids of each key over all rows."""
        ones = len(self.keys) - len(self.histories)
        return [self.rows] * ones + list(self.histories)

    @cached_property
    def first_id_of_key(self) -> list[int]:
        """The position where each key's ids begin, and where the last one's end."""
        return [0, *accumulate(self.ids_per_key)]


@dataclass(frozen=True)
class BatchLayout(_Layout):
    """Where the tensors of a batch lie in its buffer.

    Attributes:
        user: of the user's side.
        ad: of the ad's side.
        labels: T, the number of labels.
        anchors: A, padding included.
        user_keys: B where the loss asks who the users are, else 0.
    """

    user: TowerLayout
    ad: TowerLayout
    labels: int
    anchors: int
    user_keys: int = 0

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """The attributes of a `Batch`, in order."""
        rows, ads = self.user.rows, self.ad.rows
        return (
            (torch.uint8, (self.user.nbytes,)),
            (torch.uint8, (self.ad.nbytes,)),
            (torch.float32, (rows, self.labels)),
            (torch.float32, (rows,)),
            (torch.int64, (ads,)),
            (torch.float32, (ads,)),
            (torch.int32, (self.anchors,)),
            (torch.float32, (self.anchors,)),
            (torch.int64, (self.user_keys,)),
        )


@dataclass(frozen=True, eq=False)
class _Packed(Pipelineable):  # type: ignore[misc]
    """Views of a buffer that moves to a device as a whole.

    It is frozen: the move copies the buffer and makes new views, so a tensor that
    somebody had put in the place of a view would be lost on the way.

    Attributes:
        buffer: (bytes,) uint8.
        layout: where each tensor lies in the buffer.
    """

    buffer: Tensor = field(repr=False)
    layout: Any

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """The same on another device: one copy of the buffer, then views of it."""
        moved = self.buffer.to(device=device, non_blocking=non_blocking)
        return self if moved is self.buffer else type(self)(moved, self.layout)

    def pin_memory(self) -> Self:
        """The same in page-locked memory, from which a GPU copies asynchronously."""
        return type(self)(self.buffer.pin_memory(), self.layout)

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory until the stream has done all its work queued so far."""
        self.buffer.record_stream(stream)
        if "items" in self.__dict__:  # ids that were joined on the device
            self.__dict__["items"].record_stream(stream)


@dataclass(frozen=True, eq=False)
class TowerInput(_Packed):
    """One side of a batch: the input of its tower.

    Attributes:
        dense: (B, F) float32.
        sparse: int32 ids, keys in schema order: one id for each row and feature, and
            all ids of a history. `data.loader.collate.tower_input` draws one.
    """

    layout: TowerLayout
    dense: Tensor = field(init=False)
    sparse: KeyedJaggedTensor = field(init=False)

    def __post_init__(self) -> None:
        layout = self.layout
        ids, lengths, dense = layout.views(self.buffer)
        offsets = None
        if not layout.histories:
            lengths, offsets = single_id_bags(layout.first_id_of_key[-1], ids.device)
        sparse = KeyedJaggedTensor(
            keys=list(layout.keys),
            values=ids,
            lengths=lengths,
            offsets=offsets,
            stride=layout.rows,
            # Without it TorchRec reads the sums from the device, and the host waits.
            length_per_key=list(layout.ids_per_key),
        )
        self.__dict__.update(dense=dense, sparse=sparse)  # the class is frozen

    @cached_property
    def items(self) -> KeyedJaggedTensor:
        """The ids of the history, or of the ads' item, under the key `items`."""
        return items_of(self)


@dataclass(frozen=True, eq=False)
class Batch(_Packed):
    """Rows of a log: what users and ads were, and what was observed.

    Attributes:
        user: the user's side, B rows.
        ad: the ad's side, N >= B rows; those after the first B are negatives only.
        labels: (B, T) float32; NaN where not observed.
        weights: (B,) float32; 0 for the rows that only fill up an evaluation batch.
        ad_ids: (N,) int64.
        log_q: (N,) float32, log of the ad's share of the training impressions (with
            uniform negatives: of the mixture that ads are drawn from); NaN for an ad
            that training never saw, so that it cannot be used by mistake.
        anchors: (A,) int32, the rows that were clicked (first label 1, weight above 0),
            rising, padded with row 0 so that A takes few values.
        anchor_weights: (A,) float32, the weights of these rows; 0 for the padding.
        user_keys: (B,) int64, the users of the rows, `NO_USER` where one is missing;
            (0,) unless they are asked for.
    """

    layout: BatchLayout
    user: TowerInput = field(init=False)
    ad: TowerInput = field(init=False)
    labels: Tensor = field(init=False)
    weights: Tensor = field(init=False)
    ad_ids: Tensor = field(init=False)
    log_q: Tensor = field(init=False)
    anchors: Tensor = field(init=False)
    anchor_weights: Tensor = field(init=False)
    user_keys: Tensor = field(init=False)

    def __post_init__(self) -> None:
        user, ad, *others = self.layout.views(self.buffer)
        self.__dict__.update(
            user=TowerInput(user, self.layout.user), ad=TowerInput(ad, self.layout.ad)
        )
        names = ("labels", "weights", "ad_ids", "log_q", "anchors", "anchor_weights")
        self.__dict__.update(zip((*names, "user_keys"), others, strict=True))

    @cached_property
    def items(self) -> KeyedJaggedTensor:
        """Both sides' `items` for one lookup: B histories, then N ids."""
        return items_of(self.user, self.ad)


def items_of(*sides: TowerInput) -> KeyedJaggedTensor:
    """Join the ids of one vocabulary, side after side, under the one key `items`.

    A table that both towers read is asked once a step: the pipeline cannot prepare two
    lookups of one collection.
    """
    ids = [side.sparse[side.layout.items] for side in sides]
    values = torch.cat([x.values() for x in ids])
    return KeyedJaggedTensor(
        keys=[ITEMS],
        values=values,
        lengths=torch.cat([x.lengths() for x in ids]),
        stride=sum(side.layout.rows for side in sides),
        length_per_key=[len(values)],
    )


# A device may still be reading a tensor that the cache drops. That is safe without
# recording a stream, because it was last used 64 shapes of batches ago.
@lru_cache(maxsize=64)
def single_id_bags(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Lengths and offsets of `count` bags of one id each; all batches share them.

    Never let a pipeline free them (`free_features_storage_early`): they would be empty
    for every later batch.
    """
    # If an evaluation is the first caller, training could not use inference tensors.
    with torch.inference_mode(False):
        lengths = torch.ones(count, dtype=torch.int32, device=device)
        offsets = torch.arange(count + 1, dtype=torch.int32, device=device)
    if device.type == "cuda":  # wait once; afterwards any stream may read them
        torch.cuda.current_stream(device).synchronize()
    return lengths, offsets


def anchor_bucket(rows: int) -> int:
    """The number that A, the padded number of anchors, is a multiple of.

    It is rows / 16 as a power of two, at least 64. The number of clicks in a batch
    varies far less than that, so a run has one or two shapes of batches.
    """
    return max(64, 1 << max(rows // 16 - 1, 0).bit_length())
