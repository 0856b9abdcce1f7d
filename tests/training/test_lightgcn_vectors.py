"""Towers that start from LightGCN's vectors, or learn to resemble them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from raw_data import prepare_table
from typer.testing import CliRunner

from torchrec_adrec.cli.app import app
from torchrec_adrec.config.run import Config, load_config
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.data.keys import keys
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import AdRecError, ManifestError
from torchrec_adrec.evaluation.classics.interactions import Interactions
from torchrec_adrec.evaluation.classics.methods import METHODS
from torchrec_adrec.export import lightgcn
from torchrec_adrec.index.manifest import vectors_in
from torchrec_adrec.runs.stages import RETRIEVAL, _settings
from torchrec_adrec.runtime.files import write_hashes
from torchrec_adrec.tasks.retrieval import RetrievalLoss
from torchrec_adrec.training.start_tables import _told_apart
from torchrec_adrec.training.trainer import Trainer

GROUPS, USERS, ITEMS, TAKEN, DIM = 3, 12, 10, 8, 8
NEW = "i9.9"  # an item that no training row has
TABLE: dict[str, Any] = {
    "labels": {"click": {"positives_only": True, "negatives": 0}},
    "time": {"column": "ts", "kind": "number"},
    "user_id": "uid",
    "user": {"city": "text", "uid": "text", "history": {"of": "item", "length": 5}},
    "ad": {"item": "text", "price": "number"},
    "ad_id": "item",
}
TOWERS = (
    f"retrieval={{hidden: [], projection: false, embedding_dim: {DIM}}}",
    f"retrieval={{output_dim: {DIM}, click_bias: false, features: [uid, item]}}",
    "retrieval={alpha: 0, temperature: 0.3, uniform_negatives: 16}",
    "retrieval.optimizer.tables_lr=0.2",
    "train={batch_size: 32, epochs: 4, health_every: 0, dead_model: warn}",
)
Named = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Groups of users, each of whom took most items of his group, and their vectors."""
    rng = np.random.default_rng(0)
    pairs = [
        (f"u{group}.{user}", f"i{group}.{item}")
        for group in range(GROUPS)
        for user in range(USERS)
        for item in rng.permutation(ITEMS)[:TAKEN]
    ]
    pairs[-1] = (pairs[-1][0], NEW)
    users, items = zip(*pairs, strict=True)
    rows = pl.DataFrame({"uid": users, "item": items, "ts": range(len(pairs))})
    rows = rows.with_columns(
        city=pl.col("ts").mod(2).cast(pl.String), price=pl.col("item").str.len_chars()
    )
    out = tmp_path_factory.mktemp("gcn")
    prepare_table(
        *(out / "data", rows, TABLE), split={"by": "leave_one_out"}, min_count=1
    )
    source = {"adapter": "table", "raw": [str(out / "data.csv")], "table": TABLE}
    settings = {"data": source, "retrieval": {"embedding_dim": DIM, "alpha": 0}}
    (out / "config.yaml").write_text(json.dumps(settings))
    done = CliRunner().invoke(app, ["lightgcn", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "36 users and 30 ads with training clicks, 8 numbers each" in done.output
    return out


def kept(run: Path) -> tuple[Named, Named]:
    """The vectors that were written, by the raw names of users and items."""
    catalog = load_catalog(run / "data")
    items = dict(catalog.select("ad_id", "raw_item").iter_rows())
    users = [f"u{group}.{user}" for group in range(GROUPS) for user in range(USERS)]
    names = dict(zip(keys(pl.Series(users)).tolist(), users, strict=True))
    files = (("users", "user_key", names), ("ads", "ad_id", items))
    tables = [pq.read_table(run / f"lightgcn/{file}.parquet") for file, *_ in files]
    return tuple(  # type: ignore[return-value]
        {named[i]: v for i, v in zip(t[key].to_pylist(), vectors_in(t), strict=True)}
        for t, (_, key, named) in zip(tables, files, strict=True)
    )


def table_rows(trainer: Trainer, run: Path, table: str, names: list[str]) -> np.ndarray:
    """The rows of a feature's table, in the order of raw values."""
    feature = table.partition("_")[2]
    vocabulary = pl.read_parquet(run / f"data/vocabulary/{feature}.parquet")
    ids = dict(vocabulary.select("key", "id").iter_rows())
    tables = trainer.model.state_dict().items()
    (weight,) = (v for n, v in tables if n.endswith(f".{table}.weight"))
    rows = [ids[key] for key in keys(pl.Series(names)).tolist()]
    return np.array(weight.local_shards()[0].tensor)[rows]


def trainer_of(run: Path, folder: Path, process: Process, *settings: str) -> Trainer:
    config = load_config(None, [*TOWERS, *settings])
    folder.mkdir(exist_ok=True)
    return Trainer("retrieval", config, process, run / "data", folder)


def start_from(run: Path) -> str:
    return f"retrieval.start_from={run / 'lightgcn'}"


def teacher(run: Path, **settings: object) -> str:
    block = {"vectors": str(run / "lightgcn"), **settings}
    return f"retrieval.teacher={json.dumps(block)}"


def test_vectors_are_those_of_training_clicks_alone(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other validation and test clicks leave them as they are, to the bit."""
    one = {"lightgcn": replace(METHODS["lightgcn"], grid=({"epochs": 2},))}
    monkeypatch.setattr(lightgcn, "METHODS", one)
    clicks = Interactions.load(run / "data")
    held = {"valid": clicks.splits["test"], "test": clicks.splits["valid"]}
    other = replace(clicks, splits={**clicks.splits, **held})
    first, second = (lightgcn._fit(c, DIM, 0)[0] for c in (clicks, other))
    assert np.array_equal(first.users, second.users)
    assert np.array_equal(first.ads, second.ads)
    users, items = kept(run)
    assert len(users) == GROUPS * USERS and len(items) == GROUPS * ITEMS
    assert NEW not in items
    # They know the groups: an item is nearest to others of its own.
    names, vectors = list(items), np.stack(list(items.values()))
    nearest = (vectors @ vectors.T - 2 * np.eye(len(names))).argmax(axis=1)
    assert all(names[i][:2] == names[j][:2] for i, j in enumerate(nearest))


def test_a_second_call_keeps_what_is_there(run: Path) -> None:
    before = (run / "lightgcn/hashes.json").stat().st_mtime_ns
    source = lightgcn.keep_lightgcn(run / "data", run / "lightgcn", DIM, 0)
    assert source["ads"] == GROUPS * ITEMS
    assert (run / "lightgcn/hashes.json").stat().st_mtime_ns == before


def test_tables_start_with_the_vectors_of_their_ids(
    run: Path, tmp_path: Path, process: Process, caplog: pytest.LogCaptureFixture
) -> None:
    features = "retrieval={projection: true, features: null}"
    trainer = trainer_of(run, tmp_path, process, features, start_from(run))
    before = table_rows(trainer, run, "ad_item", ["i0.0"])
    with caplog.at_level("INFO"):
        assert trainer.checkpoints.restore() == 0
    users, items = kept(run)
    for table, vectors in (
        ("ad_item", items),
        ("user_history", items),
        ("user_uid", users),
    ):
        rows = table_rows(trainer, run, table, list(vectors))
        assert np.array_equal(rows, np.stack(list(vectors.values()))), table
    assert "ad_item: 30 of 32 rows start with vectors of" in caplog.text
    assert "user_uid: 36 of 38 rows" in caplog.text
    fresh = trainer_of(run, tmp_path, process, features)
    assert np.array_equal(before, table_rows(fresh, run, "ad_item", ["i0.0"]))
    # Ids 0 and 1, missing and unknown, and the other tables begin as without it.
    for name, value in trainer.model.state_dict().items():
        if not hasattr(value, "local_shards"):
            continue
        one, other = (
            m.state_dict()[name].local_shards()[0].tensor
            for m in (trainer.model, fresh.model)
        )
        same = slice(2) if "item" in name or "uid" in name or "hist" in name else ...
        assert np.array_equal(one[same], other[same]), name


def test_a_table_that_attention_reads_starts_in_half_floats(
    run: Path, tmp_path: Path, process: Process
) -> None:
    settings = (
        "retrieval={features: [history, item], history: {encoder: attention}}",
        "retrieval.tables_precision=float16",
    )
    trainer = trainer_of(run, tmp_path, process, *settings, start_from(run))
    trainer.checkpoints.restore()
    items = kept(run)[1]
    rows = table_rows(trainer, run, "ad_item", list(items))
    assert rows.dtype == np.float16
    assert np.array_equal(rows, np.stack(list(items.values())).astype(np.float16))


def test_a_resumed_run_does_not_start_again(
    run: Path, tmp_path: Path, process: Process
) -> None:
    settings = (start_from(run), teacher(run))
    metrics = trainer_of(run, tmp_path, process, *settings).fit()
    assert metrics["teacher"] == {
        "user": {"known": 36, "of": 36},
        "ad": {"known": 30, "of": 30},
    }
    names = list(kept(run)[1])
    resumed = trainer_of(run, tmp_path, process, *settings)
    assert resumed.checkpoints.restore() == metrics["train"]["steps"]
    rows = table_rows(resumed, run, "ad_item", names)
    started = np.stack(list(kept(run)[1].values()))
    assert (np.abs(rows - started).max(axis=1) > 1e-3).all()
    # The teacher is in no checkpoint, and whoever goes on has it all the same.
    loss = resumed.sharded.module.loss
    assert isinstance(loss, RetrievalLoss) and loss.teachers.keys() == {"user", "ad"}


@pytest.mark.parametrize("loss", ["mse", "cosine"])
def test_towers_come_near_to_the_teacher_of_the_same_ids(
    loss: str, run: Path, tmp_path: Path, process: Process
) -> None:
    taught = teacher(run, loss=loss, weight=20 * DIM if loss == "mse" else 20)
    trainer = trainer_of(run, tmp_path, process, taught)
    trainer._train(trainer.checkpoints.restore())
    users, items = kept(run)
    for table, vectors in (("user_uid", users), ("ad_item", items)):
        rows = table_rows(trainer, run, table, list(vectors))
        right = np.stack(list(vectors.values()))
        cosines = (rows * right).sum(1) / np.linalg.norm(rows, axis=1)
        print(loss, table, cosines.min(), cosines.mean())
        assert cosines.mean() > 0.9, table
        # Groups are alike within; only the very same vector is the nearest.
        assert ((rows @ right.T).argmax(axis=1) == np.arange(len(rows))).mean() > 0.5


def test_one_side_alone_can_be_taught(
    run: Path, tmp_path: Path, process: Process
) -> None:
    ads = trainer_of(run, tmp_path, process, teacher(run, sides=["ad"]))
    assert ads.taught.keys() == {"ad"} and not ads.source.names_users
    assert next(ads.source.batches(0)).user_keys.shape == (0,)
    both = trainer_of(run, tmp_path, process, teacher(run))
    batch = next(both.source.batches(0))
    names = both.data / "train"
    rows = pl.read_parquet(names / "*.parquet").select("user_key", "uid").unique()
    expected = dict(rows.iter_rows())
    uids = batch.user.sparse["uid"].values().tolist()
    assert [expected[key] for key in batch.user_keys.tolist()] == uids


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["retrieval.start_from=KEPT", "retrieval.embedding_dim=4"], "--dim 4"),
        (["retrieval.teacher.vectors=KEPT", "retrieval.output_dim=4"], "--dim 4"),
        (
            ["retrieval.start_from=KEPT", "retrieval.features=[city, price]"],
            "ad_item|none is that of the ads' or the users' ids",
        ),
        (["retrieval.start_from=nowhere"], "nowhere/hashes.json cannot be read"),
        (["retrieval={start_from: a, init_from: b}"], "not from both"),
        (["retrieval={teacher: {vectors: a}, similarity: additive}"], "constants"),
    ],
)
def test_what_does_not_fit_is_refused(
    settings: list[str], message: str, run: Path, tmp_path: Path, process: Process
) -> None:
    given = [s.replace("KEPT", str(run / "lightgcn")) for s in settings]
    with pytest.raises(AdRecError, match=message):
        given.insert(0, "retrieval.projection=true")
        trainer_of(run, tmp_path, process, *given).checkpoints.restore()


def test_vectors_of_other_rows_are_refused(
    run: Path, tmp_path: Path, process: Process
) -> None:
    """One validation click that stood in the training rows would be enough."""
    other = tmp_path / "other"
    shutil.copytree(run, other)
    report = json.loads((other / "data/report.json").read_text())
    report["splits"]["valid"]["hash"] = "0" * 16
    (other / "data/report.json").write_text(json.dumps(report))
    for setting in (start_from(run), teacher(run)):
        with pytest.raises(ManifestError, match="adrec lightgcn"):
            trainer = trainer_of(other, tmp_path / "t", process, setting)
            trainer.checkpoints.restore()


def test_a_changed_file_is_found(run: Path, tmp_path: Path, process: Process) -> None:
    """Damaged it is refused; made anew it is another stage, wherever it lies."""

    def fingerprint(folder: Path, setting: str) -> str:
        config: Config = load_config(None, [setting.replace(str(run), str(folder))])
        return _settings(RETRIEVAL, config)

    copied = tmp_path / "copied"
    shutil.copytree(run, copied)
    settings = (start_from(run), teacher(run))
    before = [fingerprint(run, setting) for setting in settings]
    assert len({*before, fingerprint(run, "seed=0")}) == 3
    assert [fingerprint(copied, setting) for setting in settings] == before
    path = copied / "lightgcn/ads.parquet"
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(ManifestError, match="damaged or changed"):
        trainer_of(run, tmp_path / "t", process, teacher(copied))
    names = ("ads.parquet", "users.parquet", "source.json")
    write_hashes(copied / "lightgcn", [copied / "lightgcn" / n for n in names])
    after = [fingerprint(copied, setting) for setting in settings]
    assert not {*after} & {*before}


def test_rows_of_rare_ids_and_of_several_ids_start_by_chance() -> None:
    vectors = np.arange(12, dtype=np.float32).reshape(6, 2)
    rows, started = _told_apart(np.array([1, 5, 7, 7, 0, 2], np.int32), vectors)
    assert rows.tolist() == [5, 2]
    assert started.tolist() == [[2, 3], [10, 11]]
