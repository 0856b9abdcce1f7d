"""A run without any table: numbers alone go through every stage and are served."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import REPOSITORY, on_ranks
from trained_run import make_stages

from torchrec_adrec.config.data import MovieLabConfig
from torchrec_adrec.config.run import EvaluationConfig, load_config
from torchrec_adrec.data.adapters import movie_lab
from torchrec_adrec.evaluation.baselines import baselines
from torchrec_adrec.evaluation.funnel.report import evaluate_funnel
from torchrec_adrec.schema import Schema
from torchrec_adrec.serve.recommender import Recommender

SIZES = "data.movie_lab={rows: 6000, users: 200, movies: 100}"
STEPS = (
    *("train.batch_size=256", "train.epochs=2", "train.evaluate_every=18"),
    *("recommend.candidates=40", "train.checkpoint_every=18"),
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped config, with fewer rows and steps."""
    out = tmp_path_factory.mktemp("lab") / "run"
    config = load_config(REPOSITORY / "configs/movie_lab.yaml", [SIZES, *STEPS])
    make_stages(out, config)
    return out


def test_it_learns_and_stays_below_the_law(lab: Path, tmp_path: Path) -> None:
    schema = Schema.load(lab / "data/schema.json")
    assert not schema.bags and len(schema.dense) == 25
    law = baselines(lab / "data", tmp_path)["truth"]["test"]["auc"]
    for task in ("retrieval", "ranking"):
        metrics = json.loads((lab / task / "metrics.json").read_text())
        assert 0.6 < metrics["test"]["click"]["auc"] < law + 0.02


def test_a_user_of_numbers_is_served(lab: Path) -> None:
    users = json.loads((lab / "data/example_users.json").read_text())
    assert set(users[0]) == set(movie_lab.USER_NUMBERS)
    recommender = Recommender.load(lab)
    one, other = (recommender.recommend(user, top=5) for user in users[:2])
    ids = [answer.ads["ad_id"].to_list() for answer in (one, other)]
    assert len(ids[0]) == len(set(ids[0])) == 5 and ids[0] != ids[1]
    assert one.ads["click"].is_sorted(descending=True)


def test_its_funnel_is_judged_by_clicks(lab: Path) -> None:
    """There is the p(click) of the rows, and no law for what was not shown."""
    settings = EvaluationConfig(funnel_users=20)
    report = evaluate_funnel(lab, Recommender.load(lab), settings, 0)
    assert report["protocol"]["worth"].startswith("share of the user's clicked ads")
    assert report["losses"]["total"]["mean"] > 0


def test_numbers_alone_are_trained_by_two_ranks(lab: Path, tmp_path: Path) -> None:
    """TorchRec's pipeline finds no table to exchange; the towers learn all the same."""
    run = tmp_path / "run"
    run.mkdir()
    shutil.copytree(lab / "data", run / "data")
    shipped = ("--config", REPOSITORY / "configs/movie_lab.yaml", SIZES, *STEPS)
    done = on_ranks(2, "train", "retrieval", "--out", run, *shipped)
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = json.loads((run / "retrieval/metrics.json").read_text())
    assert 0.6 < metrics["test"]["click"]["auc"] < 0.85


def test_the_law_is_that_of_the_rows(tmp_path: Path) -> None:
    """Fails when rows and truth differ in order, or the law has another strength."""
    movie_lab.write(MovieLabConfig(), 0, tmp_path)
    rows = pl.read_parquet(tmp_path / movie_lab.ROWS)
    p_click = pl.read_parquet(tmp_path / movie_lab.TRUTH)["p_click"].to_numpy()
    click = rows["click"].to_numpy()
    order = np.argsort(p_click)
    for part in np.array_split(order, 10):
        assert click[part].mean() == pytest.approx(p_click[part].mean(), abs=0.02)
    ranks = np.empty(len(order))
    ranks[order] = np.arange(len(order))
    clicks = click.sum()
    lower = ranks[click == 1].sum() - clicks * (clicks - 1) / 2
    assert lower / (clicks * (len(click) - clicks)) == pytest.approx(0.825, abs=0.015)
    pairs = rows.select(movie_lab.USER, movie_lab.MOVIE_NUMBERS[0])
    assert pairs.n_unique() == len(rows) == 60_000


def test_more_rows_than_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="make 20000 pairs, found 20001 rows"):
        MovieLabConfig(rows=20_001, users=200, movies=100)
