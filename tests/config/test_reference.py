"""docs/configuration.md lists every setting as the code has it."""

import pytest
from conftest import REPOSITORY
from pydantic import Field
from typer.testing import CliRunner

from torchrec_adrec.cli.app import app
from torchrec_adrec.config.base import Settings
from torchrec_adrec.config.reference import Blocks, reference

PAGE = REPOSITORY / "docs/configuration.md"


def test_the_page_is_what_the_command_prints() -> None:
    printed = CliRunner().invoke(app, ["settings"]).output
    assert printed == PAGE.read_text(), "run: adrec settings > docs/configuration.md"


def row(name: str, block: str) -> str:
    section = reference().partition(f"\n## {block}\n")[2].partition("\n## ")[0]
    (line,) = (line for line in section.splitlines() if line.startswith(f"| `{name}`"))
    return line


@pytest.mark.parametrize(
    ("block", "name", "parts"),
    [
        ("train", "batch_size", ["a whole number from 1", "`1024`", "*all* ranks"]),
        ("Top level", "seed", ["from 0 and below 8,388,608"]),
        ("train", "patience", ["a whole number from 1, or null", "`null`"]),
        ("retrieval.optimizer", "tables_lr", ["a number above 0", "`0.02`"]),
        ("ranking.optimizer", "tables_lr", ["`0.05`"]),  # its own default
        ("data.table", "user", ["names, each with a block", "must be given"]),
        ("data.table.user.NAME of kind sequence", "separator", ['`" "`']),
        ("sharding", "types", ["a list of `table_wise`", "at least one, or null"]),
        ("index", "memory_gib", ["Counts only with `index.kind` auto."]),
        ("ranking.conditional.NAME", "given", ["text", "must be given"]),
        ("data", "statistics", ["a block, or null", "[data.md](data.md)"]),
    ],
)
def test_a_row_says_values_default_and_meaning(
    block: str, name: str, parts: list[str]
) -> None:
    line = row(name, block)
    assert [part for part in parts if part not in line] == []


def test_a_setting_without_a_docstring_is_refused() -> None:
    class Bare(Settings):
        """A block."""

        rows: int = Field(3)

    with pytest.raises(KeyError, match="description"):
        list(Blocks({}).tables("", Bare.model_json_schema(), {}))
