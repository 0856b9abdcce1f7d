"""`adrec index` builds the index of a run, updates it, and compares kinds of it."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from torchrec_adrec.cli.options import ConfigFile, Out, Overrides, Verbose
from torchrec_adrec.cli.stages import run_stages
from torchrec_adrec.runs import stages


class BuildByDefault(TyperGroup):
    """A group of commands that means `default` where none of them is named."""

    default = "build"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default before what names no command."""
        is_help = args[:1] == ["--help"]
        named = args[:1] and args[0] in self.commands
        return super().parse_args(
            ctx, args if named or is_help else [self.default, *args]
        )


app = typer.Typer(
    cls=BuildByDefault,
    help="Build the FAISS index of a run, change its ads, or compare kinds of it.",
)


@app.command()
def build(
    out: Out,
    config: ConfigFile = None,
    verbose: Verbose = False,
    overrides: Overrides = None,
) -> None:
    """Build the FAISS shards on all ranks; publish them only past the recall gate.

    It is what `adrec index` does without another command.

    \b
      torchx run -s local_cwd adrec.index --out runs/demo -j 1x2 -- index.shards=4
      adrec index --out runs/demo index.kind=ivf_sqfp16 index.build.nlist=500
    """
    run_stages([stages.INDEX], out, config, overrides, verbose)


@app.command()
def update(
    out: Out,
    add: Annotated[
        Path | None,
        typer.Option(
            help="Parquet, CSV or TSV of ads: the raw columns of the ad's side. One"
            " that is there already is replaced."
        ),
    ] = None,
    remove: Annotated[
        Path | None, typer.Option(help="Text file of ids (ad_id), one a line.")
    ] = None,
) -> None:
    """Add, replace and remove ads of the published index, without building it again.

    The ads are encoded as the others were, by the same checkpoint. A server that runs
    looks for them every `serve.watch_seconds`. If a row is bad, nothing is changed.

    \b
      adrec index update --out runs/demo --add ads.csv --remove ids.txt
    """
    from torchrec_adrec.errors import ConfigError

    if add is None and remove is None:
        raise ConfigError("nothing to update: name a file with --add or --remove")
    from torchrec_adrec.export.ad_file import AdIds, AdRows
    from torchrec_adrec.export.update import Updater

    updater = Updater(out)
    schema = updater.ads.encoder.schema
    rows = None if add is None else AdRows.read(add, schema)
    ids = None if remove is None else AdIds.read(remove)
    typer.echo(updater.apply(rows, ids))


@app.command()
def compact(out: Out, verbose: Verbose = False) -> None:
    """Build the index again with all updates in it, past the same recall gate.

    Until it is published, and if it is refused, the index is served as before. It is
    built by the settings of the run, on all ranks if a launcher started some.

    \b
      adrec index compact --out runs/demo
    """
    run_stages([stages.INDEX], out, verbose=verbose, again=True)


@app.command()
def compare(
    out: Out,
    kinds: Annotated[
        list[str] | None, typer.Argument(help="Default: every kind but auto.")
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Recall. Default: index.target_recall."),
    ] = None,
) -> None:
    """Build every kind of index on the exported vectors, tune and measure it.

    Recall, time, bytes and build time are printed; RUN/index_kinds.json and
    RUN/index_kinds.png keep them. The index of the run stays as it is.

    \b
      adrec index compare --out runs/demo
      adrec index compare --out runs/demo ivf_sqfp16 hnsw --target 0.99
    """
    from torchrec_adrec.errors import ConfigError
    from torchrec_adrec.evaluation.pictures import kinds_picture
    from torchrec_adrec.export.build_index import exported_vectors
    from torchrec_adrec.index.compare import COMPARISON, PICTURE
    from torchrec_adrec.index.compare import compare as compare_kinds
    from torchrec_adrec.index.kinds import KINDS
    from torchrec_adrec.pipeline.report import wide_console
    from torchrec_adrec.runs.run_folder import read_settings

    unknown = sorted(set(kinds or ()) - set(KINDS))
    if unknown:
        raise ConfigError(
            f"no index kind {unknown[0]!r}, expected some of {', '.join(KINDS)}"
        )
    settings = read_settings(None, None, out)
    stages.check(stages.EXPORT, settings, out)
    exported, queries = exported_vectors(out, settings.index.queries, settings.seed)
    k = min(settings.recommend.candidates, len(exported))
    target = settings.index.target_recall if target is None else target
    rows = []
    for row in compare_kinds(kinds or KINDS, exported, queries, k, target):
        typer.echo(f"{row.kind}: {row.refusal or 'measured'}", err=True)
        rows.append(row.model_dump(mode="json"))
    title = f"{k} of {len(exported):,} ads at recall {target:g}"
    wide_console().print(_table(rows, title))
    build = stages.load_record(out, stages.EXPORT.name).build_id
    compared = {"title": title, "export": build, "kinds": rows}
    (out / COMPARISON).write_text(json.dumps(compared, indent=1))
    kinds_picture([row for row in rows if not row["refusal"]], title, out / PICTURE)


def _table(rows: list[dict[str, Any]], title: str) -> Any:
    from rich.table import Table

    from torchrec_adrec.index.kinds.kind import describe

    table = Table(title=title)
    for name in (
        "kind",
        "build",
        "search",
        "recall",
        "p50 ms",
        "p99 ms",
        "bytes an ad",
    ):
        table.add_column(name)
    table.add_column("build s")
    for row in rows:
        if row["refusal"]:
            table.add_row(row["kind"], "", "", "refused")
            continue
        times = row["milliseconds"]
        table.add_row(
            row["kind"],
            describe(row["build"]),
            describe(row["search"]),
            f"{row['recall']:.4f} ({row['low']:.4f} to {row['high']:.4f})",
            f"{times['p50']:.3f}",
            f"{times['p99']:.3f}",
            f"{row['bytes_per_ad']:.0f}",
            f"{row['build_s']:.1f}",
        )
    return table
