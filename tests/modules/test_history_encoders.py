"""The encoders of histories: order, padding, and nothing from later items."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from torchrec_adrec.modules.history import (
    AttentionHistory,
    GRUHistory,
    HistoryEncoder,
    places_back,
)

LENGTH, DIM = 6, 8
EXACT = 1e-6  # a few roundings of numbers near 1


def encoder(kind: str, length: int = LENGTH) -> HistoryEncoder:
    torch.manual_seed(1)
    module: HistoryEncoder
    if kind == "gru":
        module = GRUHistory(length, DIM, layers=2, dropout=0.5)
    else:
        module = AttentionHistory(length, DIM, layers=2, heads=2, dropout=0.5)
    # Positions start so near to 0 that a wrong one would hardly show.
    for name, weight in module.named_parameters():
        if name in ("positions", "start"):
            nn.init.normal_(weight)
    return module.eval()


def histories(lengths: list[int], places: int = LENGTH) -> Tensor:
    """Histories of these lengths, (B, L * D), the same numbers for any L."""
    vectors = torch.randn(len(lengths), LENGTH, DIM, generator=torch.manual_seed(0))
    padded = torch.zeros(len(lengths), places, DIM)
    for row, length in enumerate(lengths):
        padded[row, :length] = vectors[row, :length]
    return padded.flatten(1)


@pytest.mark.parametrize("kind", ["attention", "gru"])
def test_the_order_and_every_item_count(kind: str) -> None:
    whole = histories([3]).view(1, LENGTH, DIM)
    swapped, shorter = whole.clone(), whole.clone()
    swapped[0, [0, 1]] = whole[0, [1, 0]]
    shorter[0, :3] = torch.cat([whole[0, 1:3], torch.zeros(1, DIM)])
    encode = encoder(kind)
    rows = torch.cat([x.flatten(1) for x in (whole, swapped, shorter)])
    one, two, three = encode(rows)
    assert (one - two).abs().max() > 1e-2
    assert (one - three).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["attention", "gru"])
def test_padding_changes_nothing(kind: str) -> None:
    """Neither more places behind a history nor longer ones beside it."""
    encode, wide = encoder(kind), encoder(kind, LENGTH + 4)
    weights: dict[str, Any] = encode.state_dict()
    if kind == "attention":
        unused = torch.full((4, DIM), 1e3)
        weights["positions"] = torch.cat([weights["positions"], unused])
    wide.load_state_dict(weights)
    lengths = [0, 1, 3, LENGTH]
    together = encode(histories(lengths))
    more = wide(histories(lengths, LENGTH + 4))
    assert (together - more).abs().max() < EXACT
    for row, history in enumerate(histories(lengths).split(1)):
        assert (encode(history) - together[row]).abs().max() < EXACT


@pytest.mark.parametrize("kind", ["attention", "gru"])
def test_a_row_without_history_has_the_learned_vector(kind: str) -> None:
    encode = encoder(kind)
    out = encode(torch.zeros(2, encode.width))
    assert torch.isfinite(out).all()
    assert torch.equal(out[0], out[1])
    assert out.abs().max() > 0
    (out * torch.randn(DIM)).sum().backward()
    assert encode.start.grad is not None and encode.start.grad.abs().min() > 0
    if kind == "gru":
        assert torch.equal(out[0], encode.start)


def outputs(encode: AttentionHistory, items: Tensor) -> Tensor:
    """Every token's output, which `encode` computes for the latest item alone."""
    present = torch.ones(items.shape[:2], dtype=torch.bool)
    tokens, allowed = encode.tokens(items, present)
    for block in encode.blocks:
        tokens = block(tokens, tokens, allowed)
    out: Tensor = encode.norm(tokens)
    return out


def test_a_later_item_never_changes_an_earlier_output() -> None:
    module = encoder("attention")
    assert isinstance(module, AttentionHistory)
    items = histories([LENGTH]).view(1, LENGTH, DIM)
    before = outputs(module, items)
    for place in range(LENGTH):
        other = items.clone()
        other[0, place] *= -1  # a norm takes no notice of a constant
        changed = (outputs(module, other) - before).abs().amax(dim=(0, 2))
        # Token 0 is the learned one, so that of a place stands one further.
        assert changed[: place + 1].max() == 0
        assert changed[place + 1 :].min() > 1e-4
    assert (module(items.flatten(1)) - before[:, -1]).abs().max() < EXACT


def test_the_gru_is_that_of_packed_sequences() -> None:
    module = encoder("gru")
    assert isinstance(module, GRUHistory)
    lengths = [1, 4, LENGTH, 2]
    flat = histories(lengths)
    packed = pack_padded_sequence(
        flat.view(len(lengths), LENGTH, DIM) * DIM**0.5,
        torch.tensor(lengths),
        batch_first=True,
        enforce_sorted=False,
    )
    start = module.start.expand(2, len(lengths), DIM).contiguous()
    _, states = module.gru(packed, start)
    assert (module(flat) - states[-1]).abs().max() < EXACT


@pytest.mark.parametrize("kind", ["attention", "gru"])
def test_dropout_is_for_training_alone(kind: str) -> None:
    encode, rows = encoder(kind), histories([4, 4])
    assert torch.equal(encode(rows), encode(rows))
    encode.train()
    assert not torch.equal(encode(rows), encode(rows))


def test_places_count_from_the_latest_item_back() -> None:
    present = torch.tensor([[True, True, False], [True, True, True], [False] * 3])
    expected = torch.tensor([[1, 0, 0], [2, 1, 0], [0, 0, 0]])
    assert torch.equal(places_back(present), expected)
