"""The towers of a run, judged as the classics are, also on users who are new."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from classics_log import ENCODERS, LENGTH, STEPS, TABLE, TAKEN, rows
from scipy.sparse import csr_matrix
from trained_run import make_data, make_towers
from typer.testing import CliRunner

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.cli.app import app
from torchrec_adrec.config.run import load_config
from torchrec_adrec.config.train import RetrievalConfig
from torchrec_adrec.data.keys import keys
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.request import raw_users
from torchrec_adrec.distributed.process import process_group
from torchrec_adrec.errors import DataError
from torchrec_adrec.evaluation.classics import methods
from torchrec_adrec.evaluation.classics.interactions import Interactions, latest
from torchrec_adrec.evaluation.classics.new_users import (
    NewUsers,
    history_read,
)
from torchrec_adrec.evaluation.classics.protocol import (
    NewUsersError,
    RankingProtocol,
    judge,
)
from torchrec_adrec.evaluation.classics.report import (
    FIGURES,
    FOLDER,
    TOWERS,
    all_names,
)
from torchrec_adrec.evaluation.classics.towers import Towers
from torchrec_adrec.evaluation.full_catalog import held_out_clicks
from torchrec_adrec.index.manifest import load_vectors
from torchrec_adrec.schema import (
    USER_KEY,
    DenseFeature,
    Schema,
    SequenceFeature,
    Side,
    Statistic,
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each encoder, of the same rows."""
    folder = tmp_path_factory.mktemp("towers")
    rows().write_csv(folder / "rows.csv")
    data: dict[str, Any] = {"adapter": "table", "table": TABLE}
    data |= {
        "raw": [str(folder / "rows.csv")],
        "split": {"by": "leave_one_out"},
        "min_count": 1,
    }
    with process_group("cpu") as process:
        for name, features in ENCODERS.items():
            encoder = f"retrieval.history={{encoder: {name}}}"
            config = load_config(
                None, [f"data={json.dumps(data)}", *STEPS, encoder, features]
            )
            if name == "mean":
                make_data(folder / name, config)
                config.save(folder / name / "config.yaml")
            else:
                shutil.copytree(folder / "mean/data", folder / name / "data")
            make_towers(folder / name, config, process)
    return {name: folder / name for name in ENCODERS}


@pytest.fixture(params=ENCODERS)
def run(request: pytest.FixtureRequest, runs: dict[str, Path]) -> Iterator[Path]:
    yield runs[request.param]


@pytest.fixture(scope="module")
def data(runs: dict[str, Path]) -> Interactions:
    return Interactions.load(runs["mean"] / "data")


@dataclass(frozen=True)
class Exported:
    """What `adrec export` wrote of the test clicks' users, and of the ads."""

    users: Float32s
    ads: Float32s

    @classmethod
    def of(cls, run: Path, data: Interactions) -> "Exported":
        schema = Schema.load(run / "data/schema.json")
        clicks, _ = held_out_clicks(run / "data", schema, 10**6, 0)
        _, ads = load_vectors(run / "export")
        _, vectors = load_vectors(run / "export", "queries.parquet")
        users = np.zeros((len(data.users), vectors.shape[1]), dtype=np.float32)
        users[np.searchsorted(data.users, clicks[USER_KEY].to_numpy())] = vectors
        return cls(users, ads)

    def scores(self, history: csr_matrix, users: Int64s, is_new: bool) -> Float32s:
        return self.users[users] @ self.ads.T


def test_whole_histories_have_the_figures_of_the_exported_vectors(
    run: Path, data: Interactions
) -> None:
    """Fails when rows, ads or their order are others than those of the export."""
    towers, exported = Towers.load(run, data, "test"), Exported.of(run, data)
    everyone = np.arange(len(data.users))
    known = data.known("test")
    scores = exported.scores(known, everyone, False)
    assert towers.scores(known, everyone, False) == pytest.approx(scores, abs=1e-4)
    expected = judge(exported, data, RankingProtocol()).means
    assert judge(towers, data, RankingProtocol()).means == pytest.approx(expected)
    assert expected["hr@20"] > 0
    # `prepare` wrote the histories by time: the latest clicks are the very same.
    assert isinstance(towers.new_users, NewUsers)
    assert towers.new_users.as_prepared == 1
    new = judge(towers, data, RankingProtocol(history=TAKEN)).means
    if run.name == "attention":
        assert new == pytest.approx(expected)
    else:
        assert towers.scores(known, everyone, True) != pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize("length", [0, 1, 3, TAKEN])
def test_a_new_user_is_encoded_as_a_request_of_these_items(
    run: Path, data: Interactions, length: int
) -> None:
    """Fails when the order is reversed, or when the user's own id gets in."""
    towers, everyone = Towers.load(run, data, "test"), np.arange(len(data.users))
    log = rows().sort("ts").group_by("uid", maintain_order=True).agg("item", "city")
    before = [items[: TAKEN - 1] for items in log["item"].to_list()]
    requests = pl.DataFrame(
        {
            "uid": ["nobody"] * len(log),
            "city": log["city"].list.first(),
            "history": [items[max(len(items) - length, 0) :] for items in before],
        },
        schema_overrides={"history": pl.List(pl.String)},
    )
    encoder = Encoder.load(run / "data")
    encoded = encoder.encode(raw_users(requests, encoder.schema), Side.USER)
    expected = towers.encode(pl.DataFrame(encoded)) @ towers.ads.T
    scores = towers.scores(latest(data.known("test"), length), everyone, True)
    number = np.searchsorted(data.users, keys(log["uid"]))
    assert scores[number] == pytest.approx(expected, abs=1e-5)


