"""What flows through the models. Only `data.collate` makes these.

Shape letters: B batch, N ads, F features, T tasks.
"""

from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


class _Moves(Pipelineable):  # type: ignore[misc]
    """Device plumbing, written once for every dataclass of tensors."""

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        return self._map(lambda part: part.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        return self._map(lambda part: part.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        for field in fields(self):
            getattr(self, field.name).record_stream(stream)

    def _map(self, move: Any) -> Self:
        parts = {f.name: move(getattr(self, f.name)) for f in fields(self)}
        return type(self)(**parts)


@dataclass
class TowerInput(_Moves):
    """One side of a batch.

    Attributes:
        dense: (B, F) float32.
        sparse: one id per row and feature, keys in schema order.
    """

    dense: Tensor
    sparse: KeyedJaggedTensor


@dataclass
class Batch(_Moves):
    """Rows of a log.

    Attributes:
        user: the user's side, B rows.
        ad: the ad's side, N >= B rows; those behind the first B are negatives only.
        labels: (B, T) float32; NaN where not observed.
        weights: (B,) float32; 0 for the rows that only fill up an evaluation batch.
        ad_ids: (N,) int64.
        log_q: (N,) float32, log of the ad's share of the training impressions (with
            negatives beside the rows: of the mixture that ads are drawn from); NaN for
            an ad that training never saw, so that it cannot be used by mistake.
    """

    user: TowerInput
    ad: TowerInput
    labels: Tensor
    weights: Tensor
    ad_ids: Tensor
    log_q: Tensor
