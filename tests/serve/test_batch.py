"""Users of a file get what each of them would get by a request."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from built_index import on_threads
from conftest import adrec

from torchrec_adrec.config.run import Config, load_config
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.prepare.user_file import UserFile
from torchrec_adrec.data.request import raw_user, raw_users
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import ConfigError, DataError, PredictionError
from torchrec_adrec.export.users import export_users
from torchrec_adrec.runs.stages import CONFIG
from torchrec_adrec.runtime.ranks import SingleProcess
from torchrec_adrec.schema import AD_ID, SCORE, Side
from torchrec_adrec.serve import batch
from torchrec_adrec.serve.batch import PLACE, recommend_batch
from torchrec_adrec.serve.recommender import Recommender


@pytest.fixture(scope="module")
def served(run: Path) -> Recommender:
    return Recommender.load(run)


@pytest.fixture(scope="module")
def requests(run: Path) -> list[dict[str, Any]]:
    """Twenty example users, and one of whom nothing is known."""
    users = json.loads((run / "data/example_users.json").read_text())
    return [*users[:20], {}]


def written(requests: list[dict[str, Any]], path: Path, **columns: Any) -> Path:
    names = dict.fromkeys(name for user in requests for name in user)
    rows = {name: [user.get(name) for user in requests] for name in names}
    pl.DataFrame(rows | columns, strict=False).write_parquet(path)
    return path


def users_of(path: Path, run: Path, key: str | None = None) -> UserFile:
    return UserFile.open(path, Encoder.load(run / "data"), key)


def test_many_users_are_encoded_as_one_is(
    run: Path, requests: list[dict[str, Any]], tmp_path: Path
) -> None:
    encoder = Encoder.load(run / "data")
    path = written(requests, tmp_path / "users.parquet")
    many = users_of(path, run).encode(0, len(requests))
    for row, user in enumerate(requests):
        one = encoder.encode(raw_user(user, encoder.schema), Side.USER)
        assert one.keys() == many.keys()
        for name, value in one.items():
            assert value[0] == many[name][row], name


def test_every_user_gets_what_a_request_gets(
    run: Path,
    served: Recommender,
    requests: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch, "CHUNK", 4)
    keys = [f"u{row}" for row in range(len(requests))]
    path = written(requests, tmp_path / "users.parquet", who=keys)
    out = tmp_path / "recs.parquet"
    users = users_of(path, run, "who")
    for ranks in (1, 3):
        on_threads(ranks, lambda rank: recommend_batch(served, users, out, rank, 5))
        recommended = pl.read_parquet(out)
        assert recommended["row"].to_list() == np.arange(21).repeat(5).tolist()
        assert recommended["who"].unique(maintain_order=True).to_list() == keys
        assert recommended[PLACE].to_list() == [1, 2, 3, 4, 5] * 21
        for row, user in enumerate(requests):
            expected = served.recommend(user, 5).ads
            actual = recommended.filter(pl.col("row") == row)
            assert actual[AD_ID].to_list() == expected[AD_ID].to_list()
            for name in ("click", SCORE):
                np.testing.assert_allclose(actual[name], expected[name], rtol=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "recs.parquet",
        "users.parquet",
    ]


def test_a_bad_row_is_named_before_the_work_and_the_old_file_stays(
    run: Path, served: Recommender, requests: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "recs.parquet"
    out.write_text("old")
    users = [dict(user) for user in requests]
    name = next(name for name in users[0] if name.startswith("C"))
    users[17][name] = "no hash"
    path = written(users, tmp_path / "users.parquet")
    message = rf"{path}, row 17 \(from 0\): {name} is 'no hash', expected eight"
    with pytest.raises(DataError, match=message):
        recommend_batch(served, users_of(path, run), out, SingleProcess())
    assert out.read_text() == "old"
    # The second rank's rows are counted from the start of the file too.
    with pytest.raises(DataError, match="row 17"):
        users_of(path, run).check(slice(11, 21), size=3)
    path = written(requests, tmp_path / "users.parquet", typo=[1] * 21)
    with pytest.raises(DataError, match=r"unknown user columns \['typo'\]"):
        recommend_batch(served, users_of(path, run), out, SingleProcess())
    assert not list(tmp_path.glob("*.partial"))


def test_a_number_that_is_not_finite_names_the_row(
    run: Path,
    served: Recommender,
    requests: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch, "CHUNK", 4)
    score, calls = served.scorer.score, iter(range(21))

    def fail_once(*args: Any) -> Any:
        if next(calls) == 6:
            raise PredictionError("the ranker: not finite")
        return score(*args)

    monkeypatch.setattr(served.scorer, "score", fail_once)
    path = written(requests, tmp_path / "users.parquet")
    with pytest.raises(PredictionError, match=r"row 6 \(from 0\): the ranker: not fin"):
        recommend_batch(
            served, users_of(path, run), tmp_path / "recs.parquet", SingleProcess()
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1], True])
def test_a_number_that_is_none_is_refused(
    value: Any, run: Path, requests: list[dict[str, Any]], tmp_path: Path
) -> None:
    """As in a request: what one refuses the other may not take."""
    schema = Encoder.load(run / "data").schema
    name = schema.numbers_of(Side.USER)[0].source
    with pytest.raises(DataError):
        raw_user({name: value}, schema)
    with pytest.raises(DataError, match=f"row 0: {name} is"):
        raw_users(pl.DataFrame({name: [value]}), schema)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("no parquet"), "cannot read the users of"),
        (lambda path: None, "cannot read the users of"),
        (lambda path: pl.DataFrame({"I1": []}).write_parquet(path), "holds no users"),
    ],
)
def test_a_file_that_holds_no_users(
    make: Any, message: str, run: Path, tmp_path: Path
) -> None:
    path = tmp_path / "users.parquet"
    make(path)
    with pytest.raises(ConfigError, match=message):
        users_of(path, run)


def test_a_key_that_is_not_there(
    run: Path, requests: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = written(requests, tmp_path / "users.parquet")
    with pytest.raises(ConfigError, match="has no column 'who', expected one of"):
        users_of(path, run, "who")


@pytest.mark.parametrize("key", ["row", PLACE, AD_ID, "click", SCORE, "vector"])
def test_a_key_that_is_called_like_what_is_written(
    key: str,
    run: Path,
    served: Recommender,
    requests: list[dict[str, Any]],
    process: Process,
    tmp_path: Path,
) -> None:
    """With its values in the place of the rows, users would get others' ads."""
    columns: dict[str, Any] = {key: list(range(21))[::-1]}
    path = written(requests, tmp_path / "users.parquet", **columns)
    out = tmp_path / "out.parquet"
    with pytest.raises(ConfigError, match=f"'{key}' cannot be the key"):
        if key == "vector":
            config = load_config(run / "retrieval" / CONFIG)
            export_users(run, path, key, out, config, process)
        else:
            recommend_batch(served, users_of(path, run, key), out, SingleProcess())
    assert not out.exists()


