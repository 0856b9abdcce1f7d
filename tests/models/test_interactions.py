"""What the interaction models are there for: what no sum over features can learn."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

from torchrec_adrec.config.run import load_config
from torchrec_adrec.config.train import RankingConfig
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.models.rankers.deepfm import pairwise
from torchrec_adrec.models.rankers.ranker import Ranker
from torchrec_adrec.models.rankers.registry import RANKERS, build_ranker
from torchrec_adrec.schema import DenseFeature, Label, Schema, Side, SparseFeature

SCHEMA = Schema(
    dense=(DenseFeature(name="age", side=Side.USER, source="age"),),
    sparse=(
        SparseFeature(name="taste", side=Side.USER, source="taste", num_embeddings=6),
        SparseFeature(name="topic", side=Side.AD, source="topic", num_embeddings=6),
    ),
    labels=(Label(name="click"),),
)


def rows(seed: int, count: int = 128) -> tuple[dict[str, np.ndarray], Tensor]:
    """A click is where the parities of taste and topic agree: neither tells alone."""
    rng = np.random.default_rng(seed)
    columns = {
        name: rng.integers(6, size=count).astype(np.int32)
        for name in ("taste", "topic")
    }
    columns["age"] = rng.normal(size=count).astype(np.float32)
    click = (columns["taste"] % 2) == (columns["topic"] % 2)
    return columns, torch.from_numpy(click.astype(np.float32))


def train(model: Ranker) -> float:
    """AUC on rows that training did not show."""
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    for step in range(120):
        columns, click = rows(step)
        logits = model(*(tower_input(columns, SCHEMA, side) for side in Side))
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(logits[:, 0], click).backward()
        optimizer.step()
    columns, click = rows(seed=10_000, count=512)
    model.eval()
    with torch.no_grad():
        logits = model(*(tower_input(columns, SCHEMA, side) for side in Side))
    return float(roc_auc_score(click, logits[:, 0]))


@pytest.mark.parametrize("name", RANKERS)
def test_only_a_sum_over_features_cannot_learn_a_pair(name: str) -> None:
    torch.manual_seed(0)
    config = RankingConfig(model=name, hidden=(32, 16), dropout=0)
    auc = train(build_ranker(SCHEMA, config, 8))
    if name == "lr":
        assert 0.4 < auc < 0.6
    else:
        assert auc > 0.95


def test_pairwise_is_the_sum_over_all_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    fields = torch.randn(4, 5, 3, generator=generator)
    pairs = [fields[:, i] * fields[:, j] for i in range(5) for j in range(i)]
    torch.testing.assert_close(pairwise(fields), torch.stack(pairs).sum(dim=0))


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="must be a multiple of heads 4"):
        load_config(
            None, ["ranking={model: finalmlp, hidden: [8, 6], heads: 4, model_dim: 8}"]
        )
