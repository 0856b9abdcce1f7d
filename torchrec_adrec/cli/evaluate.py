"""`adrec evaluate` judges a trained model, or the whole funnel, on held-out rows."""

import json
import logging
from typing import Annotated, Any

import typer

from torchrec_adrec.cli.options import (
    ConfigFile,
    Engine,
    Out,
    Overrides,
    RankBy,
)
from torchrec_adrec.runs.run_folder import read_settings
from torchrec_adrec.runs.stages import STAGES, check

Methods = Annotated[
    list[str] | None,
    typer.Option(help="Only this one; give it several times for several."),
]
log = logging.getLogger(__name__)
# As in app.py, each command imports what it needs: torch takes seconds.
app = typer.Typer(
    no_args_is_help=True,
    help="Judge a model that is served, or the whole funnel, on the test rows.",
)


@app.command()
def retrieval(out: Out, config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Print the test figures of the towers that are served, as one line of JSON.

    \b
      adrec evaluate retrieval --out runs/demo
    """
    _evaluate("retrieval", out, config, overrides)


@app.command()
def ranking(out: Out, config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Print the test figures of the ranker that is served, as one line of JSON.

    \b
      adrec evaluate ranking --out runs/demo
    """
    _evaluate("ranking", out, config, overrides)


@app.command()
def funnel(
    out: Out,
    rank_by: RankBy = None,
    engine: Engine = None,
    overrides: Overrides = None,
) -> None:
    """Print what the served ads are worth to held-out users, and where worth is lost.

    Every list is that of the recommender which serves. RUN/funnel keeps the figures
    (metrics.json), those of each user (users.parquet) and a picture (funnel.png). Only
    the seed and settings of `evaluation` count here.

    \b
      adrec evaluate funnel --out runs/demo
      adrec evaluate funnel --out runs/demo --rank-by 'click * value' \\
        evaluation.funnel_users=500
    """
    from torchrec_adrec.evaluation.funnel.names import FOLDER
    from torchrec_adrec.evaluation.funnel.report import evaluate_funnel
    from torchrec_adrec.pipeline.funnel_table import print_funnel
    from torchrec_adrec.pipeline.report import wide_console
    from torchrec_adrec.serve.recommender import Recommender

    settings = read_settings(None, overrides, out)
    recommender = Recommender.load(out, rank_by=rank_by, engine=engine)
    report = evaluate_funnel(out, recommender, settings.evaluation, settings.seed)
    console = wide_console()
    print_funnel(report, console)
    console.print(f"Figures: {out / FOLDER}", highlight=False, soft_wrap=True)


@app.command()
def off_policy(
    out: Out,
    rank_by: RankBy = None,
    engine: Engine = None,
    overrides: Overrides = None,
) -> None:
    """Estimate the click rate of the served ads from a log with propensities.

    The log's column is named in data.table.propensity. IPS, SNIPS and DR, each with an
    interval; refused where too few rows are effective. One line of JSON, kept in
    RUN/funnel/off_policy.json. Only the seed and settings of `evaluation` count here.

    \b
      adrec evaluate off-policy --out runs/mine evaluation.logged_rows=20000
    """
    from torchrec_adrec.evaluation.funnel.policy import evaluate_off_policy
    from torchrec_adrec.serve.recommender import Recommender

    settings = read_settings(None, overrides, out)
    recommender = Recommender.load(out, rank_by=rank_by, engine=engine)
    report = evaluate_off_policy(out, recommender, settings.evaluation, settings.seed)
    if not report["weights_fit"]:
        mean = report["mean_weight"]["mean"]
        log.warning(
            "the mean weight is %.3f and not 1: propensities are wrong, or served ads"
            " have none in this log; the estimates are off by as much",
            mean,
        )
    typer.echo(json.dumps(report))


@app.command()
def classics(
    out: Out,
    method: Methods = None,
    overrides: Overrides = None,
) -> None:
    """Compare the run with recommenders of the literature, by their protocols.

    Every test user's clicks are looked for in the whole catalog, without the ads that
    the user is known to have clicked (full ranking), and, in a table of its own, among
    100 drawn ads. HR, Recall, NDCG and MRR at 5, 10 and 20; and HR@10 of users of whom
    only the latest 0, 3, 5, 10 or 20 clicks are known. The methods are popularity,
    "recent popularity", item_knn, ease, als, bpr, lightgcn, and `towers`: the run's
    own, once they are trained. Settings are chosen on the validation clicks.

    The run needs only its data. als and bpr need the extra `baselines`; ease holds a
    table of ads x ads. RUN/classics keeps the figures (metrics.json) and a picture.

    \b
      adrec prepare --config configs/amazon_beauty.yaml --out runs/beauty
      adrec evaluate classics --out runs/beauty
      adrec evaluate classics --out runs/beauty --method item_knn --method towers
    """
    from torchrec_adrec.evaluation.classics.report import FOLDER, evaluate_classics
    from torchrec_adrec.pipeline.classics_table import print_classics
    from torchrec_adrec.pipeline.report import wide_console

    settings = read_settings(None, overrides, out)
    report = evaluate_classics(out, method, settings.seed)
    console = wide_console()
    print_classics(report, console)
    console.print(f"Figures: {out / FOLDER}", highlight=False, soft_wrap=True)


def _evaluate(task: str, out: Out, config: ConfigFile, overrides: Overrides) -> None:
    from torchrec_adrec.distributed.process import process_group
    from torchrec_adrec.tasks.calibration import load_calibrations
    from torchrec_adrec.training.open_evaluator import open_evaluator

    # It only reads, so it need not hold the run; but what it reads must fit.
    settings = read_settings(config, overrides, out)
    check(STAGES[task], settings, out)  # before a group is joined
    with process_group(settings.device) as process:
        evaluator, model, checkpoint = open_evaluator(task, out, settings, process)
        test = evaluator.test(model, load_calibrations(checkpoint))
        if process.is_first:
            metrics: dict[str, Any] = {"task": task} | checkpoint.origin.model_dump()
            metrics |= {"world_size": process.world_size} | test
            typer.echo(json.dumps(metrics))
