"""The architecture, held by the imports themselves."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "torchrec_adrec"

# From the top down: a file imports its own room and rooms of lower floors.
FLOORS = (
    ("__main__",),
    ("cli", "launch"),
    ("page", "sweep"),
    ("certify", "pipeline"),
    ("export", "training"),
    ("evaluation", "planning"),
    ("serve",),
    ("tasks",),
    ("data.inspect", "data.loader", "runs"),
    ("data.adapters", "data.prepare"),
    ("data", "data.known_world", "distributed", "index", "models"),
    ("config", "modules"),
    ("runtime", "schema"),
    ("__version__", "arrays", "batch", "errors", "losses"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def sources() -> list[Path]:
    return [p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py"]


def room(dotted: str) -> str:
    """A folder of data/ is a room of its own, and so is every other folder."""
    parts = dotted.split(".")[1:]
    folder = parts[0] == "data" and (PACKAGE / "/".join(parts[:2])).is_dir()
    return ".".join(parts[: 1 + folder])


def module(path: Path) -> str:
    return ".".join(
        ["torchrec_adrec", *path.relative_to(PACKAGE).with_suffix("").parts]
    )


def test_imports_go_down_only() -> None:
    for path in sources():
        own_room = room(module(path))
        for name in imports(path):
            if name.startswith("torchrec_adrec.") and room(name) != own_room:
                assert FLOOR[room(name)] > FLOOR[own_room], f"{path} imports {name}"


def callers_of(name: str) -> set[str]:
    return {
        path.name
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and name in ast.unparse(node.func)
    }


def test_keyed_jagged_tensors_come_from_a_layout_and_layouts_from_collate() -> None:
    assert callers_of("KeyedJaggedTensor") == {"batch.py"}
    assert callers_of("TowerLayout") == {"collate.py"}


def test_only_index_imports_faiss() -> None:
    users = {room(module(p)) for p in sources() if "faiss" in imports(p)}
    assert users == {"index"}


def test_index_does_not_know_torchrec() -> None:
    for path in (PACKAGE / "index").rglob("*.py"):
        assert not any(name.split(".")[0] == "torchrec" for name in imports(path))


def test_models_do_not_know_that_they_are_sharded() -> None:
    for path in (PACKAGE / "models").rglob("*.py"):
        assert not any("distributed" in name for name in imports(path))


def test_preparing_data_never_imports_torch() -> None:
    code = "import sys, torchrec_adrec.cli.app, torchrec_adrec.data.prepare.prepare;"
    code += "assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_no_circle_in_a_room() -> None:
    """`prepare` raises CycleError, which names the circle."""
    modules = {module(path): path for path in sources()}
    graph = {}
    for name, path in modules.items():
        used = tuple(f"{i}." for i in imports(path))
        graph[name] = {m for m in modules if any(u.startswith(f"{m}.") for u in used)}
    TopologicalSorter(graph).prepare()


def test_every_file_stands_in_a_room() -> None:
    loose = {p.stem for p in PACKAGE.glob("*.py")}
    assert loose == {"__init__", "__main__", "arrays", "batch", "errors"}


def test_the_components_import_nothing_of_the_package() -> None:
    """torchx runs it by its path, with any Python that has torchx."""
    path = PACKAGE.parent / "launch/components.py"
    assert not any(name.startswith("torchrec_adrec") for name in imports(path))
