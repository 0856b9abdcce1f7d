"""What a tower does with the looked-up vectors."""

import pytest
import torch
import torch.nn.functional as F
from torchrec.sparse.jagged_tensor import KeyedTensor

from torchrec_adrec.models.tower import concat_dense, l2_normalize
from torchrec_adrec.models.two_tower import Calibration
from torchrec_adrec.modules.embeddings import regroup


@pytest.mark.parametrize("low", [False, True])
def test_l2_normalize_is_normalize_with_its_gradient(low: bool) -> None:
    """In float32, whatever autocast says."""
    torch.manual_seed(0)
    initial, weight = torch.randn(5, 8) * 3, torch.randn(5, 8)
    results = []
    for normalise in (l2_normalize, lambda vectors: F.normalize(vectors, dim=1)):
        vectors = initial.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            out = normalise(vectors)
        assert out.dtype == torch.float32
        (out * weight).sum().backward()
        results.append((out.detach(), vectors.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_a_clicks_logit_is_float32_under_autocast() -> None:
    torch.manual_seed(0)
    user, ad = torch.randn(4, 8), torch.randn(6, 8)
    head = Calibration()
    expected = head(user, ad, [])
    with torch.autocast("cpu", torch.bfloat16):
        actual = head(user, ad, [])
    assert torch.equal(actual, expected)


def test_a_vector_of_zeros_stays_and_has_a_gradient() -> None:
    vectors = torch.zeros(1, 4, requires_grad=True)
    out = l2_normalize(vectors)
    out.sum().backward()
    assert not out.any() and vectors.grad is not None and vectors.grad.isfinite().all()


def test_vectors_are_read_by_key_and_copied_only_if_they_must_be() -> None:
    values = torch.arange(10.0).view(2, 5)
    vectors = KeyedTensor(keys=["b", "a"], length_per_key=[2, 3], values=values)
    assert regroup(vectors, ["a", "b"]).tolist() == [[2, 3, 4, 0, 1], [7, 8, 9, 5, 6]]
    assert regroup(vectors, ["b", "a"]).data_ptr() == values.data_ptr()


def test_no_dense_features_cost_no_copy() -> None:
    vectors, dense = torch.randn(2, 3), torch.randn(2, 1)
    assert concat_dense(vectors, dense[:, :0]) is vectors
    assert torch.equal(concat_dense(vectors, dense), torch.cat([vectors, dense], dim=1))
