"""Matrix factorisation by BPR from positives alone, judged on the whole catalog."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from raw_data import prepare_table

from torchrec_adrec.config.run import load_config
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.evaluation.catalog_judge import CatalogJudge
from torchrec_adrec.evaluation.known_ads import ads_of_histories
from torchrec_adrec.schema import AD_ID, Schema
from torchrec_adrec.training import step_runner
from torchrec_adrec.training.trainer import Trainer

GROUPS, USERS, ITEMS, TAKEN = 4, 20, 15, 12
TABLE: dict[str, Any] = {
    "labels": {"click": {"positives_only": True, "negatives": 0}},
    "time": {"column": "ts", "kind": "number"},
    "user_id": "uid",
    "user": {"city": "text", "uid": "text", "history": {"of": "item", "length": TAKEN}},
    "ad": {"item": "text", "price": "number"},
    "ad_id": "item",
}
MF = (
    "retrieval={hidden: [], projection: false, embedding_dim: 8, output_dim: 8}",
    "retrieval={similarity: dot, score_bias: true, click_bias: false}",
    "retrieval={features: [uid, item], alpha: 0, contrast: bpr, temperature: 1}",
    "retrieval={in_batch_negatives: false, uniform_negatives: 32}",
    "retrieval.judge=ndcg@10",
    "retrieval.optimizer.tables_lr=0.2",
    "train={batch_size: 64, epochs: 5, evaluate_every: 10, health_every: 0}",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four groups of users, each of whom took most items of his group alone."""
    rng = np.random.default_rng(0)
    pairs = [
        (f"u{group}.{user}", f"i{group}.{item}")
        for group in range(GROUPS)
        for user in range(USERS)
        for item in rng.permutation(ITEMS)[:TAKEN]
    ]
    users, items = zip(*pairs, strict=True)
    rows = pl.DataFrame({"uid": users, "item": items, "ts": range(len(pairs))})
    rows = rows.with_columns(
        # Read in the place of the user it would be of no use.
        city=pl.col("ts").mod(2).cast(pl.String),
        price=pl.col("item").str.len_chars(),
    )
    folder = tmp_path_factory.mktemp("mf") / "data"
    prepare_table(*(folder, rows, TABLE), split={"by": "leave_one_out"}, min_count=1)
    return folder


def weights(model: Any, side: str, feature: str) -> np.ndarray:
    """The whole table of a feature, on one rank."""
    tables = model.state_dict().items()
    (value,) = (v for n, v in tables if n.endswith(f".{side}_{feature}.weight"))
    return np.asarray(value.local_shards()[0].tensor)


def test_it_learns_from_positives_alone_and_stops_at_the_best(
    data: Path, process: Process, tmp_path: Path
) -> None:
    config = load_config(None, MF)
    trainer = Trainer("retrieval", config, process, data, tmp_path)
    metrics = trainer.fit()
    assert metrics["train"]["judged_by"] == "ndcg@10"
    history = dict(metrics["train"]["validation"])
    print(history)
    # Five items of the group are left: a random order of these gives 0.59.
    assert history[10] < 0.45 < 0.55 < max(history.values())
    best = max(history, key=lambda step: history[step])
    assert metrics["checkpoint"]["step"] == best
    # Nothing can be told of clicks without rows that are none.
    assert np.isnan(metrics["test"]["click"]["auc"])
    assert json.loads((tmp_path / "metrics.json").read_text())["test"]
    _check_judge(trainer, history[best])


def test_attention_over_one_table_learns_from_positives_alone(
    data: Path, process: Process, tmp_path: Path
) -> None:
    """With tables of float16, activations computed again, and the same judge."""
    settings = (
        "retrieval={features: [history, item], score_bias: false, temperature: 0.3}",
        "retrieval={tables_precision: float16, history: {encoder: attention}}",
        "train.checkpoint_activations=true",
    )
    config = load_config(None, [*MF, *settings])
    trainer = Trainer("retrieval", config, process, data, tmp_path)
    metrics = trainer.fit()
    history = dict(metrics["train"]["validation"])
    print(history)
    assert max(history.values()) > 0.55
    table = weights(trainer.model, "ad", "item")
    assert table.dtype == np.float16 and table.shape == (GROUPS * ITEMS + 2, 8)
    judge = CatalogJudge(data, trainer.schema, config, process)
    best = metrics["checkpoint"]["step"]
    assert judge.figures(trainer.model)["ndcg@10"] == pytest.approx(history[best])