def test_users_are_exported_as_they_are_served(
    run: Path,
    served: Recommender,
    requests: list[dict[str, Any]],
    process: Process,
    tmp_path: Path,
) -> None:
    path = written(requests, tmp_path / "users.parquet", who=list(range(21)))
    config: Config = load_config(
        run / "retrieval" / CONFIG, ["train.eval_batch_size=4"]
    )
    out = tmp_path / "vectors.parquet"
    export_users(run, path, "who", out, config, process)
    exported = pl.read_parquet(out)
    assert exported["row"].to_list() == exported["who"].to_list() == list(range(21))
    for row, user in enumerate(requests):
        vector = served.retriever.tower(served.user_input(user)).detach().numpy()[0]
        np.testing.assert_allclose(exported["vector"][row], vector, atol=1e-6)


USERS_SCRIPT = """
from pathlib import Path
from torchrec_adrec.config.run import load_config
from torchrec_adrec.distributed.process import process_group
from torchrec_adrec.export.users import export_users
from torchrec_adrec.runs.stages import CONFIG

run = Path(RUN)
with process_group("cpu") as process:
    for size in (4, 8):
        settings = [f"train.eval_batch_size={size}"]
        config = load_config(run / "retrieval" / CONFIG, settings)
        out = Path(OUT) / f"{size}.parquet"
        export_users(run, Path(USERS), "who", out, config, process)
"""


def test_two_ranks_export_what_one_does(
    run: Path,
    requests: list[dict[str, Any]],
    process: Process,
    ranks_script: Callable[[int, str], subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    """Of 11 and 10 users: in the last step one rank has none, or one fewer."""
    path = written(requests, tmp_path / "users.parquet", who=list(range(21)))
    config = load_config(run / "retrieval" / CONFIG)
    export_users(run, path, "who", tmp_path / "one.parquet", config, process)
    expected = pl.read_parquet(tmp_path / "one.parquet")
    paths = {"RUN": run, "OUT": tmp_path, "USERS": path}
    script = USERS_SCRIPT
    for name, value in paths.items():
        script = script.replace(f"Path({name})", f"Path({str(value)!r})")
    done = ranks_script(2, script)
    assert done.returncode == 0, done.stderr
    for size in (4, 8):
        exported = pl.read_parquet(tmp_path / f"{size}.parquet")
        assert exported["who"].to_list() == list(range(21))
        vectors = exported["vector"].to_numpy()
        np.testing.assert_allclose(vectors, expected["vector"].to_numpy(), atol=1e-6)


def test_the_command_writes_a_file(
    run: Path, requests: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = written(requests, tmp_path / "users.parquet")
    out = tmp_path / "recs.parquet"
    done = adrec("recommend", "--out", run, "--batch", path, "--to", out, "--top", 2)
    assert done.returncode == 0, done.stderr
    assert "the best ads of 21 users" in done.stdout and "users/s" in done.stdout
    catalog = load_catalog(run / "data")[AD_ID].to_list()
    assert set(pl.read_parquet(out)[AD_ID]) <= set(catalog)
    done = adrec("recommend", "--out", run, "--batch", path)
    assert done.returncode == 2 and "--batch needs --to FILE" in done.stderr
