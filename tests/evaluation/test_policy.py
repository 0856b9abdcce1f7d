"""The served lists judged by a log whose propensities are those of its law."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from torchrec_adrec.config.run import EvaluationConfig
from torchrec_adrec.data.prepare.held_out_users import FILE, OF_ROWS, TEST_ROW
from torchrec_adrec.errors import ConfigError, DataError
from torchrec_adrec.evaluation.attainable import KnownRows
from torchrec_adrec.evaluation.funnel.policy import evaluate_off_policy
from torchrec_adrec.evaluation.funnel.requests import Requests
from torchrec_adrec.runtime.files import HASHES, save_hashes, sha256
from torchrec_adrec.schema import AD_ID, PROPENSITY
from torchrec_adrec.serve.recommender import Recommender

SETTINGS = EvaluationConfig(min_effective_rows=1)


@pytest.fixture(scope="module")
def recommender(run: Path) -> Recommender:
    return Recommender.load(run)


@pytest.fixture(scope="module")
def logged(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's data, with the propensities that its law has."""
    out = tmp_path_factory.mktemp("policy")
    shutil.copytree(run / "data", out / "data")
    known = KnownRows.of(out / "data")
    shown, weight = known.truth, known.log.weight
    group = known.world.users.group[shown["user"].to_numpy()]
    born = known.world.ads.birth[None] <= shown["time"].to_numpy()[:, None]
    share = np.where(born, weight[group], 0)
    p = share[np.arange(len(shown)), shown["ad"].to_numpy()] / share.sum(axis=1)
    (part,) = (out / "data/test").glob("*.parquet")
    rows = pl.read_parquet(part).with_columns(pl.Series(PROPENSITY, p))
    rows.write_parquet(part)
    users = out / "data" / FILE
    kept = pl.read_parquet(users).with_columns(pl.lit(True).alias(OF_ROWS))
    kept.write_parquet(users)
    hashes = json.loads((out / "data" / HASHES).read_text())
    save_hashes(out / "data", hashes | {FILE: sha256(users)})
    return out


def test_weights_are_those_of_single_requests(
    logged: Path, recommender: Recommender
) -> None:
    report = evaluate_off_policy(logged, recommender, SETTINGS, 0)
    test = pl.read_parquet(logged / "data/test/*.parquet")
    requests = Requests.draw(logged / "data", recommender.encoder, 5_000, 0, OF_ROWS)
    weight, reward = [], []
    for row, user in zip(requests.rows.tolist(), requests.users(), strict=True):
        impression: dict[str, Any] = test.row(row, named=True)
        served = recommender.recommend(user).ads[AD_ID].to_list()
        is_served = impression[AD_ID] in served
        weight.append(is_served / 10 / impression[PROPENSITY])
        reward.append(impression["click"])
    expected = np.mean(np.array(weight) * reward)
    assert report["ips"]["mean"] == pytest.approx(expected)
    assert report["rows_in_lists"] == np.count_nonzero(weight) > 0
    assert report["protocol"]["rows"] == len(requests)
    assert set(requests.rows) == set(pl.read_parquet(logged / "data" / FILE)[TEST_ROW])
    saved = json.loads((logged / "funnel/off_policy.json").read_text())
    assert saved == json.loads(json.dumps(report))


def test_too_few_effective_rows_are_refused(
    logged: Path, recommender: Recommender
) -> None:
    settings = EvaluationConfig(min_effective_rows=5_000)
    with pytest.raises(DataError, match=r"effective rows of .* at least 5000"):
        evaluate_off_policy(logged, recommender, settings, 0)


def test_a_log_without_propensities_is_refused(
    run: Path, recommender: Recommender
) -> None:
    with pytest.raises(ConfigError, match=r"data\.table\.propensity"):
        evaluate_off_policy(run, recommender, SETTINGS, 0)
