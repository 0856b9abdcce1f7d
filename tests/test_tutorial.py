"""docs/tutorial.ipynb can be read in a diff, and says what the code understands.

`make notebook` runs it; that takes too long for a test.
"""

import json
import shlex
from pathlib import Path

import pytest
from conftest import REPOSITORY
from test_docs import find_command

from torchrec_adrec.config.run import load_config

NOTEBOOK = REPOSITORY / "docs/tutorial.ipynb"


@pytest.fixture
def code() -> list[str]:
    """The text of every cell of code."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_no_output_is_kept() -> None:
    """Figures would grow old, and pictures fill the history."""
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs") and not cell.get("execution_count")


def test_its_commands_parse(code: list[str]) -> None:
    commands = [line for cell in code for line in cell.splitlines()]
    lines = [line for line in commands if line.startswith("adrec ")]
    assert len(lines) == 6
    for line in lines:
        command, left = find_command(shlex.split(line)[1:])
        command.make_context(line, left)


def test_the_device_is_one_setting_for_all_stages(code: list[str]) -> None:
    """The first command keeps it in the run's folder, from which the others read."""
    text = "\n".join(code)
    assert 'os.environ.setdefault("ADREC_DEVICE", "auto")' in text
    commands = [line for line in text.splitlines() if line.startswith("adrec ")]
    assert commands[0].endswith(" device=$ADREC_DEVICE")
    assert not any("device" in command for command in commands[1:])


def test_a_failing_command_ends_it(code: list[str]) -> None:
    """`!adrec` would go on after an error; of %%bash the last command counts."""
    for cell in code:
        assert not any(line.startswith("!") for line in cell.splitlines())
        if cell.startswith("%%bash"):
            assert cell.count("adrec ") == 1 or "\nset -e\n" in cell


def test_its_settings_are_settings(code: list[str], tmp_path: Path) -> None:
    magic = "%%writefile tutorial.yaml\n"
    (text,) = (cell.removeprefix(magic) for cell in code if cell.startswith(magic))
    path = tmp_path / "tutorial.yaml"
    path.write_text(text)
    load_config(path)
