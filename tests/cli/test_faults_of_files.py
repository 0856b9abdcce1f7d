"""A file that is damaged or wrong is one line and exit code 2, without a traceback."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from torchrec_adrec.cli import app
from torchrec_adrec.errors import AdRecError, reason
from torchrec_adrec.runs.stages import stage_folder
from torchrec_adrec.runtime.files import Origin
from torchrec_adrec.serve.http.hot_swap import Served
from torchrec_adrec.serve.http.server import listen

DEEP = 100_000 * "["
FAULTS = [
    (file, text)
    for file, texts in {
        "index/manifest.json": ("", "null", DEEP, '{"kind": 3}'),
        "export/manifest.json": ("{}", '{"checkpoint": "step 4"}'),
        "retrieval/stage.json": ("", DEEP),
        "export/stage.json": ("[]",),
        "index/stage.json": ("{}",),
        "ranking/stage.json": ('{"build_id": 3}',),
        "data/hashes.json": ("", "{}", "[1]", '{"schema.json": 3}', DEEP),
        "data/schema.json": ("{}",),
        "ranking/metrics.json": ("", "[]", '{"checkpoint": 3}', DEEP),
        # The last ones are settings, but not all that the stage was made with.
        "index/config.yaml": ("[", "seed: [1, 2", DEEP, "", "{}", "seed: 0"),
        "retrieval/config.yaml": ("", "seed: 0"),
        "ranking/config.yaml": ("", "seed: 0"),
    }.items()
    for text in texts
]


def is_one_plain_line(text: str) -> bool:
    return "\n" not in text and "http" not in text and 20 < len(text) < 700


@pytest.mark.parametrize(
    ("file", "text"), FAULTS, ids=[f"{file} {text[:9]}" for file, text in FAULTS]
)
def test_a_damaged_file_of_a_run_is_named(
    run: Path, tmp_path: Path, file: str, text: str
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy, copy_function=os.link)
    stage, _, name = file.partition("/")
    path = stage_folder(copy, stage) / name if stage == "index" else copy / file
    path.unlink()
    path.write_text(text)
    with pytest.raises(AdRecError) as raised:
        Served.load(copy)
    message = str(raised.value)
    assert is_one_plain_line(message)
    assert stage in message and raised.value.code == 2


USERS: dict[str, tuple[str | bytes, str]] = {
    "deep": (DEEP, "nested too deeply"),
    "list": ("[1]", "expected one object of raw columns, found list"),
    "text": ('"C1"', "expected one object of raw columns, found str"),
    "empty": ("", "is no JSON"),
    "binary": (b"\xff\xfe\x00", "is no JSON"),
    "python": ("{'C1': 3}", "is no JSON"),
}


Command = Callable[..., str]


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run `adrec` in this process; returns what it prints before it ends with 2."""

    def run_command(*args: object) -> str:
        monkeypatch.setattr(sys, "argv", ["adrec", *map(str, args)])
        monkeypatch.setattr(app, "setup_logging", lambda: None)
        monkeypatch.setattr(app, "keep_freed_memory", lambda: None)
        with pytest.raises(SystemExit) as raised:
            app.main()
        assert raised.value.code == 2
        return capsys.readouterr().err.strip()

    return run_command


@pytest.mark.parametrize("name", [*USERS, "missing", "folder", "power"])
def test_a_wrong_user_is_one_line_and_code_2(
    name: str, tmp_path: Path, command: Command
) -> None:
    path = tmp_path / "user.json"
    content, message = USERS.get(name, (b"", "cannot read"))
    if name in USERS:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    elif name == "folder":
        path.mkdir()
    user = "7\u00b2" if name == "power" else path
    error = command("recommend", "--out", tmp_path, "--user", user)
    assert message in error and is_one_plain_line(error)


def test_the_server_ends_with_one_line_too(tmp_path: Path, command: Command) -> None:
    (tmp_path / "retrieval").mkdir()
    (tmp_path / "retrieval/stage.json").write_text("")
    error = command("serve", "--out", tmp_path, "--port", 0)
    assert "stage.json is damaged" in error and is_one_plain_line(error)
    with listen("127.0.0.1", 0) as other:
        other.listen()
        error = command("serve", "--out", tmp_path, "--port", other.getsockname()[1])
    assert "cannot listen on 127.0.0.1" in error and is_one_plain_line(error)


@pytest.mark.parametrize(("text", "message"), [("", "one line of ASCII"), (None, "No")])
def test_a_wrong_token_file_is_one_line(
    tmp_path: Path, command: Command, text: str | None, message: str
) -> None:
    path = tmp_path / "token"
    if text is not None:
        path.write_text(text)
    error = command("serve", "--out", tmp_path, "--token-file", path)
    assert message in error and is_one_plain_line(error)


def test_the_reason_of_a_fault_has_neither_the_input_nor_an_address() -> None:
    with pytest.raises(ValueError) as raised:
        Origin.model_validate({"step": "Zanzibar", "weights": 3, "more": 1, "x": 2})
    line = reason(raised.value)
    assert line.count(";") == 2 and line.startswith("step: Input should be")
    assert "Zanzibar" not in line and "http" not in line
