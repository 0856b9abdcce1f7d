"""`lr` is a logistic regression: a sum of one weight per id and one per number."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ranking_rows import SCHEMA, columns_of
from sklearn.linear_model import LogisticRegression

from torchrec_adrec.config.train import RankingConfig
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.models.rankers.ranker import Ranker
from torchrec_adrec.models.rankers.registry import build_ranker
from torchrec_adrec.schema import Schema, SequenceFeature, Side

ROWS = 5


def new(schema: Schema = SCHEMA, **settings: str) -> Ranker:
    config = RankingConfig.model_validate({"model": "lr", **settings})
    return build_ranker(schema, config, 16)


def test_logits_are_the_sum_of_the_weights() -> None:
    torch.manual_seed(0)
    model = new()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_()
    columns = {side: columns_of(side, ROWS) for side in Side}
    logits = model(*(tower_input(columns[side], SCHEMA, side) for side in Side))
    weights = {n: w.detach().numpy() for n, w in model.named_parameters()}
    for row in range(ROWS):
        for t in range(len(SCHEMA.labels)):
            total = float(weights["head.bias"][t])
            for side in Side:
                values = columns[side]
                for i, number in enumerate(SCHEMA.dense_of(side)):
                    weight = weights[f"head.{side}_weight"][i, t]
                    total += float(weight * values[number.name][row])
                for f in SCHEMA.bags_of(side):
                    name = f"{side}_tables.embedding_bags.{side}_{f.name}.weight"
                    names = f.columns if isinstance(f, SequenceFeature) else [f.name]
                    ids = [values[n][row] for n in names]
                    total += float(np.mean([weights[name][i, t] for i in ids]))
            assert logits[row, t].item() == pytest.approx(total, abs=1e-5)


def test_it_learns_what_scikit_learn_learns() -> None:
    """On the same one-hot ids and numbers, without a penalty."""
    rows = 300
    columns = {side: columns_of(side, rows) for side in Side}
    inputs = [tower_input(columns[side], SCHEMA, side) for side in Side]
    hot = [columns[side][f.name] for side in Side for f in SCHEMA.dense_of(side)]
    for side in Side:
        for f in SCHEMA.bags_of(side):
            names = f.columns if isinstance(f, SequenceFeature) else [f.name]
            one_hot = [np.eye(f.num_embeddings)[columns[side][n]] for n in names]
            hot.extend(np.mean(one_hot, axis=0).T)
    features = np.stack(hot, axis=1)
    rng = np.random.default_rng(0)
    truth = features @ rng.normal(0, 1, features.shape[1])
    click = (rng.random(rows) < 1 / (1 + np.exp(-truth))).astype(np.float32)
    theirs = LogisticRegression(C=1e6, max_iter=5000, tol=1e-8).fit(features, click)
    model, target = new(), torch.from_numpy(click)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=100, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = model(*inputs)[:, 0]
        loss = F.binary_cross_entropy_with_logits(logits, target)
        loss.backward()
        return loss

    optimizer.step(closure)
    predicted = torch.sigmoid(model(*inputs)[:, 0]).detach().numpy()
    expected = theirs.predict_proba(features)[:, 1]
    np.testing.assert_allclose(predicted, expected, atol=0.01)


def test_a_new_one_says_nothing_of_any_id() -> None:
    """An id that training never showed must not move a score at serving."""
    assert all(not weight.any() for weight in new().parameters())


def test_more_labels_than_a_table_is_wide_at_least() -> None:
    labels = tuple(
        SCHEMA.labels[0].model_copy(update={"name": f"label{i}"}) for i in range(5)
    )
    model = new(SCHEMA.model_copy(update={"labels": labels}))
    sides = [tower_input(columns_of(s, ROWS), SCHEMA, s) for s in Side]
    assert model(*sides).shape == (ROWS, 5)
    tables = [w for n, w in model.named_parameters() if "embedding_bags" in n]
    assert {table.shape[1] for table in tables} == {8}


def test_frozen_tables_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"frozen with ranking\.model=lr: the tables"):
        new(tables="frozen")
