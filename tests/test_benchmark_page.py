"""docs/benchmarks.md says what the committed results say."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

sys.path.append(str(REPOSITORY / "benchmarks"))
from page import PAGE, grid_of, page
from question import Table
from seeds import spread_of
from timing import RESULTS


def test_the_page_is_what_the_script_makes_of_the_results() -> None:
    assert PAGE.read_text() == page(RESULTS), "run: python benchmarks/page.py"


def test_every_result_is_on_the_page() -> None:
    text = PAGE.read_text()
    assert [p.name for p in RESULTS.glob("*.json") if f"/{p.name}`" not in text] == []


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RESULTS, tmp_path / "results"))


def test_a_result_that_is_older_than_its_script_is_named(results: Path) -> None:
    path = results / "serving.json"
    figures = json.loads(path.read_text())
    del figures["milliseconds"]
    path.write_text(json.dumps(figures))
    before, text = page(RESULTS), page(results)
    assert text.count("Older than") == before.count("Older than") + 1
    faster = f"times as fast: {figures['times_faster_once']}"
    assert "the file has no `milliseconds`" in text and faster in text


def test_a_question_without_a_result_shows_its_command(results: Path) -> None:
    (results / "chaos.json").unlink()
    section = page(results).partition("## Failures")[2]
    assert "Not measured here" in section and "benchmarks/chaos.py" in section


def test_a_changed_figure_changes_the_page(results: Path) -> None:
    path = results / "prepare.json"
    path.write_text(path.read_text().replace("12.383", "13.5"))
    assert "| plain Python | 13.5 |" in page(results)


def test_seeds_are_a_mean_and_keys_can_be_columns() -> None:
    result = {"machine": {}, "2048": {"speed": {"a": 1.5}}, "note": "x"}
    assert grid_of(result, Table("", ("*", "speed"), swap=True)) == {
        "a": {"2048": "1.5"}
    }
    result = {"auc": {"a": [1.0, 3.0], "b": [2.0]}}
    assert grid_of(result, Table("", ("auc",))) == {
        "a": {"": "2.0000 (1.4142)"},
        "b": {"": "2.0000"},
    }


def test_an_interval_and_the_ranks_of_a_build_are_no_mean_of_seeds() -> None:
    row = {"recall": 0.96, "interval": [0.95, 0.97], "MiB": [275, 239]}
    assert grid_of({"grid": [row]}, Table("", ("grid",))) == {
        "1": {"recall": "0.96", "interval": "0.95 to 0.97", "MiB": "275, 239"}
    }


def test_one_seed_has_no_deviation() -> None:
    """As `runs.py` keeps it: 0 would say that other seeds give the same."""
    kept = {"one": spread_of([0.5]), "two": spread_of([0.5, 0.7], 4)}
    assert kept == {
        "one": {"mean": 0.5, "sd": None},
        "two": {"mean": 0.6, "sd": 0.1414},
    }
    assert grid_of({"summary": kept}, Table("", ("summary",))) == {
        "one": {"": "0.5000"},
        "two": {"": "0.6000 (0.1414)"},
    }
    for path in RESULTS.glob("*.json"):
        result = json.loads(path.read_text())
        if len(result.get("seeds", ())) == 1:
            assert '"sd": 0' not in path.read_text(), path