def test_rows_of_another_split_are_refused(
    runs: dict[str, Path], data: Interactions
) -> None:
    """A test row's history holds the click that validation asks for."""
    towers = Towers.load(runs["attention"], data, "test")
    valid = Towers.load(runs["attention"], data, "valid")
    judge(valid, data, RankingProtocol(split="valid"))
    for scorer, protocol in (
        (towers, RankingProtocol(split="valid")),
        (valid, RankingProtocol()),
    ):
        with pytest.raises(DataError, match="from the rows of another split"):
            judge(scorer, data, protocol)
    splits = {"valid": data.splits["test"] * 0, "test": data.splits["valid"]}
    swapped = replace(data, splits={**data.splits, **splits})
    with pytest.raises(DataError, match="40 of 40 users have an ad in `history` that"):
        Towers.load(runs["attention"], swapped, "test")


def new_users(run: Path, data: Interactions, **changes: Any) -> NewUsers:
    """Those of a run, with some arguments changed."""
    towers, encoder = Towers.load(run, data, "test"), Encoder.load(run / "data")
    assert isinstance(towers.new_users, NewUsers)
    users = np.searchsorted(data.users, towers.rows[USER_KEY].to_numpy())
    given = {
        "encoder": encoder,
        "config": RetrievalConfig(),
        "items": towers.new_users.items,
        "rows": towers.rows,
        "known": data.known("test")[users],
    }
    return NewUsers.of(**given | changes)


def test_clicks_in_another_order_than_the_histories_are_refused(
    runs: dict[str, Path], data: Interactions
) -> None:
    rows = Towers.load(runs["mean"], data, "test").rows
    users = np.searchsorted(data.users, rows[USER_KEY].to_numpy())
    known = latest(data.known("test")[users], LENGTH)
    known.data = known.data.max() + 1 - known.data
    with pytest.raises(NewUsersError, match="clicks in another order than `history`"):
        new_users(runs["mean"], data, known=known)


def test_what_would_still_tell_of_the_user_is_refused(
    runs: dict[str, Path], data: Interactions
) -> None:
    encoder = Encoder.load(runs["mean"] / "data")
    schema = encoder.schema
    brands = SequenceFeature(
        name="brands", side=Side.USER, source="brands", max_length=2
    )
    rate = DenseFeature(
        name="uid.click",
        side=Side.USER,
        source="uid",
        statistic=Statistic(label="click", strength=10),
    )
    others = {
        "brands": schema.model_copy(update={"sequences": (*schema.sequences, brands)}),
        "uid.click": schema.model_copy(update={"dense": (*schema.dense, rate)}),
    }
    for name, changed in others.items():
        of_more = replace(encoder, schema=changed)
        with pytest.raises(NewUsersError, match=f"read {re.escape(name)} too"):
            new_users(runs["mean"], data, encoder=of_more)
        without = RetrievalConfig.model_validate({"features": ["history", "item"]})
        names = new_users(runs["mean"], data, encoder=of_more, config=without).names
        assert names == ("uid",)
    of_more = replace(encoder, schema=others["uid.click"])
    without = RetrievalConfig(statistics=False)
    new_users(runs["mean"], data, encoder=of_more, config=without)


def test_without_a_history_the_cold_table_leaves_the_towers_out(
    runs: dict[str, Path], data: Interactions, caplog: pytest.LogCaptureFixture
) -> None:
    schema = Schema.load(runs["mean"] / "data/schema.json")
    without = RetrievalConfig.model_validate({"features": ["uid", "item"]})
    for lacks in (schema.model_copy(update={"sequences": ()}), schema):
        with pytest.raises(
            NewUsersError, match="read no list of the user's earlier ads"
        ):
            history_read(lacks, without)
    towers = Towers.load(runs["mean"], data, "test")
    error = NewUsersError("no list")
    figures = methods.judged(replace(towers, new_users=error), data, RankingProtocol())
    assert "cold_start" not in figures and "full" in figures
    assert "no figures by the length of the history: no list" in caplog.text


def test_the_command_judges_the_towers_with_all_tables(runs: dict[str, Path]) -> None:
    run = runs["mean"]
    asked = ["--out", str(run), "--method", "towers", "--method", "popularity"]
    result = CliRunner().invoke(app, ["evaluate", "classics", *asked])
    assert result.exit_code == 0, result.output
    towers = json.loads((run / FOLDER / FIGURES).read_text())["methods"]["towers"]
    assert list(towers["cold_start"]) == ["0", "3", "5", "10", "20", "all"]
    assert towers["unknown_of_new_users"] == ["uid"]
    assert towers["histories_as_prepared"] == 1
    assert towers["checkpoint"]["step"] > 0
    assert all_names(run, False)[-1] == TOWERS


def test_other_clicks_are_refused(data: Interactions) -> None:
    data.check_same(data, "run")
    test = data.splits["test"].copy()
    test.indices = (test.indices + 1) % test.shape[1]
    for changed, message in (
        (replace(data, ids=data.ids + 1), "run has other ads:"),
        (replace(data, users=data.users[1:]), "run has other users:"),
        (replace(data, splits={**data.splits, "test": test}), "the clicks of test"),
    ):
        with pytest.raises(DataError, match=message):
            data.check_same(changed, "run")
