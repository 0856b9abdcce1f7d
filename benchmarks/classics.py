"""Recommenders of the literature on a prepared data set, by the protocols of papers.

    adrec prepare --config configs/amazon_beauty.yaml --out runs/beauty \\
        data.raw=FOLDER/Beauty.txt.gz
    python benchmarks/classics.py runs/beauty --models item_knn ease als --name beauty

Settings are chosen on validation clicks, the test clicks are looked at once for each
model and seed. What is done stands in benchmarks/results/classics_NAME.json and is not
done again, so a run that was interrupted goes on; `--again` does a model anew. Only the
models of `SEEDED` are fitted with every seed; the draws of the sampled protocol are
always those of seed 0. `--curve 20` prints and keeps LightGCN's figures after each
epoch; `--grid` tries other settings than the model's own.

The model `towers` is the run's own, once it is trained; `--towers` adds those of other
runs of the same rows, which may be several seeds of one name:

    python benchmarks/classics.py runs/v1 --towers v1=runs/v1 v2=runs/v2 v2=runs/v2_1
    python benchmarks/classics.py runs/v1 --towers v2=runs/v2 --rerank v2 lightgcn

`--rerank FIRST SECOND` lets SECOND order the `--rerank-k` best ads of FIRST, either of
them the name of towers or a model that is done, whose settings are taken.
"""

import argparse
import json
import logging
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from seeds import shown, summary_of
from timing import RESULTS, keep_result

from torchrec_adrec.errors import ConfigError
from torchrec_adrec.evaluation.classics.factors import Vectors
from torchrec_adrec.evaluation.classics.interactions import Interactions
from torchrec_adrec.evaluation.classics.lightgcn import LightGCNSettings, fit_lightgcn
from torchrec_adrec.evaluation.classics.methods import METHODS, fit, run_method
from torchrec_adrec.evaluation.classics.protocol import (
    RankingProtocol,
    ResultTable,
    judge,
)
from torchrec_adrec.evaluation.classics.report import TITLES, TOWERS, sizes
from torchrec_adrec.evaluation.classics.rerank import FitBefore, run_reranked
from torchrec_adrec.evaluation.classics.towers import Towers, run_towers
from torchrec_adrec.runs.stage_settings import stage_settings
from torchrec_adrec.runs.stages import RETRIEVAL
from torchrec_adrec.tasks.sharded import final_checkpoint

SEEDED = ("als", "bpr", "lightgcn")
SHOWN = tuple(f"{m}@{k}" for m in ("hr", "recall", "ndcg", "mrr") for k in (5, 10, 20))
Runs = dict[str, dict[str, Any]]
"""By model and seed."""


class TrainedTowers(NamedTuple):
    """Towers under the name of their row.

    Attributes:
        name: several of one name are its seeds.
        run: the run's folder.
    """

    name: str
    run: Path

    @classmethod
    def parse(cls, text: str) -> "TrainedTowers":
        """Read `NAME=RUN`."""
        name, is_there, run = text.partition("=")
        if not is_there or name in METHODS:
            raise argparse.ArgumentTypeError(
                f"{text}: expected NAME=RUN, with a NAME that is no model's"
            )
        return cls(name, Path(run))

    @property
    def seed(self) -> str:
        """Of their training."""
        return str(stage_settings(self.run / RETRIEVAL.name).seed)

    @property
    def checkpoint(self) -> dict[str, Any]:
        """What names their weights."""
        return final_checkpoint(self.run / RETRIEVAL.name).origin.model_dump()


@dataclass
class Comparison:
    """Figures of all models on one data set, kept in one file.

    Attributes:
        name: of the file.
        data: the clicks.
        args: of the command.
        kept: what the file holds; `runs` are the figures by model and seed.
    """

    name: str
    data: Interactions
    args: argparse.Namespace
    kept: dict[str, Any]

    @property
    def runs(self) -> Runs:
        """The figures by model and seed."""
        runs: Runs = self.kept.setdefault("runs", {})
        return runs

    def keep(self, model: str, seed: str, figures: dict[str, Any]) -> None:
        """Add the figures of a model, and write the file."""
        self.runs.setdefault(model, {})[seed] = figures
        self.write()

    def write(self) -> None:
        """Write the file; `summary` is of full ranking, over the seeds."""
        full = {
            model: [run["full"]["metrics"] for run in by_seed.values()]
            for model, by_seed in self.runs.items()
        }
        others = {n: part for n, part in self.kept.items() if n != "machine"}
        summary = {"summary": summary_of(full), "data": sizes(self.data)}
        keep_result(self.name, others | summary)

    def is_done(self, model: str, seed: str, **made_of: Any) -> bool:
        """Tell whether the file has a model's figures, made of these parts."""
        figures = self.runs.get(model, {}).get(seed)
        if figures is None or self.args.again:
            return False
        return all(figures.get(name) == part for name, part in made_of.items())

    def judge_method(self, model: str, seed: int) -> None:
        """Fit and judge a model."""
        if self.is_done(model, str(seed)):
            return
        grid = tuple(self.args.grid) if self.args.grid else None
        figures = run_method(
            model, self.data, seed, grid=grid, most_users=self.args.users
        )
        self.keep(model, str(seed), figures)

    def judge_towers(self, towers: TrainedTowers) -> None:
        """Judge towers, again if they were trained again."""
        if self.is_done(towers.name, towers.seed, checkpoint=towers.checkpoint):
            return
        other = Interactions.load(towers.run / "data")
        self.data.check_same(other, str(towers.run))
        figures = run_towers(towers.run, self.data, self.args.users)
        self.keep(towers.name, towers.seed, figures)

    def judge_reranked(self, seed: int) -> None:
        """Let one model order the best ads of another."""
        (first, of_first), (second, of_second) = (
            self.part(name, seed) for name in self.args.rerank
        )
        k, made_of = self.args.rerank_k, [of_first, of_second]
        model = "{0}'s {2} by {1}".format(*self.args.rerank, k)
        if self.is_done(model, str(seed), made_of=made_of):
            return
        users = self.args.users
        figures = run_reranked(first, second, self.data, k, most_users=users)
        self.keep(model, str(seed), {"made_of": made_of, **figures})

    def part(self, name: str, seed: int) -> tuple[FitBefore, dict[str, Any]]:
        """Return what fits a model that is done, and what it is made of.

        Raises:
            ConfigError: it is not done.
        """
        for towers in self.args.towers:
            if (towers.name, towers.seed) == (name, str(seed)):
                load = partial(Towers.load, towers.run, self.data)
                return load, towers.checkpoint
        figures = self.runs.get(name, {}).get(str(seed), {})
        if "settings" not in figures or name not in METHODS:
            raise ConfigError(
                f"--rerank: {name} of seed {seed} is neither a model whose settings are"
                " chosen (`--models`) nor towers that are named (`--towers`)"
            )
        settings = figures["settings"]
        return lambda split: fit(name, settings, self.data, split, seed), settings


