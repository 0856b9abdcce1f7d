"""The tabs show the reports of the run, and a run that has no page is refused."""

import json
import shutil
from base64 import b64encode
from inspect import signature
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import adrec
from html_text import Page, check_self_contained
from named_ads import copy_of, ids_of

from torchrec_adrec.cli.index import compare
from torchrec_adrec.cli.page import page as page_command
from torchrec_adrec.errors import ConfigError, ManifestError
from torchrec_adrec.export.ad_file import AdIds
from torchrec_adrec.export.update import Updater
from torchrec_adrec.index.compare import COMPARISON
from torchrec_adrec.page import reports
from torchrec_adrec.page.server import APP, arguments
from torchrec_adrec.pipeline.report import metrics_of
from torchrec_adrec.schema import (
    AD_ID,
)


@pytest.fixture
def reported(tmp_path: Path) -> Path:
    run = tmp_path / "shop"
    (run / "data").mkdir(parents=True)
    text = "# Run report\n\nSeed 0\n\n## Index\n\nof it\n\n## Training\n\nsteps\n"
    (run / "report.md").write_text(f"{text}\n## Ranker\n\n![x](ranking/no.png)\n")
    (run / "data/report.md").write_text("# The data\n\n1,000 rows\n")
    log = "12:00:00 WARNING a.b | odd `x` <b>\n12:00:01 INFO a.b | fine\n"
    (run / "run.log").write_text(log + log)
    return run


def test_each_tab_shows_its_part_of_the_reports(reported: Path) -> None:
    pages = [f(reported) for f in (reports.quality, reports.data, reports.training)]
    quality, data, training = (Page(page) for page in pages)
    for page in (quality, data, training):
        check_self_contained(page)
    assert "of it" in quality.text and "Ranker" in quality.text
    assert "steps" not in quality.text and "steps" in training.text
    assert "1,000 rows" in data.text and "of it" not in training.text
    assert training.text.count("odd `x` <b>") == 1 and "fine" not in training.text


def test_pictures_are_those_of_the_run_as_they_are_now(
    reported: Path, tmp_path: Path
) -> None:
    """Another run may have the same name, and the run itself is made again."""
    other = tmp_path / "other/shop"
    shutil.copytree(reported, other)
    places = ("ranking/no.png", "x.png", "data/x.png")
    for run in (reported, other, reported):
        report = (run / "report.md").read_text()
        if "x.png" not in report:
            text = report.replace("steps", "steps\n\n![x](x.png)\n")
            (run / "report.md").write_text(text)
            (run / "data/report.md").write_text("![x](x.png)")
        for place in places:
            (run / place).parent.mkdir(exist_ok=True)
            previous = (run / place).read_bytes() if (run / place).exists() else b""
            (run / place).write_bytes(f"{run}/{place}".encode() + previous)
        for tab, place in zip(
            (reports.quality, reports.training, reports.data), places, strict=True
        ):
            encoded = b64encode((run / place).read_bytes()).decode()
            (picture,) = Page(tab(run)).all("img")
            assert picture["src"] == f"data:image/png;base64,{encoded}"


def test_the_kinds_of_index_appear_once_they_were_compared(
    reported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = SimpleNamespace(build_id="old")
    monkeypatch.setattr(reports, "load_record", lambda *_: record)
    assert f"adrec index compare --out {reported}" in reports.quality(reported)
    row = {"kind": "hnsw", "refusal": "", "recall": 0.9876, "bytes_per_ad": 12.3}
    refused = {"kind": "ivf_pq", "refusal": "too | few"}
    kinds = [row | {"milliseconds": {"p50": 0.5}}, refused]
    compared = {"title": "t", "export": "old", "kinds": kinds}
    (reported / COMPARISON).write_text(json.dumps(compared))
    page = Page(reports.quality(reported))
    assert "no longer" not in page.text
    (table,) = page.tables
    assert table[4:8] == ["hnsw", "0.9876", "0.500", "12"]
    assert table[8:10] == ["ivf_pq", "refused: too | few"]
    record.build_id = "new"
    assert "no longer those of the run" in Page(reports.quality(reported)).text


def test_the_page_shows_what_index_compare_has_written(
    run: Path, tmp_path: Path
) -> None:
    copied = copy_of(run, tmp_path / "run")
    (copied / "config.yaml").write_bytes((run / "data/config.yaml").read_bytes())
    compare(copied, ["exact"])
    page = Page(reports.quality(copied))
    (table,) = page.tables
    assert table[4:6] == ["exact", "1.0000"] and len(page.all("img")) == 1
    assert "no longer" not in page.text


def test_figures_of_a_stage_that_was_made_again_are_called_old(
    run: Path, tmp_path: Path
) -> None:
    copied = copy_of(run, tmp_path / "run")
    reported = {name: metrics_of(copied, name) for name in ("export", "ranking")}
    reported["export"]["loss"] = float("nan")  # is not equal to itself
    (copied / "export/metrics.json").write_text(json.dumps(reported["export"]))
    (copied / "metrics.json").write_text(json.dumps(reported))
    for page in (reports.quality, reports.training):
        assert "Old figures" not in page(copied)
    (copied / "export/metrics.json").write_text("{}")
    for page in (reports.quality, reports.training):
        assert "since this report export was made again" in page(copied)


def test_reports_that_are_missing_name_the_command(tmp_path: Path) -> None:
    assert f"adrec run --out {tmp_path}" in reports.quality(tmp_path)
    assert f"adrec prepare --out {tmp_path}" in reports.data(tmp_path)
    assert "report.md has no such section" in reports.training(tmp_path)


def test_a_run_that_cannot_be_served_is_refused_first(
    run: Path, tmp_path: Path
) -> None:
    stages = {"retrieval", "export", "index", "ranking"}
    assert set(reports.check_run(run)) == stages | {reports.CHANGES}
    with pytest.raises(ConfigError, match="no such run"):
        reports.check_run(tmp_path / "none")
    with pytest.raises(ManifestError, match="retrieval is missing; run `adrec train"):
        reports.check_run(tmp_path)
    done = adrec("page", "--out", tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")


def test_an_updated_run_is_opened_again(updater: Updater) -> None:
    before = reports.check_run(updater.run)
    ad = updater.ads.catalog[AD_ID][0]
    updater.apply(remove=AdIds.read(ids_of(updater.run.parent, ad)))
    after = reports.check_run(updater.run)
    assert {name for name in after if after[name] != before[name]} == {reports.CHANGES}


def test_the_server_listens_here_and_tells_nobody(tmp_path: Path) -> None:
    words = arguments(tmp_path, "127.0.0.1", 8501)
    for option in (
        "--server.address=127.0.0.1",
        "--browser.gatherUsageStats=false",
        "--server.headless=true",
        "--client.showErrorLinks=false",  # else an error's text is sent to others
        "--client.showErrorDetails=none",  # else a bug shows its traceback to visitors
    ):
        assert option in words
    assert signature(page_command).parameters["host"].default == "127.0.0.1"
    assert words[:2] == ["run", str(APP)] and words[-2:] == ["--", str(tmp_path)]
