"""`adrec versions COMMAND`: the versions of a run's index, and the way back to one."""

from typing import Annotated

import typer

from torchrec_adrec.cli.options import Out

app = typer.Typer(
    no_args_is_help=True,
    help="List the published versions of a run's index, and go back to one.",
)


@app.command("list")
def list_versions(out: Out) -> None:
    """Print the versions, the oldest first; the one that is served has a star.

    The last line names the changes of its ads, if there are some.

    \b
      adrec versions list --out runs/demo
    """
    from torchrec_adrec.index.manifest import IndexManifest
    from torchrec_adrec.runs.ad_changes import newest_changes
    from torchrec_adrec.runs.stages import INDEX
    from torchrec_adrec.runs.versions import VERSIONS, current_name, version_names

    folder = out / INDEX.name
    for name in version_names(folder):
        sign = "*" if name == current_name(folder) else " "
        manifest = IndexManifest.load(folder / VERSIONS / name)
        typer.echo(f"{sign} {name}: {manifest.summary}")
    changes = newest_changes(out)
    if changes is not None:
        typer.echo(
            f"+ {changes.name}: {len(changes.ids)} ads added or replaced and"
            f" {len(changes.removed)} removed since the export"
        )


@app.command()
def rollback(
    out: Out,
    version: Annotated[
        str | None,
        typer.Argument(help="As `list` prints it. Default: the one before."),
    ] = None,
) -> None:
    """Make another version the one that is served; it is checked before.

    Its files must be whole, and the export that it was built from must be the run's.

    \b
      adrec versions rollback --out runs/demo
    """
    from torchrec_adrec.runs.run_lock import Job, hold
    from torchrec_adrec.runtime.disk import disk_errors
    from torchrec_adrec.serve.rollback import roll_back

    with disk_errors(out), hold(out, Job.new()):
        typer.echo(roll_back(out, version))