def main() -> None:
    """Run the models that are not done yet, and print the tables."""
    args = arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    name = f"classics_{args.name or args.run.name}"
    path = RESULTS / f"{name}.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    comparison = Comparison(name, Interactions.load(args.run / "data"), args, kept)
    for model in args.models:
        for seed in args.seeds if model in SEEDED else args.seeds[:1]:
            comparison.judge_method(model, seed)
    for towers in args.towers:
        comparison.judge_towers(towers)
    for seed in args.seeds if args.rerank else ():
        comparison.judge_reranked(seed)
    if args.curve:
        settings = (args.grid or [{}])[0] | {"epochs": args.curve}
        kept["curve"] = {"settings": settings, "epochs": []}

        def after(epoch: int, figures: dict[str, float]) -> None:
            kept["curve"]["epochs"].append({"epoch": epoch, **figures})
            comparison.write()

        curve(comparison.data, LightGCNSettings(**settings), args.seeds[0], after)
    print_tables(name, comparison.runs)


def arguments() -> argparse.Namespace:
    """Read the command's arguments; the run's own towers are among `towers`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a run, prepared")
    parser.add_argument("--models", nargs="+", default=[], choices=[*METHODS, TOWERS])
    parser.add_argument("--towers", nargs="+", default=[], type=TrainedTowers.parse)
    parser.add_argument("--rerank", nargs=2, metavar=("FIRST", "SECOND"))
    parser.add_argument("--rerank-k", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--name", help="of the result; default: the run's folder")
    parser.add_argument("--again", action="store_true", help="do models anew")
    parser.add_argument("--grid", type=json.loads, help="a JSON list of settings")
    parser.add_argument("--users", type=int, help="judge so many drawn users at most")
    parser.add_argument("--curve", type=int, help="epochs of LightGCN's curve")
    args = parser.parse_args()
    if TOWERS in args.models:
        args.models.remove(TOWERS)
        args.towers.append(TrainedTowers(TOWERS, args.run))
    names = Counter((towers.name, towers.seed) for towers in args.towers)
    for (name, seed), count in names.items():
        if count > 1:
            parser.error(f"--towers: {count} runs of {name} have the seed {seed}")
    return args


def curve(
    data: Interactions, settings: LightGCNSettings, seed: int, after: Any
) -> None:
    """Fit LightGCN on the clicks before the test, and judge it after each epoch.

    The curve shows how far training has come; no epoch is chosen by it.
    """
    protocol = RankingProtocol(most_users=10_000)

    def judge_epoch(epoch: int, vectors: Vectors) -> None:
        means = judge(vectors, data, protocol).means
        after(epoch, {name: means[name] for name in ("recall@20", "ndcg@20")})

    fit_lightgcn(data.known("test"), settings, seed, judge_epoch)


def print_tables(name: str, runs: Runs) -> None:
    """One table for each protocol: they never share one."""
    console = Console(width=160)
    for protocol in ("full", "sampled"):
        table = Table("model", *SHOWN, title=f"{name}: {TITLES[protocol]}")
        results = ResultTable()  # refuses a row of another protocol
        for model, done in runs.items():
            judged = [seed for seed, run in done.items() if protocol in run]
            for seed in judged:
                results.add(f"{model} {seed}", done[seed][protocol])
            rows = [results.rows[f"{model} {seed}"] for seed in judged]
            if rows:
                table.add_row(model, *(shown([row[m] for row in rows]) for m in SHOWN))
        console.print(table)
    cold = {
        model: [run["cold_start"] for run in done.values() if "cold_start" in run]
        for model, done in runs.items()
    }
    lengths = next(([*of_model[0]] for of_model in cold.values() if of_model), [])
    table = Table("model", *lengths, title=f"{name}: HR@10 by length of history")
    for model, of_model in cold.items():
        values = ([figures[n]["hr@10"] for figures in of_model] for n in lengths)
        table.add_row(model, *(shown(v) if v else "-" for v in values))
    console.print(table)


if __name__ == "__main__":
    main()
