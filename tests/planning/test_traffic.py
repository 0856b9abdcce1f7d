"""Bytes sent, counted by hand: a table of 8 columns, two ids a row, 10 rows a rank."""

import numpy as np
import pytest
import torch
from torch import nn
from torchrec.distributed.planner import ParameterConstraints
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from torchrec_adrec.distributed.planner import TablePlan, plan_tables
from torchrec_adrec.distributed.sharders import Sharder
from torchrec_adrec.planning.cluster import gpus, of_size
from torchrec_adrec.planning.traffic import traffic

ROWS, DIM, IDS = 10, 8, 2.0
ID_BYTES, BAG = ROWS * 2 * 8, ROWS * 4  # all ids of a rank; the lengths of its bags
VECTORS = ROWS * DIM * 4


def plan(kind: str, per_node: int, nodes: int) -> TablePlan:
    table = EmbeddingBagConfig(
        name="t", num_embeddings=64, embedding_dim=DIM, feature_names=["f"]
    )
    model = nn.ModuleDict(
        {"tables": EmbeddingBagCollection(tables=[table], device=torch.device("meta"))}
    )
    one = ParameterConstraints(
        sharding_types=[kind],
        compute_kernels=["fused"],
        min_partition=4,
        pooling_factors=[IDS],
    )
    cluster = of_size(gpus()["A100-40GB"], per_node, nodes, "")
    return plan_tables(model, [Sharder()], cluster.topology(), {"t": one}, ROWS)


@pytest.mark.parametrize(
    ("kind", "ids", "vectors", "gradients"),
    [
        # Three ranks send to the one that holds it, which sends three times back.
        ("table_wise", [0] + [ID_BYTES + BAG] * 3, [3 * VECTORS, 0, 0, 0], 3),
        # Two slices on two ranks: ids twice, half of each vector from each.
        (
            "column_wise",
            [ID_BYTES + BAG] * 2 + [2 * (ID_BYTES + BAG)] * 2,
            [3 * VECTORS / 2, 3 * VECTORS / 2, 0, 0],
            3,
        ),
        # Every rank holds a quarter: three quarters of the ids, sums of all ranks.
        ("row_wise", [ID_BYTES * 3 / 4 + 3 * BAG] * 4, [3 * VECTORS] * 4, 12),
    ],
)
def test_one_node(
    kind: str, ids: list[float], vectors: list[float], gradients: int
) -> None:
    sent = traffic(plan(kind, 4, 1), ROWS, 0, 0, "fp32")
    assert sorted(sent.ids) == sorted(ids)
    assert sorted(sent.vectors) == sorted(vectors)
    assert sent.gradients.sum() == gradients * VECTORS


def test_rows_of_a_node() -> None:
    """Two nodes of two: sums within the node that holds it, then across."""
    sent = traffic(plan("table_row_wise", 2, 2), ROWS, 0, 0, "fp32")
    holder, other = ID_BYTES / 2 + BAG, ID_BYTES + 2 * BAG
    assert sorted(sent.ids) == [holder, holder, other, other]
    assert sorted(sent.vectors) == [0, 0, 3 * VECTORS, 3 * VECTORS]
    assert sorted(sent.gradients) == [VECTORS, VECTORS, 2 * VECTORS, 2 * VECTORS]


def test_half_precision_halves_the_vectors_alone() -> None:
    one = plan("row_wise", 4, 1)
    whole, half = (traffic(one, ROWS, 0, 0, qcomm) for qcomm in ("fp32", "fp16"))
    assert (half.vectors * 2 == whole.vectors).all()
    assert (half.gradients == whole.gradients).all() and (half.ids == whole.ids).all()


def test_what_is_not_tables() -> None:
    sent = traffic(plan("table_wise", 4, 1), ROWS, 1000, 16, "fp32")
    assert np.allclose(sent.dense, 2 * 3 / 4 * 1000 * 4)
    # Forward and backward: 16 floats of 10 rows to three others; ids and log_q once.
    assert np.allclose(sent.ads, 3 * ROWS * (2 * 16 * 4 + 12))
