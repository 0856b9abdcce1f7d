"""Peak memory of training steps, each way in a process of its own.

    python benchmarks/memory.py
    python benchmarks/memory.py --rows 20000 --batch 256 --rounds 1    # small

Towers with large tables: in float32 and in float16, and with products in bfloat16. A
ranker with attention: with its activations kept, and computed again in backward
(`train.checkpoint_activations`), in float32 and in bfloat16. The peak is what the
process held at most beyond what it held before the model was built.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table
from timing import keep_result

STEPS = 4
TOWERS = (
    "retrieval={embedding_dim: 64, hidden: [256], output_dim: 64, click_bias: false}",
)
RANKER = (
    "ranking={model: transformer, layers: 4, heads: 4, model_dim: 64}",
    "ranking={feedforward_dim: 256, tables: scratch, embedding_dim: 16}",
)
HALF, BFLOAT16 = "retrieval.tables_precision=float16", "train.precision=bfloat16"
AGAIN = "train.checkpoint_activations=true"
WAYS: dict[str, tuple[str, tuple[str, ...]]] = {
    "towers, float32": ("retrieval", TOWERS),
    "towers, tables in float16": ("retrieval", (*TOWERS, HALF)),
    "towers, products in bfloat16": ("retrieval", (*TOWERS, BFLOAT16)),
    "ranker, float32": ("ranking", RANKER),
    "ranker, activations again": ("ranking", (*RANKER, AGAIN)),
    "ranker, products in bfloat16": ("ranking", (*RANKER, BFLOAT16)),
    "ranker, bfloat16 and again": ("ranking", (*RANKER, BFLOAT16, AGAIN)),
}


def main() -> None:
    """Measure every way in turns, print the medians, keep them."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=200_000, help="of a table")
    arguments.add_argument("--batch", type=int, default=1024)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--way", choices=WAYS, help="measure it in this process")
    arguments.add_argument("--data", type=Path)
    args = arguments.parse_args()
    if args.way:
        print(json.dumps(measure(args.way, args.data, args.rows, args.batch)))
        return
    with tempfile.TemporaryDirectory() as folder:
        data = prepare(Path(folder), args.batch * (STEPS + 1))
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
        for _ in range(args.rounds):
            for name, measured in runs.items():
                measured.append(apart(name, data, args.rows, args.batch))
    figures = {
        name: {key: median(run[key] for run in measured) for key in measured[0]}
        for name, measured in runs.items()
    }
    printed = Table("way", "peak MiB", "seconds a step")
    for name, of_way in figures.items():
        printed.add_row(name, f"{of_way['mib']:,.0f}", f"{of_way['seconds']:.3f}")
    Console().print(printed)
    keep_result("memory", {"rows": args.rows, "batch": args.batch, "ways": figures})


def apart(name: str, data: Path, rows: int, batch: int) -> dict[str, float]:
    """Measure a way in a process of its own."""
    sizes = ["--data", data, "--rows", rows, "--batch", batch]
    command = [sys.executable, __file__, "--way", name, *sizes]
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{name}: {done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def prepare(folder: Path, rows: int) -> Path:
    """Prepare rows that are made up."""
    from torchrec_adrec.config.run import load_config
    from torchrec_adrec.data.adapters import open_data
    from torchrec_adrec.data.prepare.prepare import prepare as prepare_data
    from torchrec_adrec.runtime.ranks import SingleProcess

    size = f"{{rows: {2 * rows}, ads: 1000, users: 1000}}"
    config = load_config(None, ["data.adapter=synthetic", f"data.synthetic={size}"])
    data = folder / "data"
    data.mkdir()
    opened = open_data(config.data, 0, data, SingleProcess())
    prepare_data(config.data, opened, data, 0)
    return data


def measure(name: str, data: Path, rows: int, batch: int) -> dict[str, float]:
    """Take some steps and return the peak that they cost, and their time."""
    from torchrec_adrec.config.run import load_config
    from torchrec_adrec.distributed.process import process_group
    from torchrec_adrec.runtime.memory import peak_mebibytes
    from torchrec_adrec.schema import Schema
    from torchrec_adrec.tasks.sharded import build
    from torchrec_adrec.tasks.task import columns_of
    from torchrec_adrec.training.batch_source import BatchSource
    from torchrec_adrec.training.precision import MatmulPrecision
    from torchrec_adrec.training.step_runner import StepRunner

    task, settings = WAYS[name]
    loop = f"train={{batch_size: {batch}, health_every: 0, dead_model: warn}}"
    config = load_config(None, [loop, *settings, "device=cpu"])
    schema = Schema.load(data / "schema.json")
    # The ids of the rows are the first of a table, whose others cost as much memory.
    sparse = (f.model_copy(update={"num_embeddings": rows}) for f in schema.sparse)
    schema = schema.model_copy(update={"sparse": tuple(sparse)})
    precision = MatmulPrecision("highest", config.train.precision == "bfloat16")
    with process_group("cpu") as process:
        before = peak_mebibytes()
        columns = columns_of(task, schema)
        source = BatchSource(data, columns, config.train, 0, process, data)
        sharded = build(task, schema, config, process)
        steps = StepRunner(sharded, source, process, config.train, 0, precision)
        steps.run_step()
        began = time.perf_counter()
        for _ in range(STEPS - 1):
            steps.run_step()
        seconds = (time.perf_counter() - began) / (STEPS - 1)
        steps.close()
        return {"mib": peak_mebibytes() - before, "seconds": seconds}


if __name__ == "__main__":
    main()
