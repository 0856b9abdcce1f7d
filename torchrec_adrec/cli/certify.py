"""`adrec certify`, `adrec bundle` and `adrec explain`: what a run serves, and why."""

from pathlib import Path
from typing import Annotated, Any

import typer

from torchrec_adrec.cli.options import Bundled, Condition, Out, RankBy, Top, User
from torchrec_adrec.cli.serve import read_user
from torchrec_adrec.runs.unpack import unpacked


def certify(
    out: Out,
    requests: Annotated[
        int, typer.Option(min=1, help="Held-out users that are asked for.")
    ] = 200,
) -> None:
    """Prove that the served score is the trained score; write RUN/certificate.json.

    The model on one rank and on two, the exported vectors, the index, and a server over
    HTTP answer the same requests. From then on a run whose parts are not the certified
    ones, or whose numbers differ, is refused at the start.

    \b
      adrec certify --out runs/demo
    """
    from torchrec_adrec.certify.certify import certify as make_certificate
    from torchrec_adrec.certify.certify import issue
    from torchrec_adrec.pipeline.report import wide_console
    from torchrec_adrec.runs.run_lock import Job, hold
    from torchrec_adrec.runtime.disk import disk_errors

    with disk_errors(out), hold(out, Job.new()):
        certificate = make_certificate(out, requests)
        wide_console().print(_table(certificate))
        issue(out, certificate)
    typer.echo(f"certified: {out / 'certificate.json'}")


def bundle(
    out: Out,
    to: Annotated[
        Path, typer.Option("--to", help="Folder or FILE.tar that is written.")
    ],
) -> None:
    """Pack what serving needs of a run for another machine.

    The run is opened first, so that one that could not be served is not packed.

    \b
      adrec bundle --out runs/demo --to demo.tar
      adrec serve --bundle demo.tar
    """
    from torchrec_adrec.runs.run_lock import Job, hold
    from torchrec_adrec.runtime.disk import disk_errors
    from torchrec_adrec.serve.bundle import check_target, pack
    from torchrec_adrec.serve.recommender import Recommender

    check_target(to)
    with disk_errors(to.absolute().parent), hold(out, Job.new()):
        Recommender.load(out)
        manifest = pack(out, to)
    megabytes = sum(file.size for file in manifest.files.values()) / 1e6
    typer.echo(f"{to}: {len(manifest.files)} files, {megabytes:.1f} MB")


def explain(
    out: Bundled,
    ad: Annotated[int, typer.Argument(help="Id of the ad.")],
    user: User = "0",
    top: Top = None,
    rank_by: RankBy = None,
    eligible: Condition = None,
) -> None:
    """Tell why a user gets an ad, or at which stage it was lost.

    Below that stands what each raw column adds to every prediction and to the towers'
    score: how much less it is if the column is missing. These numbers do not add up.

    \b
      adrec explain --out runs/demo --user 7 5765975559519908969
    """
    with unpacked(out) as folder:
        features = read_user(user, folder)
        from torchrec_adrec.pipeline.report import wide_console
        from torchrec_adrec.serve.recommender import Recommender

        recommender = Recommender.load(folder, rank_by=rank_by)
    explanation = recommender.explain(features, ad, top, eligible)
    for line in explanation.lines:
        typer.echo(line)
    if explanation.columns is not None:
        wide_console().print(_columns_table(explanation.columns))


def _columns_table(columns: Any) -> Any:
    from rich.table import Table

    # By what a column adds to the first label, the click, up or down.
    largest_first = columns.sort(columns[:, 3].abs(), descending=True)
    table = Table(*columns.columns, title="What each column adds")
    for row in largest_first.iter_rows():
        table.add_row(*(f"{x:+.3g}" if isinstance(x, float) else x for x in row))
    return table


def _table(certificate: Any) -> Any:
    from rich.table import Table

    table = Table(title=f"{certificate.requests} held-out requests")
    for name in ("compared", "numbers", "largest difference", "allowed", "top 10"):
        table.add_column(name)
    for row in certificate.comparisons:
        allowed = "" if row.allowed is None else f"{row.allowed:.2g}"
        table.add_row(
            row.name,
            f"{row.count:,}",
            f"{row.largest:.2g} of {row.unit}",
            allowed if row.passes else f"{allowed} FAILED",
            "" if row.overlap is None else f"{row.overlap:.3f}",
        )
    return table
