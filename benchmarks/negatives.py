"""Losses and negatives of the towers, by full ranking of the whole catalog.

    python benchmarks/negatives.py CONFIG RUN/data --name beauty --seeds 0 1 2

Every row of the table is trained for each seed and each of `--temperatures`, judged on
the validation clicks while it trains, and stopped as CONFIG says. The temperature that
is best on validation, over the seeds, is the row's; only then its test clicks are
looked at, once. Ads of the user's history are no candidates. Fits are kept as they are
made: a run that was killed goes on, and fits of other settings are made anew.

With `--mined CHECKPOINT`, of towers that were trained on these rows before, there are
rows of negatives that it mines. With `--vectors FOLDER` of `adrec lightgcn` the rows
are towers from scratch, towers that start with these vectors, and towers that are drawn
towards them.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table
from seeds import shown, summary_of
from timing import RESULTS, keep_result

from torchrec_adrec.config.run import Config, load_config
from torchrec_adrec.distributed import checkpoint
from torchrec_adrec.distributed.process import Process, process_group
from torchrec_adrec.evaluation.catalog_judge import CatalogJudge
from torchrec_adrec.schema import Schema
from torchrec_adrec.tasks.sharded import build, final_checkpoint
from torchrec_adrec.training.mine import mine
from torchrec_adrec.training.trainer import Trainer

CORRECTIONS = ("none", "standard", "without_positive")
FIGURES = ("recall@10", "ndcg@10")
Fits = dict[str, dict[str, Any]]


# A row says all that it is about: what CONFIG has of it would make rows the same.
IN_BATCH = (
    "retrieval.contrast=softmax",
    "retrieval.in_batch_negatives=true",
    "retrieval.uniform_negatives=0",
    "retrieval.hardest=null",
    "retrieval.hardest_rise=0",
    "retrieval.mined={}",
)


def negatives(uniform: int, hardest: int, mined: str) -> dict[str, tuple[str, ...]]:
    """Return how each choice of negatives differs from `IN_BATCH`."""
    alone = "retrieval.in_batch_negatives=false"
    drawn = f"retrieval.uniform_negatives={uniform}"
    choices = {
        "in-batch": (),
        "uniform": (alone, drawn),
        "mixed": (drawn,),
        "hardest in batch": (f"retrieval.hardest={hardest}",),
        "hardest, rising": (
            f"retrieval.hardest={hardest}",
            "retrieval.hardest_rise=0.5",
        ),
    }
    if mined:
        lists = f"retrieval.mined={{per_click: 4, checkpoint: {mined}}}"
        choices |= {"mined": (lists,), "mixed and mined": (drawn, lists)}
    return choices


def rows(uniform: int, hardest: int, mined: str = "") -> dict[str, tuple[str, ...]]:
    """Return the settings of each row of the table, by its name."""
    table = {}
    for name, settings in negatives(uniform, hardest, mined).items():
        for log_q in CORRECTIONS:
            table[f"softmax, {name}, log_q {log_q}"] = (
                *IN_BATCH,
                *settings,
                f"retrieval.log_q={log_q}",
            )
        # Losses of pairs draw from the batch alone.
        for loss in ("bpr", "triplet") if "mined" not in name else ():
            table[f"{loss}, {name}"] = (
                *IN_BATCH,
                *settings,
                f"retrieval.contrast={loss}",
            )
    return table


def rows_of_vectors(uniform: int, folder: Path) -> dict[str, tuple[str, ...]]:
    """Return the settings of towers with and without vectors made elsewhere."""
    drawn = f"retrieval.uniform_negatives={uniform}"
    mixed = (*IN_BATCH, drawn, "retrieval.start_from=null", "retrieval.teacher=null")
    start = f"retrieval.start_from={folder}"
    taught = {
        f"taught, weight {weight}": (
            *mixed,
            f"retrieval.teacher={{vectors: {folder}, weight: {weight}}}",
        )
        for weight in (0.1, 0.5, 2)
    }
    return {"from scratch": mixed, "started": (*mixed, start), **taught}


def main() -> None:
    """Fit what is missing, choose on validation, look at the test, print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("config", type=Path)
    arguments.add_argument("data", type=Path, help="a prepared data set")
    arguments.add_argument("--name", required=True, help="of the result")
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments.add_argument("--temperatures", nargs="+", default=["0.05", "0.1"])
    arguments.add_argument("--uniform", type=int, default=1024)
    arguments.add_argument("--hardest", type=int, default=64)
    arguments.add_argument("--mined", default="", help="checkpoint of earlier towers")
    arguments.add_argument("--rows", default="", help="only rows with this in the name")
    arguments.add_argument("--vectors", type=Path, help="a folder of adrec lightgcn")
    arguments.add_argument("--set", nargs="*", default=[], help="further settings")
    args = arguments.parse_args()
    path = RESULTS / f"negatives_{args.name}.json"
    fits: Fits = json.loads(path.read_text())["runs"] if path.exists() else {}
    every = (
        rows_of_vectors(args.uniform, args.vectors)
        if args.vectors
        else rows(args.uniform, args.hardest, args.mined)
    )
    table = {name: settings for name, settings in every.items() if args.rows in name}
    with tempfile.TemporaryDirectory() as scratch, process_group("cpu") as process:
        bench = Bench(args, fits, Path(scratch), process)
        for number, (name, settings) in enumerate(table.items(), start=1):
            print(f"{number} of {len(table)}: {name}", file=sys.stderr)
            bench.make_row(name, settings)
    Console(width=140).print(as_table(fits, table))


