"""A run that reads histories in their order, from one table, through every stage."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click_log import TABLE, log
from trained_run import make_stages, train_ranker

from torchrec_adrec.certify.certify import certify
from torchrec_adrec.certify.eager import Computed, Pairs, compute
from torchrec_adrec.config.run import load_config
from torchrec_adrec.distributed import checkpoint_files
from torchrec_adrec.distributed.process import process_group
from torchrec_adrec.modules.embeddings import table_of
from torchrec_adrec.runs.stages import RANKING, RETRIEVAL
from torchrec_adrec.serve.recommender import Recommender
from torchrec_adrec.tasks.sharded import final_checkpoint

SETTINGS = (
    "train={batch_size: 64, epochs: 2, dead_model: warn}",
    "recommend={candidates: 20, top: 5}",
    "retrieval={embedding_dim: 8, hidden: [8], output_dim: 4}",
    "retrieval.history={encoder: attention, heads: 2, layers: 2}",
    "ranking={model_dim: 8, head_dim: 8, history: tokens, blend: none}",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Towers with attention, and a ranker that begins with their table."""
    folder = tmp_path_factory.mktemp("history")
    log().write_csv(folder / "log.csv")
    data = {
        "adapter": "table",
        "raw": [str(folder / "log.csv")],
        "table": TABLE,
        "min_count": 1,
    }
    config = load_config(None, [f"data={json.dumps(data)}", *SETTINGS])
    make_stages(folder / "run", config)
    return folder / "run"


def tables(run: Path, stage: str) -> dict[str, np.ndarray]:
    """The weights of a stage's tables, without those of the biases."""
    saved = checkpoint_files.tensors(final_checkpoint(run / stage))
    return {
        table_of(name): tensor.numpy()
        for name, tensor in saved
        if name.startswith("model.") and table_of(name)
    }


def test_both_stages_have_one_table_of_the_item(run: Path) -> None:
    for stage in (RETRIEVAL.name, RANKING.name):
        names = {name for name in tables(run, stage) if "+" not in name}
        assert names == {"user_uid", "ad_item"}, stage
    of_ads = (tables(run, stage)["ad_item"] for stage in ("retrieval", "ranking"))
    towers, ranker = of_ads
    # Warm-started and trained on: near, and not a new table's.
    assert np.abs(towers - ranker).max() > 0
    assert np.corrcoef(towers.ravel(), ranker.ravel())[0, 1] > 0.5


def test_a_ranker_of_means_begins_with_that_table_twice(
    run: Path, tmp_path: Path
) -> None:
    """Its history has the item's ids, and the towers have no table of their means."""
    for stage in ("data", "retrieval"):
        shutil.copytree(run / stage, tmp_path / "run" / stage)
    frozen = ("ranking.history=mean", "ranking.tables=frozen", "train.epochs=1")
    config = load_config(run / "retrieval/config.yaml", frozen)
    with process_group("cpu") as process:
        train_ranker(tmp_path / "run", config, process)
    shared, of_ranker = tables(run, "retrieval"), tables(tmp_path / "run", "ranking")
    expected = {name: shared.get(name, shared["ad_item"]) for name in of_ranker}
    assert set(expected) == {"user_uid", "user_history", "ad_item"}
    for name, weights in of_ranker.items():
        np.testing.assert_array_equal(weights, expected[name], err_msg=name)


def users_of(run: Path) -> list[dict[str, Any]]:
    users: list[Any] = json.loads((run / "data/example_users.json").read_text())
    return users


def test_the_order_of_a_request_reaches_vectors_and_predictions(run: Path) -> None:
    """A request's list goes through the encoder that training ran."""
    served = Recommender.load(run)
    user = next(u for u in users_of(run) if len(set(u["history"])) > 1)
    turned = user | {"history": user["history"][::-1]}
    for other in (turned, user | {"history": []}):
        vectors = [served.parts.user_vector(u) for u in (user, other)]
        assert np.abs(vectors[0] - vectors[1]).max() > 1e-4
        answers = [served.recommend(u, top=5).ads for u in (user, other)]
        assert len(answers[1]) == 5
        clicks = [a.sort("ad_id")["click"].to_list() for a in answers]
        assert clicks[0] != clicks[1]


def test_it_is_certified(run: Path) -> None:
    """One rank, two, exported vectors and served scores are the same numbers."""

    def on_one(run: Path, pairs: Pairs, _ranks: int) -> Computed:
        return compute(run, pairs)

    certificate = certify(run, 4, on_one)
    failed = [c for c in certificate.comparisons if not c.passes]
    assert not failed
