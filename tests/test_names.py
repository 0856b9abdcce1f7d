"""A variable is called after the thing that it holds."""

import ast
from pathlib import Path

import pytest
from readability import BANNED, bound_names

ROOT = Path(__file__).parents[1]
ROOMS = ("torchrec_adrec", "tests", "benchmarks", "launch")
SOURCES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_variable_has_a_name_that_says_nothing(path: Path) -> None:
    names = bound_names(ast.parse(path.read_text()))
    wrong = [f"{path}:{line}: {name}" for name, line in names if name in BANNED]
    assert not wrong, "name the thing itself: " + "; ".join(wrong)
