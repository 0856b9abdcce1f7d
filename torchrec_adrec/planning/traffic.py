"""Count the bytes that ranks send in one step, by purpose.

They follow from the plan and from the assumption that ids are spread evenly. "Sent" is
what leaves a rank for other ranks; a collective is counted as rings or all-to-alls send
it.

Shape letters: W ranks, L ranks a node, b rows of a rank, n ids a row, D columns.
"""

from dataclasses import dataclass, fields

import numpy as np
from torchrec.distributed.planner.types import Shard, ShardingOption, Topology

from torchrec_adrec.arrays import Float64s
from torchrec_adrec.distributed.planner import TablePlan

ID, LENGTH, FLOAT, HALF = 8, 4, 4, 2
AD_EXTRA = 12  # bytes of an ad's id and its log_q


@dataclass(frozen=True)
class Traffic:
    """Bytes that each rank sends, (W,) for each purpose.

    Attributes:
        ids: input all-to-all.
        vectors: output all-to-all or reduce-scatter.
        gradients: the same backward.
        dense: all-reduce of the dense gradients.
        ads: gather of the ad vectors for the in-batch softmax, and its gradient.
    """

    ids: Float64s
    vectors: Float64s
    gradients: Float64s
    dense: Float64s
    ads: Float64s

    def parts(self) -> dict[str, Float64s]:
        """All purposes by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def traffic(
    plan: TablePlan, rows: int, dense_parameters: int, ad_width: int, qcomm: str
) -> Traffic:
    """Count what one step sends.

    Args:
        plan: where the tables are.
        rows: of each rank.
        dense_parameters: all that is not a table.
        ad_width: D of an ad's vector.
        qcomm: precision of the looked-up vectors.
    """
    size = plan.topology.world_size
    ids, vectors, gradients = (np.zeros(size) for _ in range(3))
    # Only vectors may travel in fp16: see `ShardingConfig.qcomm`.
    width = HALF if qcomm == "fp16" else FLOAT
    for option in plan.chosen:
        by_rows = _SENT[option.sharding_type](option, plan.topology, rows)
        ids += by_rows[0]
        vectors += by_rows[1] * width
        gradients += by_rows[2] * FLOAT
    # A ring all-reduce passes every number on twice, but for a rank's own share.
    ring = 2 * (size - 1) / size * dense_parameters * FLOAT
    # Vectors go out forward and their gradients come back; ids and log_q go out alone.
    gathered = (size - 1) * rows * (2 * ad_width * FLOAT + AD_EXTRA)
    same = np.ones(size)
    return Traffic(ids, vectors, gradients, same * ring, same * gathered)


def _ids(option: ShardingOption, rows: int) -> float:
    """Bytes of a rank's ids of one table."""
    return float(sum(option.input_lengths) * rows * ID)


def _vectors(option: ShardingOption, rows: int) -> float:
    """Count a rank's vectors of one table: one a row, or one an id without bags."""
    return rows * (1 if option.is_pooled else float(sum(option.input_lengths)))


def _by_tables(
    option: ShardingOption, topology: Topology, rows: int
) -> tuple[Float64s, Float64s, Float64s]:
    """Count (ids, vectors, gradients) of a table whose slices lie on single ranks.

    Every rank sends its ids to the rank of a slice and gets its vectors back.
    """
    size = topology.world_size
    ids, vectors, gradients = (np.zeros(size) for _ in range(3))
    for shard in option.shards:
        others = np.arange(size) != shard.rank
        numbers = _vectors(option, rows) * shard.size[1]
        ids += others * (_ids(option, rows) + rows * LENGTH)
        vectors += ~others * (size - 1) * numbers
        gradients += others * numbers
    return ids, vectors, gradients


def _by_rows(
    option: ShardingOption, topology: Topology, rows: int
) -> tuple[Float64s, Float64s, Float64s]:
    """Count the same of a table of which every rank holds some rows.

    Each rank sums up the vectors of its own rows; the sums are reduced and scattered.
    Without bags there is nothing to sum up: every vector is sent once.
    """
    size, same = topology.world_size, np.ones(topology.world_size)
    away = (size - 1) / size
    ids = _ids(option, rows) * away + rows * LENGTH * (size - 1)
    each = (size - 1) if option.is_pooled else away
    numbers = each * _vectors(option, rows) * option.tensor.shape[1]
    return same * ids, same * numbers, same * numbers


def _by_rows_of_a_node(
    option: ShardingOption, topology: Topology, rows: int
) -> tuple[Float64s, Float64s, Float64s]:
    """Count the same of a table whose rows are spread over one node.

    It is `_by_rows` within the node that holds the table, then between the nodes.
    """
    size, local = topology.world_size, len(option.shards)
    dim, nodes = option.tensor.shape[1], max(size // local, 1)
    holders = np.isin(np.arange(size), [_rank(shard) for shard in option.shards])
    ids_of_holder = _ids(option, rows) * (local - 1) / local
    ids_of_holder += rows * LENGTH * (local - 1)
    ids_of_other = _ids(option, rows) + rows * LENGTH * local
    within = (local - 1) * rows * nodes * dim
    across = (nodes - 1) * rows * dim
    held = holders.astype(np.float64)
    ids = held * ids_of_holder + (1 - held) * ids_of_other
    return ids, held * (within + across), held * within + (1 - held) * rows * dim


def _rank(shard: Shard) -> int:
    assert shard.rank is not None
    return int(shard.rank)


_SENT = {
    "table_wise": _by_tables,
    "column_wise": _by_tables,
    "table_column_wise": _by_tables,
    "row_wise": _by_rows,
    "table_row_wise": _by_rows_of_a_node,
}
