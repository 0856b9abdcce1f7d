"""`adrec init` looks at a file and writes a configuration for it."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from torchrec_adrec.errors import AdRecError, ConfigError


def init(
    path: Annotated[Path, typer.Argument(help="CSV, TSV or Parquet, also .gz.")],
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", help="YAML file that is written. Default: the file's name here."
        ),
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Column of the click, if it is not recognised.")
    ] = None,
    user: Annotated[
        str | None, typer.Option(help="Column that names the user.")
    ] = None,
    ad: Annotated[str | None, typer.Option(help="Column that names the ad.")] = None,
    first_pass: Annotated[
        bool,
        typer.Option(
            "--try", help="Run `adrec prepare` on the first rows, and show its report."
        ),
    ] = False,
) -> None:
    """Look at your own table and propose its configuration, a comment a line.

    What it is unsure of stands at the top of the YAML. A file that `adrec prepare`
    cannot read (semicolons, Latin-1, printed lists) gets a rewritten copy
    beside the YAML; the file itself stays as it is, and nothing is overwritten.

    \b
      adrec init clicks.csv --try
      adrec init log.parquet --label bought --user uid --ad sku --to shop.yaml
    """
    from torchrec_adrec.data.inspect.proposal import Hints, propose
    from torchrec_adrec.data.inspect.repairs import rewrite
    from torchrec_adrec.data.inspect.sample import read_sample

    settings = to or Path(path.name.split(".")[0] + ".yaml")
    if settings.exists():
        raise ConfigError(
            f"{settings} exists already; remove it, or name another file by --to"
        )
    if not settings.absolute().parent.is_dir():
        raise ConfigError(f"--to {settings}: expected a file in a folder that is there")
    sample = read_sample(path)
    proposal = propose(sample, settings, Hints(label, user, ad))
    if proposal.target is not None:
        rewrite(sample, list(proposal.repairs), proposal.target)
        typer.echo(f"{proposal.target}: a copy that can be read")
    settings.write_text(proposal.yaml)
    typer.echo(f"{settings}: read it before you use it")
    for sentence in proposal.unsure:
        typer.echo(f"unsure: {sentence}")
    if first_pass:
        _try(settings, proposal.target or path)
    typer.echo(f"next: adrec run --config {settings} --out runs/{settings.stem}")


def _try(settings: Path, raw: Path) -> None:
    """Prepare the first rows in a folder that is removed, and print what is odd.

    Raises:
        ConfigError: `prepare` refused them; the configuration stays.
    """
    from torchrec_adrec.cli.stages import prepare
    from torchrec_adrec.data.inspect.first_rows import write_first_rows
    from torchrec_adrec.runtime.logs import quiet

    with TemporaryDirectory() as folder:
        some = write_first_rows(raw, Path(folder))
        run = Path(folder) / "run"
        try:
            with quiet():  # the temporary file's name would mislead
                prepare(run, settings, [f"data.raw={some}"])
        except AdRecError as error:
            reason = str(error).replace(f"{folder}/", "")
            raise ConfigError(
                f"{settings} is written, but its first rows are refused: {reason}"
            ) from None
        report = (run / "data/report.md").read_text().replace(f"{folder}/", "")
    typer.echo(_summary(report))


def _summary(report: str) -> str:
    """Return the head of a data report, what it finds odd, and the first bad rows."""
    head = report.partition("\n## ")[0].replace("# The data\n\n", "")
    head = head.replace("![the data](report.png)", "").rstrip()
    odd, bad = (
        report.partition(f"## {title}")[2].partition("\n## ")[0].strip()
        for title in ("Look at these", "Bad rows")
    )
    parts = [head, odd or "Nothing looks odd.", bad and f"Bad rows: {bad}"]
    return "\n\n".join(filter(None, parts))
