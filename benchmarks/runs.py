"""Test figures of whole runs over seeds, with their spread.

    python benchmarks/runs.py --config configs/criteo_kaggle.yaml --name criteo_kaggle \
        --seeds 0 1 2 --set data.raw=PATH

Every run is `adrec run` on two ranks in a folder of its own below --out.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from timing import keep


def main() -> None:
    """Run, collect, keep."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--config", type=Path, required=True)
    arguments.add_argument("--name", required=True, help="of the file in results/")
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--out", type=Path, default=Path("runs/benchmark"))
    arguments.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    words = arguments.parse_args()
    runs = [_run(words, seed) for seed in words.seeds]
    figures = {key: [run[key] for run in runs] for key in runs[0]}
    summary = {
        key: {"mean": round(mean(values), 4), "sd": round(pstdev(values), 4)}
        for key, values in figures.items()
    }
    keep(words.name, {"seeds": words.seeds, "summary": summary, "runs": figures})


def _run(words: argparse.Namespace, seed: int) -> dict[str, float]:
    out = words.out / f"{words.name}-{seed}"
    command = [sys.executable, "-m", "torchrec_adrec", "run", "--config", words.config]
    command += ["--out", out, "-j", "1x2", f"seed={seed}", *words.set]
    subprocess.run(list(map(str, command)), check=True)
    return _figures(json.loads((out / "metrics.json").read_text()))


def _figures(metrics: dict[str, Any]) -> dict[str, float]:
    judged = {
        "constant": metrics["baselines"]["constant"]["test"],
        "logistic regression": metrics["baselines"]["logistic_regression"]["test"],
        "towers": metrics["retrieval"]["test"]["click"],
        "ranker": metrics["ranking"]["test"]["click"],
    }
    found = {
        f"{name}, {key}": value[key]
        for name, value in judged.items()
        for key in ("auc", "log_loss")
    }
    recalls = metrics["embeddings"]["test"]["all"]
    for name in ("towers", "popularity"):
        found |= {
            f"{name}, {key}": value
            for key, value in recalls[name].items()
            if key.startswith("recall")
        }
    return found


if __name__ == "__main__":
    main()
