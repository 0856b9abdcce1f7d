"""A run shows a line for each stage and every warning once; the log has the rest."""

import logging
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY, adrec

from torchrec_adrec.config.run import Config
from torchrec_adrec.errors import StageError
from torchrec_adrec.pipeline import pipeline
from torchrec_adrec.pipeline.display import RUN_LOG, StageLines, stage_lines
from torchrec_adrec.runs.stages import EXPORT, RETRIEVAL, STAGES
from torchrec_adrec.runtime.status import STATUS_FILE, Status, StatusReader, send

ON_A_TERMINAL = """
import os, sys, time
from pathlib import Path
from torchrec_adrec.pipeline.display import stage_lines
from torchrec_adrec.runtime.status import STATUS_FILE, Status, send
with stage_lines(Path(sys.argv[1]), lambda stage: "a figure") as display:
    os.environ |= display.environment
    display.launched("retrieval")
    send(Status("begin", "retrieval"))
    send(Status("progress", "train retrieval", 5, 20, "loss 3.2100"))
    display.update()
    time.sleep(0.3)
    send(Status("end", "retrieval"))
    display.update()
"""
# A job that sends what two ranks would, prints the rest, and ends with a code.
JOB = """
import sys
from torchrec_adrec.runtime.status import Status, send
print("the plan of 39 tables", flush=True)
for rank in range(2):
    send(Status("warning", "the towers are weak"))
{actions}
"""


@pytest.fixture
def display(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StageLines]:
    with stage_lines(tmp_path, lambda stage: f"figure of {stage}") as display:
        monkeypatch.setenv(STATUS_FILE, display.environment[STATUS_FILE])
        display.launched("retrieval")
        yield display


def sent(display: StageLines, *statuses: Status) -> None:
    for status in statuses:
        send(status)
    display.update()


def test_a_stage_is_one_line_with_its_first_and_last_loss(
    display: StageLines, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = ("", "loss 3.2100", "loss 3.0000", "loss 2.8700")
    progress = [Status("progress", "train retrieval", 1, 4, note) for note in losses]
    evaluating = Status("progress", "evaluating", 3, 3)
    sent(display, Status("begin", "retrieval"), *progress, evaluating)
    assert capsys.readouterr().err == ""
    sent(display, Status("end", "retrieval"), Status("begin", "export"))
    sent(display, Status("end", "export"))
    display.finish("export")  # as the parent says once more at the end of the job
    assert capsys.readouterr().err.splitlines() == [
        "retrieval      0 s  loss 3.2100 -> 2.8700, figure of retrieval",
        "export         0 s  figure of export",
    ]


def test_a_warning_of_all_ranks_stages_and_the_run_itself_is_shown_once(
    display: StageLines, capsys: pytest.CaptureFixture[str]
) -> None:
    sent(display, *(Status("warning", text) for text in ("[red]weak", "[red]weak")))
    logging.getLogger("torchrec_adrec.any").warning("[red]weak")
    logging.getLogger("torchrec_adrec.any").warning("another")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["warning: [red]weak", "warning: another"]


def test_only_errors_of_the_last_attempt_are_shown(
    display: StageLines, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = Status("begin", "retrieval")
    sent(display, begin, Status("error", "error: the network"), begin)
    assert "started again after a crash" in capsys.readouterr().err
    sent(display, Status("error", "error: a disk"), Status("error", "error: a disk"))
    display.fail()
    assert capsys.readouterr().err == "error: a disk\n"


def test_the_end_of_the_output_is_shown_of_a_stage_that_sent_no_error(
    display: StageLines, capsys: pytest.CaptureFixture[str]
) -> None:
    assert display.output is not None
    for i in range(20):
        display.output.write(b"line %d\n" % i)
    display.output.flush()
    display.fail()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"line {i}" for i in range(5, 20)]


def test_half_a_line_is_read_when_it_is_whole(tmp_path: Path) -> None:
    reader = StatusReader(tmp_path / "status")
    reader.clear()
    with reader.path.open("ab", buffering=0) as file:
        file.write(b'{"kind": "end", "te')
        assert list(reader.read()) == []
        file.write(b'xt": "index"}\n')
    assert list(reader.read()) == [Status("end", "index")]
    assert list(reader.read()) == []


def test_a_stage_does_not_end_because_nobody_can_listen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STATUS_FILE, str(tmp_path / "no such folder/status"))
    send(Status("begin", "index"))
    monkeypatch.delenv(STATUS_FILE)
    send(Status("begin", "index"))
    assert list(tmp_path.iterdir()) == []