class Bench:
    """Makes the rows of the table and keeps each fit.

    Args:
        args: of the command.
        fits: those that are there already, by row, temperature and seed.
        scratch: a folder for checkpoints.
        process: this rank.
    """

    def __init__(
        self, args: argparse.Namespace, fits: Fits, scratch: Path, process: Process
    ) -> None:
        self.args, self.fits, self.process = args, fits, process
        self.scratch, self.data = scratch, args.data
        self.schema = Schema.load(self.data / "schema.json")

    def make_row(self, name: str, settings: tuple[str, ...]) -> None:
        """Fit a row at all temperatures and look at the test of the best of them."""
        for temperature in self.args.temperatures:
            for seed in self.args.seeds:
                self._fit(name, settings, temperature, seed)
        best = max(self.args.temperatures, key=lambda t: self._valid(name, t))
        for seed in self.args.seeds:
            fit = self.fits[key(name, best, seed)]
            if "test" not in fit:
                fit["test"] = self._judge(name, settings, best, seed, "test")
                self._keep()

    def _fit(
        self, name: str, settings: tuple[str, ...], temperature: str, seed: int
    ) -> None:
        config, place = (
            self._config(settings, temperature, seed),
            key(name, temperature, seed),
        )
        given = config.model_dump(mode="json")
        if self.fits.get(place, {}).get("config") == given:
            return
        folder = self._folder(place)
        folder.mkdir()
        mine(config, self.process, self.data, folder)
        trainer = Trainer("retrieval", config, self.process, self.data, folder)
        train = trainer.fit()["train"]
        self.fits[place] = {
            "valid": self._figures(config, trainer.model, "valid"),
            "steps": train["steps"],
            "samples_per_second": train["samples_per_second"],
            "history": train["validation"],
            "config": given,
        }
        self._keep()

    def _judge(
        self,
        name: str,
        settings: tuple[str, ...],
        temperature: str,
        seed: int,
        split: str,
    ) -> dict[str, float]:
        """Judge a fit again, from its checkpoint; one that is gone is made again."""
        config, place = (
            self._config(settings, temperature, seed),
            key(name, temperature, seed),
        )
        if not self._folder(place).exists():
            del self.fits[place]
            self._fit(name, settings, temperature, seed)
        model = build("retrieval", self.schema, config, self.process).model
        checkpoint.load(final_checkpoint(self._folder(place)), model, self.schema)
        return self._figures(config, model, split)

    def _figures(self, config: Config, model: Any, split: str) -> dict[str, float]:
        towers = config.retrieval.model_copy(update={"judge_queries": 10**9})
        config = config.model_copy(update={"retrieval": towers})
        judge = CatalogJudge(self.data, self.schema, config, self.process, split)
        return judge.figures(model)

    def _config(self, settings: tuple[str, ...], temperature: str, seed: int) -> Config:
        overrides = [f"retrieval.temperature={temperature}", f"seed={seed}"]
        return load_config(
            self.args.config, [*self.args.set, *settings, *overrides, "device=cpu"]
        )

    def _folder(self, place: str) -> Path:
        return self.scratch / place.replace(", ", "-").replace(" ", "_")

    def _valid(self, name: str, temperature: str) -> float:
        fits = [self.fits[key(name, temperature, seed)] for seed in self.args.seeds]
        return mean(float(fit["valid"]["ndcg@10"]) for fit in fits)

    def _keep(self) -> None:
        RESULTS.mkdir(exist_ok=True)
        judged: dict[str, list[dict[str, float]]] = {}
        for name, fit in self.fits.items():
            if "test" in fit:
                judged.setdefault(name.rpartition(", seed ")[0], []).append(fit["test"])
        figures = {"summary": summary_of(judged), "runs": self.fits}
        keep_result(f"negatives_{self.args.name}", figures)


def key(name: str, temperature: str, seed: int) -> str:
    """Name a fit."""
    return f"{name}, T {temperature}, seed {seed}"


def as_table(fits: Fits, table: dict[str, tuple[str, ...]]) -> Table:
    """Return the rows that were judged on the test, means over their seeds."""
    columns = [f"{split} {figure}" for split in ("valid", "test") for figure in FIGURES]
    printed = Table("loss, negatives", "T", *columns, "steps")
    for name in table:
        chosen = {k: f for k, f in fits.items() if k.startswith(f"{name}, T ")}
        judged = {k: f for k, f in chosen.items() if "test" in f}
        if judged:
            temperature = next(iter(judged)).split(", T ")[1].split(",")[0]
            cells = [
                shown([fit[split][figure] for fit in judged.values()])
                for split in ("valid", "test")
                for figure in FIGURES
            ]
            steps = shown([fit["steps"] for fit in judged.values()])
            printed.add_row(name, temperature, *cells, steps)
    return printed


if __name__ == "__main__":
    main()
