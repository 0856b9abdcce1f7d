"""Each warning of a library that is left out is left out alone."""

import importlib
import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import REPOSITORY
from torch.fx._symbolic_trace import is_fx_tracing, is_fx_tracing_warning

from torchrec_adrec.distributed.process import Process, process_group
from torchrec_adrec.runtime import logs
from torchrec_adrec.runtime.status import STATUS_FILE, Status, StatusReader

LOGS = """
import logging, sys, warnings
from pathlib import Path
from torchrec_adrec.runtime.logs import {setup}
{setup}({arguments})
ours = logging.getLogger("torchrec_adrec.some.module")
ours.debug("a table"); ours.info("a step"); ours.warning("a weak model")
logging.getLogger("fbgemm").info("every table of every rank")
warnings.warn("of a library")
"""


@pytest.fixture(autouse=True)
def filters() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.resetwarnings()
        logs.silence_libraries()
        yield


def test_the_advice_on_tracing_is_left_out_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    is_fx_tracing_warning.cache_clear()  # torch says it once in a process
    is_fx_tracing()
    assert caplog.records == []
    logging.getLogger("torch.fx._symbolic_trace").warning("another warning")
    logging.getLogger("torch.fx").warning("one more")
    assert [record.getMessage() for record in caplog.records] == [
        "another warning",
        "one more",
    ]


@pytest.mark.parametrize(("message", "category"), logs.LIBRARY_WARNINGS)
def test_a_library_warning_is_left_out_by_its_message(
    message: str, category: type[Warning]
) -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.warn(message, category, stacklevel=1)
        assert shown == []
        warnings.warn("another", category, stacklevel=1)
        assert [str(one.message) for one in shown] == ["another"]


def test_a_barrier_of_gpus_waits_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else torch warns that it takes the device of the current context."""
    calls: list[dict[str, Any]] = []
    waited: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    for name in ("init_process_group", "new_group"):
        monkeypatch.setattr(dist, name, lambda *_, **options: calls.append(options))
    monkeypatch.setattr(dist, "barrier", waited.append)
    with process_group("cuda") as process:
        assert isinstance(process, Process)
        process.barrier()
    assert calls[0]["device_id"] == torch.device("cuda", 0)
    assert calls[1]["backend"] == "gloo"
    assert waited == [process.waiting]


@pytest.mark.filterwarnings("default")
def test_only_one_line_of_the_test_client_is_left_out(
    pytestconfig: pytest.Config,
) -> None:
    pytest.importorskip("fastapi")
    lines = pytestconfig.getini("filterwarnings")
    (line,) = (line for line in lines if "httpx" in line)
    with warnings.catch_warnings(record=True) as shown:
        warnings.filterwarnings(*pytest_filter(line))
        sys.modules.pop("starlette.testclient", None)
        importlib.import_module("starlette.testclient")
        assert shown == []
        warnings.warn("Using `httpx` otherwise", UserWarning, stacklevel=1)
        assert len(shown) == 1


def pytest_filter(line: str) -> tuple[Any, str, type[Warning]]:
    action, message, category = line.split(":")
    assert category == "UserWarning"
    return action, message, UserWarning


def run(setup: str, *arguments: str, **environment: str) -> str:
    code = LOGS.format(setup=setup, arguments=", ".join(arguments))
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={"PYTHONPATH": str(REPOSITORY), **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_a_stage_leaves_out_details_unless_asked() -> None:
    text = run("setup_logging", RANK="1", WORLD_SIZE="2")
    lines = [line.partition(" ")[2] for line in text.splitlines()]
    name = "torchrec_adrec.some.module"
    assert lines[:2] == [
        f"rank 1/2 | INFO {name} | a step",
        f"rank 1/2 | WARNING {name} | a weak model",
    ]
    assert "a table" not in text and "every table" not in text
    assert "a table" in run("setup_logging", **{logs.VERBOSE: "1"})


def test_a_launched_stage_sends_its_warnings(tmp_path: Path) -> None:
    path = tmp_path / "status"
    text = run("setup_logging", **{STATUS_FILE: str(path)})
    assert "a table" in text  # for the log file
    assert list(StatusReader(path).read()) == [Status("warning", "a weak model")]


def test_a_run_prints_nothing_that_its_log_file_has(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    path.write_text("the run before\n")
    assert run("log_to_file", f"Path({str(path)!r})") == ""
    text = path.read_text()
    assert text.startswith("the run before\n")
    assert "a weak model" in text and "of a library" in text
