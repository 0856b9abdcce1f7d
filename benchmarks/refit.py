"""What a ranker gains by a refit on training and validation rows (`ranking.refit`).

    head -98740 train.txt > first.txt   # nine tenths of the rows: the rest stays new
    adrec prepare --config configs/criteo_kaggle.yaml --out RUN data.raw=first.txt \
        'data.split={train: 0.7778, valid: 0.1111, test: 0.1111}'
    python benchmarks/refit.py RUN/data --seeds 0 1 2

The split that is called test is then the validation rows of `rankers.py`, so that this
choice looks at no later ones. The table has the click's AUC and log loss on them, and
the mean prediction over the mean label, of the first fit and of its refit. There are no
towers, so nothing is blended.
"""

import argparse
import json
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table
from seeds import shown
from timing import keep_result

from torchrec_adrec.config.run import load_config
from torchrec_adrec.distributed.process import Process, process_group
from torchrec_adrec.tasks.sharded import METRICS
from torchrec_adrec.training.refit import FIRST_FIT, fit_stage

CONFIG = Path(__file__).parents[1] / "configs/criteo_kaggle.yaml"
COMMON = ("ranking.refit=true", "train.checkpoint_every=1000000")
FIGURES = ("auc", "log_loss", "calibration")
Figures = dict[str, float]


def main() -> None:
    """Fit twice for every seed, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="a prepared data set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], help="key=value ...")
    parser.add_argument("--name", default="refit", help="of the result")
    args = parser.parse_args()
    runs: list[dict[str, Figures]] = []
    with process_group("cpu") as process:
        for seed in args.seeds:
            words = [*COMMON, f"seed={seed}", *args.set]
            runs.append(fits(args.data, words, process))
            seeds = args.seeds[: len(runs)]
            keep_result(args.name, {"seeds": seeds, "set": args.set, "runs": runs})
    Console(width=120).print(table_of(runs))


def fits(data: Path, words: list[str], process: Process) -> dict[str, Figures]:
    """Fit and refit a ranker alone, and judge both on the test split."""
    config = load_config(CONFIG, words)
    with tempfile.TemporaryDirectory() as folder:
        second = fit_stage("ranking", config, process, data, Path(folder))
        first = json.loads((Path(folder) / FIRST_FIT / METRICS).read_text())
    judged = {"first fit": first, "refit": second}
    return {
        name: {figure: metrics["test"]["click"][figure] for figure in FIGURES}
        for name, metrics in judged.items()
    }


def table_of(runs: list[dict[str, Figures]]) -> Table:
    """Return a line for each fit: means over seeds (standard deviation)."""
    table = Table("fit", *FIGURES, title=f"{len(runs)} seeds")
    for name in runs[0]:
        values = [[run[name][figure] for run in runs] for figure in FIGURES]
        table.add_row(name, *map(shown, values))
    return table


if __name__ == "__main__":
    main()
