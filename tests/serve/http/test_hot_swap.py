"""A new version is swapped in whole, or not at all."""

import asyncio
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from fake_run import SCHEMA, FakeRun, client_of, make_app, sparse

from torchrec_adrec.errors import ManifestError, PredictionError
from torchrec_adrec.schema import Side
from torchrec_adrec.serve.http import hot_swap
from torchrec_adrec.serve.http.app import App
from torchrec_adrec.serve.http.hot_swap import Served
from torchrec_adrec.serve.published import published_state


def versions(app: App) -> set[str]:
    return set(app.swap.served.version.model_dump().values())


def test_a_published_version_is_served_without_a_new_start() -> None:
    run = FakeRun(build=1)
    app = make_app(run)
    asyncio.run(app.swap.look())
    assert versions(app) == {"1"} and app.swap.swaps == 0
    run.build = 2
    asyncio.run(app.swap.look())
    assert versions(app) == {"2"} and app.swap.swaps == 1


def test_the_server_watches_by_itself() -> None:
    run = FakeRun(build=1)
    with client_of(run, watch_seconds=0.01) as client:
        run.build = 2
        served = {"1"}
        while served == {"1"}:
            answer = client.post("/recommend", json={"user": {}})
            assert answer.status_code == 200
            served = set(answer.json()["version"].values())
        assert served == {"2"}


@pytest.mark.parametrize("error", [ManifestError("stale index"), KeyError("a bug")])
def test_what_cannot_be_loaded_changes_nothing_and_is_shown(error: Exception) -> None:
    run = FakeRun(build=1)
    app = make_app(run)
    load, run.build = run.load, 2

    def fail() -> Served:
        raise error

    app.swap._load = fail
    asyncio.run(app.swap.look())
    assert versions(app) == {"1"} and app.swap.refusal is not None
    assert isinstance(error, KeyError) or app.swap.refusal == str(error)
    # It is not loaded again and again, but the next one is.
    app.swap._load = load
    asyncio.run(app.swap.look())
    assert versions(app) == {"1"}
    run.build = 3
    asyncio.run(app.swap.look())
    assert versions(app) == {"3"} and app.swap.refusal is None


def test_a_folder_that_cannot_be_read_does_not_end_the_watch() -> None:
    run = FakeRun(build=1)
    with client_of(run, watch_seconds=0.01) as client:
        for error in (ManifestError("CURRENT is damaged"), OSError("gone")):
            run.unreadable = error
            while client.get("/ready").json()["refused"] != str(error):
                pass
        run.unreadable, run.build = None, 2
        while client.get("/ready").json()["version"]["index"] != "2":
            pass
        assert client.get("/ready").json()["refused"] is None


def test_other_columns_are_refused_as_clients_do_not_know_them() -> None:
    run = FakeRun(build=1)
    app = make_app(run)
    more = (*SCHEMA.sparse, sparse("country", Side.USER))
    run.build, run.schema = 2, SCHEMA.model_copy(update={"sparse": more})
    asyncio.run(app.swap.look())
    assert versions(app) == {"1"} and "other columns" in str(app.swap.refusal)
    # A table that has grown is no other column.
    grown = tuple(f.model_copy(update={"num_embeddings": 9}) for f in SCHEMA.sparse)
    run.build, run.schema = 3, SCHEMA.model_copy(update={"sparse": grown})
    asyncio.run(app.swap.look())
    assert versions(app) == {"3"}


def test_a_request_ends_with_the_version_that_it_began_with() -> None:
    run = FakeRun(build=1, seconds=0.2)
    app = make_app(run)

    async def scenario() -> dict[str, Any]:
        scope: Any = {"type": "http", "state": {}}
        request: Any = SimpleNamespace(scope=scope)
        answer = asyncio.create_task(app._answer(request, [{}, {}], 1, is_batch=True))
        await asyncio.sleep(0.05)
        run.build = 2
        await app.swap.look()
        assert versions(app) == {"2"}
        return dict(vars(await answer))

    answers = json.loads(asyncio.run(scenario())["body"])
    brands = [answer["ads"][0]["brand"] for answer in answers["answers"]]
    # The second user was computed after the swap.
    assert answers["version"]["index"] == "1" and brands == ["1", "1"]


def test_requests_are_answered_while_a_version_is_loaded() -> None:
    run = FakeRun(build=1)
    app = make_app(run)
    load, event = app.swap._load, threading.Event()

    def slow() -> Served:
        event.wait(10)
        return load()

    async def scenario() -> None:
        app.swap._load, run.build = slow, 2
        look = asyncio.create_task(app.swap.look())
        served = app.swap.served
        await app.queue.compute([lambda waited: served.answer({}, 1, waited)])
        assert versions(app) == {"1"} and not look.done()
        event.set()
        await look
        assert versions(app) == {"2"}

    asyncio.run(scenario())


def test_every_build_of_a_stage_is_another_state(tmp_path: Path) -> None:
    states = [published_state(tmp_path)]
    for stage in ("retrieval", "export", "index", "ranking", ""):
        name = "stage.json" if stage else "manifest.json"
        (tmp_path / stage).mkdir(exist_ok=True)
        for text in ("a", "b"):
            (tmp_path / stage / name).write_text(text)
            states.append(published_state(tmp_path))
    (tmp_path / "certificate.json").write_text("a")  # what it refused may be served now
    states.append(published_state(tmp_path))
    assert len(set(states)) == len(states)
    assert published_state(tmp_path) == states[-1]


def test_a_link_to_another_run_is_another_state(tmp_path: Path) -> None:
    """docs/production.md: a day's run is rolled out by moving a link."""
    live = tmp_path / "live"
    for day in ("monday", "tuesday"):
        (tmp_path / day / "ranking").mkdir(parents=True)
        (tmp_path / day / "ranking/stage.json").write_text(day)
    live.symlink_to("monday")
    before = published_state(live)
    live.unlink()
    live.symlink_to("tuesday")
    assert published_state(live) != before


def fake_recommender(weight: float, price: float, bias: float = 0) -> Any:
    towers, ranker = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    with torch.no_grad():
        ranker.weight.fill_(weight)
        towers.bias.fill_(bias)
    shown = pl.DataFrame({"ad_id": [1, 2], "price": [price, None]})
    return SimpleNamespace(
        retriever=SimpleNamespace(tower=towers.forward),
        scorer=SimpleNamespace(ranker=ranker, shown=shown),
        recommend=lambda user: None,
    )


@pytest.mark.parametrize(
    ("weight", "price", "bias", "message"),
    [
        (np.nan, 1.0, 0.0, "a weight of the ranker, weight, is not finite"),
        (np.inf, 1.0, 0.0, "a weight of the ranker, weight, is not finite"),
        (1.0, np.inf, 0.0, "the catalog's column price"),
        (1.0, 1.0, np.nan, "a weight of the towers, bias, is not finite"),
    ],
)
def test_what_is_not_finite_is_refused_when_it_is_loaded(
    weight: float, price: float, bias: float, message: str
) -> None:
    hot_swap.check_finite(fake_recommender(1.0, 1.0))
    with pytest.raises(PredictionError, match=message):
        hot_swap.check_finite(fake_recommender(weight, price, bias))
