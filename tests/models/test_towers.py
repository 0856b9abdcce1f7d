"""What the towers' vectors are made of."""

import numpy as np
import pytest
import torch
from torch import Tensor

from torchrec_adrec.config.train import RetrievalConfig
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.models.tower import BiasTower, Tower
from torchrec_adrec.models.two_tower import TwoTower
from torchrec_adrec.schema import (
    DenseFeature,
    Label,
    Schema,
    Side,
    SparseFeature,
    Statistic,
)

RATE = Statistic(label="click", strength=10)
SCHEMA = Schema(
    # A statistic before a plain number: what is left out is no tail of the columns.
    dense=(
        DenseFeature(name="age", side=Side.USER, source="age"),
        DenseFeature(
            name="city.click.10", side=Side.USER, source="city", statistic=RATE
        ),
        DenseFeature(name="price", side=Side.USER, source="price"),
    ),
    sparse=(
        SparseFeature(name="city", side=Side.USER, source="city", num_embeddings=4),
        SparseFeature(name="item", side=Side.AD, source="item", num_embeddings=4),
    ),
    labels=(Label(name="click"),),
)
ROWS = 3


def gradient(head: torch.nn.Module, width: int) -> Tensor:
    """Of the output with respect to each number, (3,), in absolute value."""
    torch.manual_seed(0)
    dense = torch.randn(ROWS, len(SCHEMA.dense), requires_grad=True)
    output = head.eval()(torch.randn(ROWS, width), dense)
    (output * torch.randn_like(output)).sum().backward()
    assert dense.grad is not None
    return dense.grad.abs().sum(dim=0)


@pytest.mark.parametrize("statistics", [True, False])
def test_vectors_leave_statistics_out_and_biases_do_not(statistics: bool) -> None:
    torch.manual_seed(0)
    config = RetrievalConfig(statistics=statistics)
    tower = Tower(SCHEMA, Side.USER, config)
    counts = gradient(tower.head, config.embedding_dim) > 0
    assert counts.tolist() == [True, statistics, True]
    bias = BiasTower(SCHEMA, Side.USER, config)
    assert (gradient(bias.head, 4) > 0).all()


@pytest.mark.parametrize("score_bias", [False, True])
def test_without_projection_a_score_is_a_product_of_two_rows(score_bias: bool) -> None:
    """Nothing else: with one id a side the towers are matrix factorisation."""
    torch.manual_seed(0)
    config = RetrievalConfig(
        embedding_dim=4,
        output_dim=4,
        hidden=(),
        projection=False,
        features=("city", "item"),
        similarity="dot",
        score_bias=score_bias,
        click_bias=False,
    )
    towers = TwoTower(SCHEMA, config)
    dense = np.ones(3, dtype=np.float32)
    columns = dict.fromkeys(("age", "city.click.10", "price"), dense)
    columns |= {"city": np.array([1, 2, 3]), "item": np.array([3, 0, 3])}
    users, ads, _ = towers.train()(
        *(tower_input(columns, SCHEMA, side) for side in Side)
    )
    rows = dict(towers.named_parameters())
    tables = "tower.tables.embedding_bags"
    user = rows[f"user_{tables}.user_city.weight"][[1, 2, 3]]
    ad = rows[f"ad_{tables}.ad_item.weight"][[3, 0, 3]]
    expected = user @ ad.T
    if score_bias:
        expected = user[:, :-1] @ ad[:, :-1].T + ad[:, -1]
    torch.testing.assert_close(users @ ads.T, expected)
    assert len(rows) == 4  # and the scale and bias of the click's logit
