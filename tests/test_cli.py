"""What the user caused is one clear line and exit code 2, never a traceback."""

from pathlib import Path

import pytest
from conftest import adrec


@pytest.mark.parametrize(
    ("words", "message"),
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
    words: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    done = adrec(*words, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_unwritable_output(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = adrec("prepare", "data.adapter=synthetic", "--out", tmp_path / "file/run")
    assert done.returncode == 2
    assert "cannot write to" in done.stderr and "Traceback" not in done.stderr


def test_help_teaches() -> None:
    text = adrec("run", "--help", COLUMNS="120").stdout
    assert "skipping those whose inputs have not changed" in text
    assert "train.batch_size=4096" in text
