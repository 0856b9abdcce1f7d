"""What the user caused is one clear line and exit code 2, never a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, adrec

from torchrec_adrec.runtime.status import STATUS_FILE, StatusReader


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("prepare", "--config", "no.yaml"), "cannot read the config no.yaml"),
        (("prepare", "data.raw=no.tsv"), "no such file: no.tsv"),
        (("prepare",), "data.raw is empty"),
        (("run", "train.batchsize=4"), "did you mean 'train.batch_size'"),
        (("train", "retrieval", "data.adapter=synthetic"), "run `adrec prepare` first"),
        (("export", "data.adapter=synthetic"), "run `adrec prepare` first"),
        (("recommend", "--user", "no.json"), "cannot read no.json"),
    ],
)
def test_one_line_and_code_2(
    args: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    done = adrec(*args, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_an_error_is_sent_to_the_run_that_launched_the_stage(tmp_path: Path) -> None:
    path = tmp_path / "status"
    environment = {STATUS_FILE: str(path)}
    args = ("export", "data.adapter=synthetic", "--out", tmp_path / "run")
    done = adrec(*args, **environment)
    (status,) = StatusReader(path).read()
    assert status.kind == "error" and status.text == done.stderr.rstrip()
    bug = "from torchrec_adrec.cli import app; app.app = lambda **_: 1 / 0; app.main()"
    done = subprocess.run(
        [sys.executable, "-c", bug],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | environment,
    )
    *_, status = StatusReader(path).read()
    assert status.text.endswith("ZeroDivisionError: division by zero")
    assert "ZeroDivisionError" in done.stderr and done.returncode == 1


def test_unwritable_output(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = adrec("prepare", "data.adapter=synthetic", "--out", tmp_path / "file/run")
    assert done.returncode == 2
    assert "cannot write to" in done.stderr and "Traceback" not in done.stderr


def test_synthesize_ends_with_what_can_be_reached(tmp_path: Path) -> None:
    args = ("--rows", 2000, "--ads", 50, "--users", 40, "drift=0")
    done = adrec("synthesize", tmp_path / "a.tsv", *args)
    assert done.returncode == 0, done.stderr
    assert "Bayes, expected: auc 0." in done.stdout
    assert "Bayes, drawn: auc 0." in done.stdout
    assert {p.name for p in tmp_path.iterdir()} == {"a.tsv", "a.tsv.truth"}
    assert '"drift": 0.0' in (tmp_path / "a.tsv.truth/world.json").read_text()
    for path, setting, message in (
        (tmp_path / "a.tsv", "drfit=0", "did you mean 'data.synthetic.drift'?"),
        (tmp_path / "no/a.tsv", "drift=0", f"cannot write {tmp_path / 'no/a.tsv'}"),
    ):
        done = adrec("synthesize", path, "--rows", 10, setting)
        assert done.returncode == 2 and message in done.stderr


def test_help_teaches() -> None:
    text = adrec("run", "--help", COLUMNS="120").stdout
    assert "skipping those whose inputs have not changed" in text
    assert "train.batch_size=4096" in text
    # Lines of an example stay lines.
    assert "--out runs/mine -j 1x4 " in text and "adrec run --out runs/mine" in text
    assert "Usage: adrec run" in text
