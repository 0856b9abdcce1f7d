"""Members of an ensemble are models of their own, in one set of tables."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ranking_rows import SCHEMA, columns_of
from torch import Tensor

from torchrec_adrec.config.run import load_config
from torchrec_adrec.config.train import RankingConfig
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.models.rankers.base import Ensemble
from torchrec_adrec.models.rankers.ranker import Ranker
from torchrec_adrec.models.rankers.registry import build_ranker
from torchrec_adrec.schema import Side
from torchrec_adrec.tasks.ranking import RankingTask

SEEDS, DIM, ROWS = 3, 4, 32


def config(**changed: object) -> RankingConfig:
    settings = {"model": "dnn", "hidden": (8,), "dropout": 0, "tables": "scratch"}
    return RankingConfig.model_validate(settings | {"seeds": SEEDS} | changed)


def inputs(ranker: Ranker) -> tuple[list[Tensor], Tensor, Tensor]:
    """Looked-up vectors and numbers of some rows."""
    user, ad = (tower_input(columns_of(s, ROWS), SCHEMA, s) for s in Side)
    return ranker.regroup(ranker.look_up(user, ad)), user.dense, ad.dense


def alone(ensemble: Ranker, member: int) -> Ranker:
    """A single model with the weights of one member."""
    single = build_ranker(SCHEMA, config(seeds=1), DIM)
    head = ensemble.head
    assert isinstance(head, Ensemble)
    single.head.load_state_dict(head.heads[member].state_dict())
    weights = dict(ensemble.named_parameters())
    with torch.no_grad():
        for name, weight in single.named_parameters():
            if "embedding_bags" in name:
                columns = slice(member * DIM, (member + 1) * DIM)
                weight.copy_(weights[name][:, columns])
    return single


def test_the_score_is_the_mean_of_models_that_know_nothing_of_each_other() -> None:
    torch.manual_seed(0)
    ensemble = build_ranker(SCHEMA, config(), DIM)
    members = ensemble.members(*inputs(ensemble))
    for i, member in enumerate(members):
        single = alone(ensemble, i)
        torch.testing.assert_close(member, single.dense(*inputs(single)))
    torch.testing.assert_close(ensemble.dense(*inputs(ensemble)), members.mean(dim=0))
    assert (members[0] - members[1]).abs().mean() > 0.05


def rows() -> Any:
    """What the loss reads of a batch, beside its ids."""
    generator = torch.Generator().manual_seed(0)
    user, ad = (tower_input(columns_of(s, ROWS), SCHEMA, s) for s in Side)
    labels = torch.rand(ROWS, 2, generator=generator).round()
    weights = torch.rand(ROWS, generator=generator)
    return SimpleNamespace(user=user, ad=ad, labels=labels, weights=weights)


@pytest.mark.usefixtures("one_rank")
def test_each_member_is_trained_as_if_it_were_alone() -> None:
    """A loss of the mean would train them as one model in parts."""
    torch.manual_seed(0)
    task = RankingTask(SCHEMA, config(), DIM)
    head = task.model.head
    assert isinstance(head, Ensemble)
    singles = [RankingTask(SCHEMA, config(seeds=1), DIM) for _ in head.heads]
    for i, single in enumerate(singles):
        single.model = alone(task.model, i)
    for trained in (task, *singles):
        vectors, *_ = inputs(trained.model)
        trained._compute(vectors, rows()).loss.backward()
    for member, single in zip(head.heads, singles, strict=True):
        expected = single.model.head.parameters()
        for weight, other in zip(member.parameters(), expected, strict=True):
            assert weight.grad is not None
            torch.testing.assert_close(SEEDS * weight.grad, other.grad)


def test_whole_vectors_are_dropped_in_training_alone() -> None:
    torch.manual_seed(0)
    inputs_of_head: list[Tensor] = []
    ranker = build_ranker(SCHEMA, config(field_dropout=0.5, seeds=2), DIM)
    ranker.head.register_forward_pre_hook(
        lambda _, args: inputs_of_head.append(args[0])
    )
    vectors, user_dense, ad_dense = inputs(ranker)
    whole = vectors[0].view(ROWS, -1, DIM)
    for is_training in (True, False):
        ranker.train(is_training).dense(vectors, user_dense, ad_dense)
    trained, served = (part.view(ROWS, -1, DIM) for part in inputs_of_head)
    torch.testing.assert_close(served, whole)
    dropped = (trained == 0).all(dim=2)
    assert 0.4 < dropped.float().mean() < 0.6
    # Those that are left make up for it, and each member drops others.
    torch.testing.assert_close(trained[~dropped], 2 * whole[~dropped])
    of_member = dropped.view(ROWS, -1, 2)
    assert (of_member[..., 0] != of_member[..., 1]).any()


def test_new_tables_start_as_small_as_asked() -> None:
    torch.manual_seed(0)
    ranker = build_ranker(SCHEMA, config(table_init=0.01), 64)
    for name, weight in ranker.named_parameters():
        if "embedding_bags" in name:
            assert weight.std().item() == pytest.approx(0.01, rel=0.2), name


def test_tables_have_the_rankers_own_width() -> None:
    ranker = build_ranker(SCHEMA, config(embedding_dim=12), 64)
    for name, weight in ranker.named_parameters():
        if "embedding_bags" in name:
            assert weight.shape[1] == SEEDS * 12


@pytest.mark.parametrize("word", ["ranking.seeds=2", "ranking.embedding_dim=4"])
def test_what_does_not_fit_warm_tables_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="set tables to"):
        load_config(None, [word])
