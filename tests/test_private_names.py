"""Hardly a file reads private attributes of a library: a release may rename them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "torchrec_adrec"
INTERNALS = "distributed/torchrec_internals.py"
# Each has a test of its own that reads them from the real library.
READERS = (INTERNALS, "distributed/gloo.py")
ALLOWED = {
    # Public, and named so only that no field of a named tuple can have the same name.
    "_asdict",
    "_replace",
    # Documented functions of the standard library.
    "os._exit",
    "sys._current_frames",
    # What torch's own optimizers divide by; each of its tensors alone is a launch.
    "torch._foreach_div_",
    # Of an operator that torch.utils._python_dispatch hands over.
    "func._schema",
    "func._overloadpacket",
}


def private_reads(text: str) -> Iterator[str]:
    """Every private attribute that some code reads and did not make itself."""
    tree = ast.parse(text)
    defined = {name for node in ast.walk(tree) for name in names_made_by(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = ast.unparse(node.value)
            is_own = owner in ("self", "cls") and node.attr in defined
            if not is_own and not ALLOWED & {node.attr, f"{owner}.{node.attr}"}:
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and "attr" in ast.unparse(node.func):
            words = [a.value for a in node.args if isinstance(a, ast.Constant)]
            if any(isinstance(word, str) and is_private(word) for word in words):
                yield ast.unparse(node)


def names_made_by(node: ast.AST) -> list[str]:
    """Attributes that are assigned to, methods, and fields of classes."""
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        return [node.attr]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return [node.id]
    return []


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_private_attributes_are_read_where_a_test_watches_them_alone() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        if name not in READERS:
            reads = list(private_reads(path.read_text()))
            assert not reads, f"{name} reads {reads}: give it a function in {INTERNALS}"


@pytest.mark.parametrize(
    "line",
    [
        "tables = collection._embedding_bag_configs",
        "for module in model._dmp_wrapped_module.modules(): pass",
        "count = len(getattr(table, '_in_backward_optimizers', ()))",
        "class Own(Enumerator):\n    def run(self): return self._estimators",
    ],
)
def test_a_private_read_would_be_seen(line: str) -> None:
    assert len(list(private_reads(line))) == 1


def test_what_a_file_makes_itself_is_its_own() -> None:
    lines = "class Loop:\n    _step: int = 0\n    def run(self): return self._step"
    assert not list(private_reads(lines))
    assert list(private_reads("def f(loop): return loop._step")) == ["loop._step"]
