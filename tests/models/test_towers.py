"""What the towers' vectors are made of."""

import numpy as np
import pytest
import torch
from torch import Tensor

from torchrec_adrec.batch import TowerInput
from torchrec_adrec.config.train import RetrievalConfig
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.models.tower import BiasTower, Tower
from torchrec_adrec.models.two_tower import TwoTower
from torchrec_adrec.modules.embeddings import NoTables
from torchrec_adrec.schema import (
    DenseFeature,
    Label,
    Schema,
    SequenceFeature,
    Side,
    SparseFeature,
    Statistic,
    VectorFeature,
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
# In a batch the vectors stand before the numbers: two of them, then those of SCHEMA.
PICTURES = tuple(
    VectorFeature(name=name, side=Side.USER, source=name, size=size)
    for name, size in (("image", 1), ("cover", 2))
)
WITH_VECTORS = SCHEMA.model_copy(update={"vectors": PICTURES})
HISTORY = SequenceFeature(
    name="seen",
    side=Side.USER,
    source="seen",
    max_length=2,
    num_embeddings=4,
    shares_ids_with="item",
)
WITH_HISTORY = SCHEMA.model_copy(update={"sequences": (HISTORY,)})
FACTORS = {"embedding_dim": 4, "output_dim": 4, "hidden": (), "projection": False}
ROWS = 3


def gradient(head: torch.nn.Module, width: int, numbers: int = 3) -> Tensor:
    """Of the output with respect to each number, in absolute value."""
    torch.manual_seed(0)
    dense = torch.randn(ROWS, numbers, requires_grad=True)
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


@pytest.mark.parametrize("fusion", ["concat", "gated"])
@pytest.mark.parametrize(
    ("names", "read"),
    [
        (("item", "cover", "price"), [0, 0, 1, 1, 1, 0, 0, 1]),
        (("item", "image", "city"), [1, 1, 0, 0, 0, 0, 0, 0]),
        (("item", "age"), [0, 0, 0, 0, 0, 1, 0, 0]),
    ],
)
def test_numbers_and_vectors_that_are_not_named_are_not_read(
    fusion: str, names: tuple[str, ...], read: list[int]
) -> None:
    """Those that are keep their places, which are of all numbers of the side."""
    config = RetrievalConfig.model_validate(
        {"embedding_dim": 4, "features": names, "fusion": fusion}
    )
    head = Tower(WITH_VECTORS, Side.USER, config).head
    width = 4 * len(head.names)
    assert head.names == [name for name in names if name == "city"]
    assert (gradient(head, width, len(read)) > 0).int().tolist() == read


def test_without_projection_vectors_and_numbers_are_refused() -> None:
    """A sum over fields of the tables would leave them out without a word."""
    for features in (("city", "item", "image"), ("city", "item", "age")):
        config = RetrievalConfig.model_validate(FACTORS | {"features": features})
        with pytest.raises(ConfigError, match=f"read {features[-1]}, numbers which"):
            Tower(WITH_VECTORS, Side.USER, config)
    config = config.model_copy(update={"features": ("city", "item")})
    Tower(WITH_VECTORS, Side.USER, config)


def test_names_of_no_feature_are_refused_and_vectors_are_features() -> None:
    config = RetrievalConfig(features=("imagee", "item"))
    with pytest.raises(ConfigError, match=r"imagee are no features .* cover, image,"):
        Tower(WITH_VECTORS, Side.USER, config)
    config = RetrievalConfig(features=("image", "item"))
    assert Tower(WITH_VECTORS, Side.USER, config).head.width == 16


def rows(side: Side) -> TowerInput:
    columns = {
        name: np.ones(ROWS, dtype=np.float32) for name in ("age", "city.click.10")
    }
    columns |= {"price": columns["age"], "city": np.array([1, 2, 3])}
    columns |= {"item": np.array([3, 0, 3])}
    columns |= {"seen:0": np.array([-1, 2, 1]), "seen:1": np.array([-1, -1, 3])}
    return tower_input(columns, WITH_HISTORY, side)


def test_a_score_of_a_history_is_a_product_with_the_items_own_row() -> None:
    """Without projection and with no other feature: as in self-attentive towers."""
    torch.manual_seed(0)
    settings = {
        "features": ("seen", "item"),
        "similarity": "dot",
        "history": {"encoder": "attention"},
        "click_bias": False,
    }
    towers = TwoTower(WITH_HISTORY, RetrievalConfig.model_validate(FACTORS | settings))
    users, ads, _ = towers.eval()(rows(Side.USER), rows(Side.AD))
    tables = [name for name, _ in towers.named_parameters() if "embeddings" in name]
    assert tables == ["ad_tower.items.embeddings.ad_item.weight"]
    table = towers.get_parameter(tables[0])
    items = torch.zeros(ROWS, 2, 4)
    items[1, 0], items[2, 0], items[2, 1] = table[2], table[1], table[3]
    encoder = towers.user_tower.head.history
    assert encoder is not None
    torch.testing.assert_close(users, encoder(items.flatten(1)))
    torch.testing.assert_close(ads, table[[3, 0, 3]])


@pytest.mark.parametrize("names", [("city", "item"), ("city", "seen", "price")])
def test_an_encoder_needs_history_and_item_among_the_features(
    names: tuple[str, ...],
) -> None:
    schema = WITH_HISTORY.model_copy(
        update={
            "dense": (*SCHEMA.dense, DenseFeature(name="x", side=Side.AD, source="x"))
        }
    )
    config = RetrievalConfig.model_validate(
        {"features": (*names, "x"), "history": {"encoder": "gru"}}
    )
    with pytest.raises(ConfigError, match=r"`retrieval.features` where that is set"):
        TwoTower(schema, config)


def test_the_table_of_items_has_the_precision_of_the_tables() -> None:
    settings = {"tables_precision": "float16", "history": {"encoder": "attention"}}
    config = RetrievalConfig.model_validate(settings)
    towers = TwoTower(WITH_HISTORY, config)
    assert {
        name: weight.dtype
        for name, weight in towers.named_parameters()
        if weight.dtype != torch.float32
    } == dict.fromkeys(
        (
            "user_tower.tables.embedding_bags.user_city.weight",
            "ad_tower.items.embeddings.ad_item.weight",
        ),
        torch.float16,
    )
    users, ads, _ = towers(rows(Side.USER), rows(Side.AD))
    assert users.dtype == ads.dtype == torch.float32


def test_a_side_without_tables_can_be_traced() -> None:
    """On several ranks TorchRec's pipeline traces past it to the tables beside it."""
    graph = torch.fx.symbolic_trace(NoTables()).graph
    assert [node.op for node in graph.nodes] == [
        "placeholder",
        "call_function",
        "output",
    ]
