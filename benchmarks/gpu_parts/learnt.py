"""What both trainers have learnt of a known world after one epoch: test AUC."""

import tempfile
from argparse import Namespace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from training import CANONICAL
from training_auc import BATCH, ours, plain

from torchrec_adrec.config.run import load_config
from torchrec_adrec.data.adapters import open_data
from torchrec_adrec.data.prepare.prepare import prepare
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.runtime.ranks import SingleProcess

ROWS = {"cuda": 120_000, "cpu": 12_000}


def measure(process: Process, args: Namespace) -> dict[str, Any]:
    """By way, over seeds; the plain trainer has the same loss."""
    with tempfile.TemporaryDirectory() as folder:
        data = _world(Path(folder), ROWS[process.device.type])
        figures: dict[str, list[float]] = {}
        for seed in range(args.seeds):
            for precision in ("float32", "bfloat16"):
                auc = ours(data, _config(seed, precision), process)
                figures.setdefault(f"ours, {precision}", []).append(auc)
            auc = plain(data, _config(seed, "float32"), process, masked=True)
            figures.setdefault("plain, float32", []).append(auc)
    return {
        way: {
            "mean": round(mean(aucs), 4),
            "sd": round(stdev(aucs), 4) if len(aucs) > 1 else None,
            "test_auc": aucs,
        }
        for way, aucs in figures.items()
    }


def _config(seed: int, precision: str) -> Any:
    loop = [f"train.batch_size={BATCH}", f"train.precision={precision}"]
    return load_config(None, [*CANONICAL, f"seed={seed}", *loop])


def _world(folder: Path, rows: int) -> Path:
    args = [f"data.synthetic.rows={rows}"]
    demo = Path(__file__).parents[2] / "configs/synthetic_demo.yaml"
    config = load_config(demo, args)
    prepare(
        config.data,
        open_data(config.data, config.seed, folder, SingleProcess()),
        folder,
        config.seed,
    )
    return folder
