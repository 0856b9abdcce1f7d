"""`adrec compare` puts two runs side by side."""

import json
from pathlib import Path
from typing import Annotated

import typer

# As in app.py, the command imports what it needs: torch takes seconds.


def compare(
    run_a: Annotated[Path, typer.Argument(help="Folder of a finished run: A.")],
    run_b: Annotated[Path, typer.Argument(help="Folder of another one: B.")],
    seed: Annotated[int, typer.Option(min=0, help="Of the resamples.")] = 0,
    to: Annotated[
        Path | None, typer.Option("--to", help="JSON file that is written too.")
    ] = None,
) -> None:
    """Compare what two runs serve on the same test rows, with paired intervals.

    AUC, log loss and NDCG of the click, recall of held-out clicks, and the funnel's
    worth where both were judged. Runs whose test rows differ are refused.

    \b
      adrec compare runs/demo runs/other --to comparison.json
    """
    from torchrec_adrec.distributed.process import process_group
    from torchrec_adrec.pipeline.compare import compare as compare_runs
    from torchrec_adrec.pipeline.compare import comparison_table
    from torchrec_adrec.pipeline.report import wide_console

    with process_group("cpu") as process:
        comparison = compare_runs(run_a, run_b, seed, process)
    wide_console().print(comparison_table(comparison, run_a, run_b))
    for note in comparison.notes:
        typer.echo(f"not compared: {note}")
    if to is not None:
        to.write_text(json.dumps(comparison.to_json(), indent=1) + "\n")
