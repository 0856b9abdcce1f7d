"""A user who is a history and nothing else: through every stage, and served."""

from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from trained_run import make_stages

from torchrec_adrec.config.run import load_config
from torchrec_adrec.serve.recommender import Recommender

STEPS = (
    *("train.batch_size=256", "train.epochs=4", "retrieval.embedding_dim=8"),
    *("retrieval.output_dim=8", "retrieval.hidden=[16]", "data.sequences.length=4"),
    *("recommend.candidates=20", "ranking.model=dnn", "ranking.hidden=[16]"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped config of Beauty, on users of four tastes with fifteen items each."""
    folder = tmp_path_factory.mktemp("beauty")
    rng = np.random.default_rng(0)
    items = [u % 4 * 15 + rng.permutation(15)[:7] for u in range(240)]
    lines = (f"u{u} {' '.join(f'i{i}' for i in row)}\n" for u, row in enumerate(items))
    (folder / "a.txt").write_text("".join(lines))
    path = REPOSITORY / "configs/amazon_beauty.yaml"
    config = load_config(path, [f"data.raw={folder / 'a.txt'}", *STEPS])
    make_stages(folder / "run", config)
    return folder / "run"


def test_a_history_alone_is_served(run: Path) -> None:
    """Two histories have two answers, and who has none is answered too."""
    recommender = Recommender.load(run)
    answers = [
        recommender.recommend({"history": history}, top=5).ads["ad_id"].to_list()
        for history in ([f"i{i}" for i in range(4)], [f"i{i}" for i in range(30, 34)])
    ]
    assert answers[0] != answers[1] and len(answers[0]) == len(answers[1]) == 5
    assert len(recommender.recommend({"history": None}, top=5).ads) == 5
