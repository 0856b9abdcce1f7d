import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torchrec_adrec.modules.attention import OneWayLayer, attend_to_both, one_way_mask

B, U, A, D, H = 3, 5, 2, 8, 2


@pytest.fixture
def layer() -> OneWayLayer:
    torch.manual_seed(0)
    return OneWayLayer(D, H, 16, dropout=0.0).eval()


@pytest.fixture
def tokens() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(B, U, D), torch.randn(B, A, D)


def test_it_is_full_attention_under_the_mask(
    layer: OneWayLayer, tokens: tuple[Tensor, Tensor]
) -> None:
    joined = torch.cat(tokens, dim=1)
    query, key, value = layer._project(joined)
    mixed = F.scaled_dot_product_attention(
        query, key, value, attn_mask=one_way_mask(U, A)
    )
    expected = joined + layer.attention_out(mixed.transpose(1, 2).flatten(2))
    expected = expected + layer.feedforward(expected)
    actual = torch.cat(layer(*tokens), dim=1)
    torch.testing.assert_close(actual, expected)


def test_the_user_never_sees_the_ad(
    layer: OneWayLayer, tokens: tuple[Tensor, Tensor]
) -> None:
    user, ad = tokens
    torch.testing.assert_close(layer(user, ad)[0], layer(user, ad + 1)[0])
    assert not torch.allclose(layer(user, ad)[1], layer(user.flip(0), ad)[1])


def test_one_user_is_shared_by_all_ads(
    layer: OneWayLayer, tokens: tuple[Tensor, Tensor]
) -> None:
    user, ad = tokens
    repeated = layer(user[:1].expand(B, -1, -1), ad)[1]
    torch.testing.assert_close(layer(user[:1], ad)[1], repeated)


def test_a_shared_user_is_attended_to_like_a_repeated_one() -> None:
    """Few own keys or many, one head or several: it is one softmax over all keys."""
    torch.manual_seed(2)
    for tokens in (1, 3):
        query, key, value = torch.randn(3, B, H, tokens, D)
        shared = torch.randn(1, H, U, D), torch.randn(1, H, U, D)
        keys, values = (
            torch.cat([x.expand(B, -1, -1, -1), y], dim=2)
            for x, y in zip(shared, (key, value), strict=True)
        )
        expected = F.scaled_dot_product_attention(query, keys, values)
        actual = attend_to_both(query, shared, (key, value))
        torch.testing.assert_close(actual, expected)