def test_progress_is_live_on_a_terminal(tmp_path: Path) -> None:
    parent, terminal = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL, str(tmp_path)],
        stderr=terminal,
        cwd=REPOSITORY,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(terminal)
    shown = b""
    try:
        while part := os.read(parent, 4096):
            shown += part
    except OSError:  # how Linux says that the terminal was closed
        pass
    os.close(parent)
    assert done.wait(60) == 0
    text = shown.decode()
    assert "train retrieval" in text and "━" in text and "loss 3.2100" in text
    assert "s  loss 3.2100, a figure" in text


def launched(
    actions: str, config: Config, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Launch two stages whose job is a script."""
    code = JOB.format(actions=actions)
    monkeypatch.setattr(pipeline, "command", lambda *_: [sys.executable, "-c", code])
    monkeypatch.setattr(pipeline, "holder", lambda run: "a job")
    # All that it sends is read at its end: none of it may be lost then.
    monkeypatch.setattr(pipeline, "UPDATE_EVERY_S", 600)
    with stage_lines(run, lambda stage: "a figure") as display:
        pipeline.launch([RETRIEVAL, EXPORT], config, run, "1x2", display)


def test_output_of_a_job_goes_to_the_log(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends = "for s in ('retrieval', 'export'): send(Status('begin', s)); "
    launched(f"{ends}send(Status('end', s))", Config(), tmp_path, monkeypatch)
    printed = capfd.readouterr()
    lines = [line.split() for line in printed.err.splitlines()]
    assert [line[0] for line in lines] == ["warning:", "retrieval", "export"]
    assert printed.out == ""
    log = (tmp_path / RUN_LOG).read_text()
    assert log.startswith("==== ") and "the plan of 39 tables" in log
    assert not (tmp_path / ".status").exists()


def test_the_log_keeps_the_runs_before(tmp_path: Path) -> None:
    for _ in range(2):
        with stage_lines(tmp_path, lambda stage: ""):
            pass
    assert (tmp_path / RUN_LOG).read_text().count("==== ") == 2


def test_a_job_that_fails_says_why_once_and_names_the_log(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    actions = "send(Status('error', 'error: bad')); send(Status('error', 'error: bad'))"
    with pytest.raises(StageError, match=rf"code 3;.*{tmp_path / RUN_LOG} has all"):
        launched(f"{actions}; sys.exit(3)", Config(), tmp_path, monkeypatch)
    assert capfd.readouterr().err.count("error: bad") == 1


def test_an_error_while_waiting_ends_the_job() -> None:
    def fail() -> None:
        raise KeyError("a figure")

    job = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with pytest.raises(KeyError):
        pipeline._wait(job, fail)
    assert job.poll() == -signal.SIGTERM


def test_a_run_prints_a_line_a_stage_and_then_its_tables(finished_run: Path) -> None:
    printed = (finished_run / "printed.txt").read_text()
    stages = (*STAGES, "serve")
    for stage in stages:
        lines = [x for x in printed.splitlines() if x.startswith(f"{stage} ")]
        assert len(lines) == 1 and " s " in lines[0], printed
    assert "loss " in printed and " -> " in printed
    assert "| INFO" not in printed and "INFO " not in printed
    assert "torchx" not in printed and "plan |" not in printed
    log = (finished_run / RUN_LOG).read_text()
    assert "plan | user_C1 " in log and "components.py:ddp -j 1x2" in log
    reports = (
        f"Report: {finished_run}/report.html\nReport as text: {finished_run}/report.md"
    )
    assert f"{reports}\nLog: {finished_run}/run.log" in printed


def test_verbose_shows_what_the_stages_print(finished_run: Path) -> None:
    before = (finished_run / RUN_LOG).read_text()
    again = adrec("run", "-v", "--out", finished_run, "-j", "1x2")
    assert again.returncode == 0
    said = "INFO torchrec_adrec.pipeline.pipeline | "
    assert again.stderr.count(said) == 6 and "run.log" not in again.stdout
    assert (finished_run / RUN_LOG).read_text() == before
