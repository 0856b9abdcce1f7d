"""The architecture, held by the imports themselves."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "torchrec_adrec"

# From the top down; a file imports its own layer and those below.
LAYERS = (
    (
        *("cli", "cli_checkpoint", "cli_options", "cli_plan", "cli_serve"),
        *("__main__", "launch"),
    ),
    (
        *("pipeline", "job", "train", "export", "publish", "run_folder"),
        "ledger_report",
    ),
    ("sharded_task", "training", "serve", "report", "planning"),
    (
        *("tasks", "distributed", "evaluation", "stages", "stage_folder", "run_lock"),
        "doctor",
    ),
    ("models", "losses", "index"),
    ("modules", "data"),
    (
        *(
            "schema",
            "batch",
            "errors",
            "disk",
            "guard",
            "files",
            "memory",
            "progress",
            "ranks",
            "threads",
        ),
        *("config", "config_errors", "settings", "__version__"),
        *("data_config", "table_config", "train_config"),
    ),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def sources() -> list[Path]:
    return [p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py"]


def room(dotted: str) -> str:
    return dotted.split(".")[1]


def test_imports_go_down_only() -> None:
    for path in sources():
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        for name in imports(path):
            if name.startswith("torchrec_adrec."):
                assert LEVEL[room(name)] >= LEVEL[own], f"{path} imports {name}"


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
    users = {p.parent.name for p in sources() if "faiss" in imports(p)}
    assert users == {"index"}


def test_index_does_not_know_torchrec() -> None:
    for path in (PACKAGE / "index").glob("*.py"):
        assert not any(name.split(".")[0] == "torchrec" for name in imports(path))


def test_models_do_not_know_that_they_are_sharded() -> None:
    for path in (PACKAGE / "models").glob("*.py"):
        assert not any("distributed" in name for name in imports(path))


def test_preparing_data_never_imports_torch() -> None:
    code = "import sys, torchrec_adrec.cli, torchrec_adrec.data.prepare;"
    code += "assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
