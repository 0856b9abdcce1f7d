"""`adrec sweep` compares settings over seeds."""

from pathlib import Path
from typing import Annotated

import typer

from torchrec_adrec.cli.options import Overrides

# As in app.py, the command imports what it needs: torch takes seconds.


def sweep(
    grid: Annotated[Path, typer.Argument(help="YAML file of the sweep.")],
    out: Annotated[
        Path, typer.Option("--out", help="Folder of the sweep, with a run a seed.")
    ],
    trials: Annotated[
        int,
        typer.Option(
            min=0, help="Number of variants that a search draws, for `search` alone."
        ),
    ] = 0,
    all_test: Annotated[
        bool,
        typer.Option(
            "--all-test",
            help="Show the test figures of all variants, where nothing is chosen.",
        ),
    ] = False,
    job: Annotated[
        str, typer.Option("-j", help="1xRANKS: how many processes share a run.")
    ] = "1x1",
    overrides: Overrides = None,
) -> None:
    """Train variants of a configuration over seeds; one table with mean and spread.

    The file names what is compared; every key is checked before anything runs:

    \b
      config: movie_lab.yaml        # what all start from, beside the file
      settings: {train.epochs: 3}   # of all runs
      seeds: [0, 1, 2]
      stages: [retrieval, ranking]  # and export, for export.recall@100
      metric: ranking.click.auc     # on validation rows; it chooses
      variants:                     # name: {setting: value}
        plain: {}
        wide: {ranking.hidden: [256, 128]}
      grid: {retrieval.temperature: [0.05, 0.2]}   # every combination
      search:                       # or, with --trials N, in place of both
        retrieval.optimizer.dense_lr: {low: 0.0001, high: 0.01, log: true}

    The variant with the best mean on the validation rows is chosen, and only its test
    figures are shown. Runs that agree on what a stage reads share it. A run that fails
    is named, the others go on, and the exit code is 1. After an interruption the same
    command goes on, to the same table: sweep.md, sweep.json and sweep.png.

    \b
    An example that needs no data, a few minutes on two cores:
      adrec sweep configs/sweeps/movie_lab.yaml --out runs/lab
    Your own rows, with fewer epochs:
      adrec sweep my_grid.yaml --out runs/grid data.raw=clicks.csv train.epochs=1
    A search (pip install 'torchrec-adrec[sweep]'); more trials go on from there:
      adrec sweep configs/sweeps/movie_lab_search.yaml --out runs/search --trials 20
    """
    from torchrec_adrec.pipeline.display import RUN_LOG
    from torchrec_adrec.pipeline.report import wide_console
    from torchrec_adrec.runs.stage_folder import make_run
    from torchrec_adrec.runtime.logs import log_to_file
    from torchrec_adrec.sweep.plan import read_sweep
    from torchrec_adrec.sweep.report import PAGE, table_of, test_lines
    from torchrec_adrec.sweep.sweep import run_sweep

    plan = read_sweep(grid, overrides or ())

    def say(line: str) -> None:
        typer.echo(line, err=True)

    make_run(out)
    log_to_file(out / RUN_LOG)
    report = run_sweep(plan, out, job, trials, all_test, say)
    console = wide_console()
    console.print(table_of(report))
    for line in test_lines(report):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"Table: {out / PAGE}", highlight=False, soft_wrap=True)
    if any(variant["failed"] for variant in report["variants"]):
        raise typer.Exit(1)