def _check_judge(trainer: Trainer, expected: float) -> None:
    """The figure is that of plain inner products of rows of two tables."""
    data, schema = trainer.data, trainer.schema
    clicks = pl.concat(map(pl.read_parquet, sorted((data / "valid").glob("*"))))
    catalog = load_catalog(data)
    user = weights(trainer.model, "user", "uid")[clicks["uid"]]
    item = weights(trainer.model, "ad", "item")[catalog["item"]]
    scores = user[:, :-1] @ item[:, :-1].T + item[:, -1]
    histories = clicks.select(f"history:{i}" for i in range(TAKEN)).to_numpy()
    known = (histories[:, :, None] == catalog["item"].to_numpy()).any(axis=1)
    clicked = np.searchsorted(catalog[AD_ID], clicks[AD_ID])
    targets = scores[np.arange(len(scores)), clicked]
    scores[known] = -np.inf
    ranks = (scores > targets[:, None]).sum(axis=1) + 1
    gains = np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0)
    assert gains.mean() == pytest.approx(expected, abs=1e-6)
    judge = CatalogJudge(data, schema, trainer.config, trainer.process)
    assert judge.figures(trainer.model)["ndcg@10"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("task", "changed", "message"),
    [
        ("retrieval", "retrieval.alpha=0.9", "weighs a loss of both classes"),
        ("ranking", "retrieval.alpha=0", "a ranker has nothing to learn"),
        ("retrieval", "retrieval.features=[uid, itm]", "itm are no features"),
        ("retrieval", "retrieval.features=[uid]", "no feature of the ad"),
        ("retrieval", "retrieval.features=[uid, item, price]", "only a layer"),
    ],
)
def test_what_cannot_be_learnt_or_built_is_refused(
    task: str,
    changed: str,
    message: str,
    data: Path,
    process: Process,
    tmp_path: Path,
) -> None:
    config = load_config(None, [*MF, "train.evaluate_every=0", changed])
    with pytest.raises(ConfigError, match=message):
        Trainer(task, config, process, data, tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.evaluate_every=5", "retrieval.alpha=0"], "judge=ndcg@10"),
        (["retrieval.score_bias=true"], "set similarity to dot"),
        (["retrieval.projection=false"], "set hidden to"),
        (
            [
                "retrieval={projection: false, hidden: [], output_dim: 16}",
                "retrieval.fusion=gated",
            ],
            "fusion gated needs projection",
        ),
        (
            [
                "data.adapter=table",
                "data.table={labels: {click: {positives_only: true, negatives: 0}},"
                " user: {u: text}, ad: {i: text}, user_id: u}",
            ],
            "set retrieval.alpha=0",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, settings)


def test_what_histories_hold_is_excluded_wherever_it_stands_in_the_catalog(
    data: Path,
) -> None:
    schema = Schema.load(data / "schema.json")
    catalog = load_catalog(data)
    rows = pl.concat(map(pl.read_parquet, sorted((data / "test").glob("*"))))[:3]
    excluded = ads_of_histories(rows, catalog, schema)
    assert excluded is not None
    for i in range(len(rows)):
        ids = set(rows.select("^history:.*$").row(i)) - {-1}
        positions = excluded.positions[excluded.starts[i] : excluded.starts[i + 1]]
        assert set(catalog["item"].gather(positions)) == ids
        assert len(ids) == TAKEN - 1


def test_a_rank_alone_reads_the_same_features_as_torchrec(
    data: Path, process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernels of a rank that is alone take ids by place, TorchRec takes them by
    name: of a side's features some are read alone.
    """
    settings = [*MF, "retrieval.judge=log_loss", "train.evaluate_every=0"]
    config = load_config(None, [*settings, "train.epochs=1"])
    losses = []
    for alone in (True, False):
        monkeypatch.setattr(step_runner, "can_be_alone", lambda *_, a=alone: a)
        folder = tmp_path / str(alone)
        folder.mkdir()
        trainer = Trainer("retrieval", config, process, data, folder)
        losses.append(trainer.fit()["train"]["last_step_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
