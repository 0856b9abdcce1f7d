"""What training and serving rely on, asked of every ranker model by name."""

from typing import Any, get_args

import numpy as np
import pytest
import torch
from ranking_rows import SCHEMA, columns_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchrec.sparse.jagged_tensor import KeyedTensor

from torchrec_adrec.batch import TowerInput, items_of
from torchrec_adrec.config.train import RankingConfig
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.models.rankers.base import Ensemble
from torchrec_adrec.models.rankers.ranker import Ranker
from torchrec_adrec.models.rankers.registry import RANKERS, build_ranker
from torchrec_adrec.schema import Side

ADS, DIM = 6, 8


SCRATCH = {"tables": "scratch", "field_dropout": 0.5}
VARIANTS: dict[str, dict[str, Any]] = {
    "without cross layers": {"cross_layers": 0, "layers": 2},
    "experts": {"experts": 3},
    "conditional": {"conditional": {"value": {"given": "click"}}},
    "corrected": {"negative_rate": 0.5},
    "pooled ads": {"ad_tokens": 1},
    "history tokens": {"history": "tokens", "layers": 2},
    "history tokens x 3": {"history": "tokens", "seeds": 3, **SCRATCH},
    **{f"{n} x 3": {"model": n, "seeds": 3, **SCRATCH} for n in RANKERS},
}
"""Settings that change the way from a row to its logits, and ensembles."""


@pytest.fixture(params=[*RANKERS, *VARIANTS])
def ranker(request: pytest.FixtureRequest) -> Ranker:
    """A new model, or an ensemble, whose weights are all random; to evaluate."""
    torch.manual_seed(0)
    settings = VARIANTS.get(request.param, {"model": request.param})
    config = RankingConfig.model_validate({"model_dim": 8, "heads": 2, **settings})
    model = build_ranker(SCHEMA, config, DIM)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.3)
    return model.eval()


def rows(side: Side, count: int = ADS, seed: int = 0) -> TowerInput:
    """Rows that differ."""
    return tower_input(columns_of(side, count, seed), SCHEMA, side)


def user(count: int, seed: int = 0) -> TowerInput:
    """One user, in so many equal rows."""
    columns = columns_of(Side.USER, 1, seed)
    repeated = {name: values.repeat(count) for name, values in columns.items()}
    return tower_input(repeated, SCHEMA, Side.USER)


def test_the_registry_holds_what_the_config_names() -> None:
    names = get_args(RankingConfig.model_fields["model"].annotation)
    assert tuple(RANKERS) == names


def test_a_logit_per_ad_and_label(ranker: Ranker) -> None:
    logits = ranker(rows(Side.USER, ADS), rows(Side.AD, ADS))
    assert logits.shape == (ADS, 2) and logits.dtype == torch.float32
    assert logits.std(dim=0).min() > 0.01


def test_served_is_trained(ranker: Ranker) -> None:
    """One row of the user for all ads gives what a copy for each ad gives."""
    ads = rows(Side.AD)
    served = ranker(user(1), ads)
    torch.testing.assert_close(served, ranker(user(ADS), ads), atol=1e-5, rtol=0)
    assert not torch.allclose(served, ranker(user(1, seed=1), ads), atol=1e-3)


def test_no_ad_sees_another_ad(ranker: Ranker) -> None:
    """A candidate's score does not depend on which others were retrieved."""
    columns = columns_of(Side.AD, ADS)
    before = ranker(user(1), tower_input(columns, SCHEMA, Side.AD))
    other = columns_of(Side.AD, ADS, seed=1)
    changed = {n: np.append(other[n][:-1], columns[n][-1:]) for n in columns}
    after = ranker(user(1), tower_input(changed, SCHEMA, Side.AD))
    torch.testing.assert_close(after[-1], before[-1], atol=1e-5, rtol=0)
    assert not torch.allclose(after[:-1], before[:-1], atol=1e-3)


def operations(ranker: Ranker, users: int, ads: int) -> int:
    """Operations of all matrix products of a pass, attention's too."""
    # The counter knows the products of attention only where it is not fused.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        ranker(user(users), rows(Side.AD, ads))
    return int(counter.get_total_flops())


def test_the_users_part_is_computed_once_per_request(ranker: Ranker) -> None:
    """Each further ad costs the ad's part alone, however many there are."""
    few, more, many = (operations(ranker, 1, ads) for ads in (10, 20, 30))
    each, whole_row = (more - few) / 10, operations(ranker, 20, 20) / 20
    assert many - more == more - few
    head = ranker.head.heads[0] if isinstance(ranker.head, Ensemble) else ranker.head
    assert head.shares_user == (each < whole_row)
    assert head.shares_user == (few > 10 * each)


def test_logits_are_float32_under_autocast(ranker: Ranker) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        logits = ranker(user(1), rows(Side.AD))
    assert logits.dtype == torch.float32


def test_every_input_counts_and_every_weight_has_a_gradient(ranker: Ranker) -> None:
    """A feature that no logit depends on was lost on its way."""
    ads, before = columns_of(Side.AD, ADS), ranker(rows(Side.USER), rows(Side.AD))
    for side in Side:
        for name in columns_of(side, ADS):
            inputs = {s: columns_of(s, ADS) for s in Side}
            inputs[side][name] = columns_of(side, ADS, seed=1)[name]
            batch = [tower_input(inputs[s], SCHEMA, s) for s in Side]
            assert not torch.allclose(ranker(*batch), before, atol=1e-4), name
    ranker(user(1), tower_input(ads, SCHEMA, Side.AD)).sum().backward()
    still = [n for n, w in ranker.named_parameters() if w.grad is None]
    assert not still


def test_looked_up_vectors_are_read_by_name(ranker: Ranker) -> None:
    """A sharded collection returns its keys in an order of its own."""
    inputs = rows(Side.USER), rows(Side.AD)
    turned: list[Any] = []
    items = items_of(*inputs) if ranker.reads_items else None
    for vectors in ranker.look_up(*inputs, items):
        if isinstance(vectors, dict):  # those of the one table without bags
            turned.append(vectors)
            continue
        by_name = vectors.to_dict()
        names = list(reversed(vectors.keys()))
        widths = [by_name[name].shape[1] for name in names]
        values = torch.cat([by_name[name] for name in names], dim=1)
        turned.append(KeyedTensor(names, widths, values))
    logits = ranker.dense(ranker.regroup(turned), *(side.dense for side in inputs))
    torch.testing.assert_close(logits, ranker(*inputs))
