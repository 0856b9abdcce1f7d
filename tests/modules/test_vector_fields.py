"""Vectors as fields, and the sum of gated fields, against sums by hand."""

import torch

from torchrec_adrec.config.train import RetrievalConfig
from torchrec_adrec.models.tower import Tower, gate_weights
from torchrec_adrec.modules.gated_sum import GatedSum
from torchrec_adrec.modules.vector_fields import VectorFields
from torchrec_adrec.schema import (
    DenseFeature,
    Label,
    Schema,
    Side,
    SparseFeature,
    VectorFeature,
)


def vector(name: str, size: int, scale: float = 1.0) -> VectorFeature:
    return VectorFeature(name=name, side=Side.AD, source=name, size=size, scale=scale)


def test_vectors_are_scaled_and_their_indicator_is_not() -> None:
    fields = VectorFields([vector("a", 2, scale=3.0), vector("b", 1)], dim=4)
    dense = torch.tensor([[1.0, 2.0, 0.0, 5.0, 0.0, 7.0], [0, 0, 1, 0, 1, 8.0]])
    (a, b), numbers = fields(dense)
    first, second = fields.project
    torch.testing.assert_close(a[0], first(torch.tensor([3.0, 6.0, 0.0])))
    torch.testing.assert_close(a[1], first(torch.tensor([0.0, 0.0, 1.0])))
    torch.testing.assert_close(b[0], second(torch.tensor([5.0, 0.0])))
    assert numbers.tolist() == [[7.0], [8.0]]
    assert set(fields.state_dict()) == {
        f"project.{i}.{name}" for i in (0, 1) for name in ("weight", "bias")
    }


def test_without_vectors_nothing_changes() -> None:
    dense = torch.rand(3, 2)
    fields, numbers = VectorFields([], dim=4)(dense)
    assert fields == [] and numbers is dense


def test_a_gated_sum_is_a_sum_of_gated_fields() -> None:
    torch.manual_seed(0)
    fusion = GatedSum(["a", "b"], ["x"], dim=3)
    torch.nn.init.normal_(fusion.gate)
    vectors, dense = torch.rand(5, 6), torch.rand(5, 1)
    gates = [fusion.weights()[name] for name in ("a", "b", "x")]
    expected = gates[0] * vectors[:, :3] + gates[1] * vectors[:, 3:]
    expected = expected + gates[2] * dense * fusion.number[0]
    torch.testing.assert_close(fusion(vectors, dense), expected)


def test_the_gates_of_a_tower_are_named_by_its_fields() -> None:
    """A statistic that the tower does not read has none."""
    schema = Schema(
        dense=(
            DenseFeature(name="age", side=Side.USER, source="age"),
            DenseFeature(name="price", side=Side.AD, source="price"),
        ),
        sparse=(
            SparseFeature(
                name="item", side=Side.AD, source="i", kind="text", num_embeddings=9
            ),
        ),
        vectors=(vector("image", 2),),
        labels=(Label(name="click"),),
    )
    config = RetrievalConfig(embedding_dim=4, hidden=(4,), output_dim=4, fusion="gated")
    towers = torch.nn.ModuleList(Tower(schema, side, config) for side in Side)
    weights = gate_weights(towers)
    assert weights["user"] == {"age": 0.5}
    assert weights["ad"] == {"item": 0.5, "image": 0.5, "price": 0.5}
    assert gate_weights(Tower(schema, Side.AD, RetrievalConfig())) == {}
