"""Attention layers that compute their activations again in backward."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from torchrec_adrec.modules.attention import OneWayLayer
from torchrec_adrec.modules.history import AttentionHistory
from torchrec_adrec.training.recompute import recompute_activations


def gradients(recomputes: bool) -> tuple[list[Tensor], int]:
    """Of all weights, under dropout; and the bytes that were kept for backward."""
    torch.manual_seed(0)
    layers = torch.nn.ModuleList(OneWayLayer(8, 2, 16, 0.5) for _ in range(2))
    if recomputes:
        assert recompute_activations(layers) == 2
    user, ad = torch.randn(32, 5, 8), torch.randn(32, 4, 8)
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Any:
        kept[value.data_ptr()] = value.nbytes
        return value

    torch.manual_seed(1)
    with saved_tensors_hooks(keep, lambda value: value):
        for layer in layers:
            user, ad = layer(user, ad)
    (user.square().sum() + ad.square().sum()).backward()
    weights = [p.grad for p in layers.parameters()]
    return [w for w in weights if w is not None], sum(kept.values())


def test_gradients_are_the_same_and_less_is_kept() -> None:
    (plain, kept), (again, kept_again) = gradients(False), gradients(True)
    assert len(plain) == len(again) > 0
    for one, other in zip(plain, again, strict=True):
        assert torch.equal(one, other)
    print(f"kept for backward: {kept} and {kept_again} bytes")
    assert kept_again < kept / 5


def test_an_encoder_of_histories_has_the_same_gradients() -> None:
    torch.manual_seed(0)
    encoder = AttentionHistory(length=3, dim=8, layers=2, heads=2, dropout=0.5)
    items = torch.randn(4, 24)
    results = []
    for recomputes in (False, True):
        if recomputes:
            assert recompute_activations(encoder) == 2
        encoder.zero_grad()
        torch.manual_seed(1)
        encoder(items).square().sum().backward()
        gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
        results.append([gradient.clone() for gradient in gradients])
    assert len(results[0]) > 0
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("is_training", [True, False])
def test_without_gradients_it_is_the_layer_itself(is_training: bool) -> None:
    layer = OneWayLayer(8, 2, 16, 0.0).train(is_training)
    rows = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    with torch.inference_mode():
        expected = layer(*rows)
        recompute_activations(layer)
        for one, other in zip(layer(*rows), expected, strict=True):
            assert torch.equal(one, other)
