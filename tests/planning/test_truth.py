"""`benchmarks/plan_truth.py`, on a file as `benchmarks/gpu.py` writes it."""

import json
import subprocess
import sys
from pathlib import Path

from conftest import REPOSITORY


def test_what_is_off_is_marked(tmp_path: Path) -> None:
    milliseconds = {
        "ours, float32": 1.0,
        "ours, bfloat16": 4.0,
        "ours, bfloat16+compile": 1.0,
    }
    figures = {
        "machine": {"card": "NVIDIA H200"},
        "speed": {"2048": {"milliseconds": milliseconds | {"plain, float32": 1.0}}},
        "counts": {"batch_size": 2048, "ours, float32": {"launches": 99, "graphs": 1}},
    }
    unknown = figures | {"machine": {"card": "NVIDIA B900"}}
    paths = []
    for name, content in {"a": figures, "b": unknown, "c": {"machine": {}}}.items():
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(content))
    script = REPOSITORY / "benchmarks/plan_truth.py"
    command = [sys.executable, "-W", "ignore", str(script), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    _, _, slow, right, _, other, _, none = done.stdout.splitlines()
    assert slow.endswith("the host's launches  off by more than a fifth")
    assert slow.split()[:2] == ["2048", "float32"] and " 100 " in slow
    assert right.split()[:2] == ["2048", "bfloat16"]
    assert right.endswith("the host's launches") and " - " in right
    assert other == "no figures of 'NVIDIA B900' in planning/gpus.yaml"
    assert none == "not measured on a GPU"
