"""A rank that dies by a signal says where, and the ranks after it know of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, no_restarts

from torchrec_adrec.runtime.crashes import ENDINGS, endings, keep_ending
from torchrec_adrec.runtime.status import STATUS_FILE, StatusReader

SCRIPT = r"""
import os, signal, threading, time
from torchrec_adrec.runtime.crashes import endings
from torchrec_adrec.runtime.logs import setup_logging

setup_logging()
rank, attempt = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
# One write, or the lines of the ranks mix.
print(f"attempt {attempt} of rank {rank} after {endings()};\n", end="", flush=True)

def reads_ahead():
    time.sleep(60)

def writes_where_it_must_not():
    os.kill(os.getpid(), signal.SIGSEGV)

if attempt == "0":
    if rank == "0":
        reads_ahead()
    threading.Thread(target=reads_ahead, daemon=True).start()
    writes_where_it_must_not()
"""


def test_a_crash_leaves_its_stacks_and_is_known_to_the_next_attempt(
    tmp_path: Path,
) -> None:
    script, status = tmp_path / "script.py", tmp_path / "status"
    script.write_text(SCRIPT)
    agent = ["torchrec_adrec.launch.agent", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, "-m", *agent, "--max-restarts", "1", str(script)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), STATUS_FILE: str(status)},
    )
    assert done.returncode == 0, done.stderr
    assert "attempt 0 of rank 1 after [];" in done.stdout
    for rank in range(2):
        assert f"attempt 1 of rank {rank} after ['rank 1: SIGSEGV'];" in done.stdout
    # The stack of the thread that crashed, and of the one that did not.
    assert "Fatal Python error: Segmentation fault" in done.stderr
    assert "in writes_where_it_must_not" in done.stderr
    assert done.stderr.count("in reads_ahead") == 1
    assert "warning: rank 1: SIGSEGV; its last lines" in done.stderr
    sent = [s.text for s in StatusReader(status).read() if s.kind == "warning"]
    assert len(sent) == 1 and sent[0].startswith("rank 1: SIGSEGV")


def test_endings_are_kept_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENDINGS, raising=False)
    monkeypatch.setenv(ENDINGS, "[]")  # so that what is kept here is undone
    assert endings() == []
    keep_ending("rank 0: SIGABRT")
    keep_ending("rank 1: exit code 1, rank 3: SIGKILL")
    assert endings() == ["rank 0: SIGABRT", "rank 1: exit code 1, rank 3: SIGKILL"]


def test_no_test_takes_a_restarted_run_for_a_whole_one(tmp_path: Path) -> None:
    (tmp_path / "retrieval").mkdir()
    metrics = tmp_path / "retrieval/metrics.json"
    metrics.write_text('{"train": {"restarts": 0, "restarted_after": []}}')
    no_restarts(tmp_path)
    metrics.write_text(
        '{"train": {"restarts": 1, "restarted_after": ["rank 0: SIGABRT"]}}'
    )
    (tmp_path / "run.log").write_text("0 | plan | a table\nmalloc(): unaligned\n")
    with pytest.raises(pytest.fail.Exception) as failed:
        no_restarts(tmp_path)
    assert "retrieval" in str(failed.value) and "rank 0: SIGABRT" in str(failed.value)
    assert "malloc(): unaligned" in str(failed.value)
    assert "a table" not in str(failed.value)
