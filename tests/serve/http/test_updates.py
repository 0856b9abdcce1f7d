"""A running server knows updated ads without loading anything again."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from named_ads import copy_of, ids_of, rows_of

from torchrec_adrec.config.serve import ServeConfig
from torchrec_adrec.export.ad_file import AdIds, AdRows
from torchrec_adrec.export.update import Updater
from torchrec_adrec.index.sharded import ShardedIndex
from torchrec_adrec.runs import stages
from torchrec_adrec.runs.ad_changes import changes_name
from torchrec_adrec.serve.http.app import App
from torchrec_adrec.serve.http.hot_swap import Loader, Served
from torchrec_adrec.serve.published import published_state

USER: dict[str, Any] = {"user": {"user": "u1"}, "top": 5}


def test_an_update_is_swapped_in_alone(
    named_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of(named_run, tmp_path / "run")
    app = App(Loader(run), lambda: published_state(run), ServeConfig(watch_seconds=0))
    updater = Updater(run)

    def refuse(*args: object, **arguments: object) -> None:
        raise AssertionError("read again")

    with TestClient(app.asgi) as client, monkeypatch.context() as patch:
        before = client.post("/recommend", json=USER).json()
        build = before["version"]["index"]
        patch.setattr(ShardedIndex, "load", refuse)
        patch.setattr(Served, "load", refuse)
        best = before["ads"][0]["ad_id"]
        updater.apply(
            AdRows.read(rows_of(tmp_path, "new,b1,2"), app.swap.served.schema),
            AdIds.read(ids_of(tmp_path, best)),
        )
        served = app.swap.served
        asyncio.run(app.swap.look())
        after = client.post("/recommend", json=USER).json()
        assert after["version"]["index"] == f"{build}+{changes_name(run)}"
        ids = [ad["ad_id"] for ad in after["ads"]]
        assert best not in ids and app.swap.swaps == 1
        # A request that is under way ends with the version that it began with.
        old = served.answer(USER["user"], 5, 0)["ads"]
        assert [ad["ad_id"] for ad in old] == [ad["ad_id"] for ad in before["ads"]]
        damage(run)
        asyncio.run(app.swap.look())
        assert "expected sha256" in str(app.swap.refusal)
        again = client.post("/recommend", json=USER).json()
        assert again["version"] == after["version"]
        ready = client.get("/ready").json()
        assert "expected sha256" in ready["refused"]
    # A build in the place of an update is loaded whole.
    path = stages.stage_folder(run, "index") / "stage.json"
    path.write_text(path.read_text().replace(build, "0" * 16))
    with (
        pytest.raises(AssertionError, match="read again"),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(Served, "load", refuse)
        app.swap._load()


def damage(run: Path) -> None:
    """Publish a version of the changes with a flipped byte."""
    folder = run / "changes/versions" / changes_name(run)
    other = folder.with_name(f"000009-{folder.name[7:]}")
    folder.rename(other)
    (run / "changes/CURRENT").write_text(other.name)
    path = other / "ads.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
