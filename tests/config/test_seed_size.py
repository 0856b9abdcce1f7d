"""The large ranker is as large as its configurations promise, and it runs."""

from pathlib import Path

import pytest
import torch
from ranking_rows import SCHEMA, columns_of

from torchrec_adrec.config.run import load_config
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.models.rankers.registry import build_ranker
from torchrec_adrec.modules.attention import OneWayLayer
from torchrec_adrec.schema import Side

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("data", ["demo", "criteo_kaggle"])
def test_it_has_the_size_that_was_asked_for(data: str) -> None:
    config = load_config(CONFIGS / f"{data}_seed_size.yaml")
    ranker = build_ranker(SCHEMA, config.ranking, config.retrieval.embedding_dim)
    layers = [m for m in ranker.modules() if isinstance(m, OneWayLayer)]
    assert len(layers) == 3
    for layer in layers:
        assert layer.heads == 8 and layer.attention_out.weight.shape == (256, 256)
        assert layer.feedforward[1].weight.shape == (1024, 256)
    sides = (tower_input(columns_of(side, 3), SCHEMA, side) for side in Side)
    with torch.inference_mode():
        assert ranker.eval()(*sides).isfinite().all()
