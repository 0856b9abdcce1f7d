"""Writes rows into sharded tables, wherever a plan has put them."""

from collections.abc import Mapping

import torch
from torch import nn

from torchrec_adrec.arrays import Float32s, Int64s


def set_rows(
    model: nn.Module, rows_of_tables: Mapping[str, tuple[Int64s, Float32s]]
) -> None:
    """Overwrite rows of tables; each rank writes what it holds of them. Collective.

    Args:
        model: sharded.
        rows_of_tables: name of a table's parameter -> the numbers of rows, (M,), and
            their vectors, (M, D), the same on every rank.
    """
    parameters = model.state_dict()
    for name, (rows, vectors) in rows_of_tables.items():
        for shard in parameters[name].local_shards():
            first, left = shard.metadata.shard_offsets
            count, width = shard.metadata.shard_sizes
            is_local = (rows >= first) & (rows < first + count)
            values = torch.from_numpy(vectors[is_local, left : left + width])
            places = torch.from_numpy(rows[is_local] - first)
            part = shard.tensor.detach()
            part[places.to(part.device)] = values.to(part.device, part.dtype)
    model.load_state_dict(parameters)
