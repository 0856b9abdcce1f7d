"""`adrec recommend` and `adrec serve` answer requests from a finished run."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from torchrec_adrec.cli.options import Key, Out, To, written_to
from torchrec_adrec.errors import ConfigError, DataError

RankBy = Annotated[
    str | None,
    typer.Option(
        help="Order by this formula, as 'click * value'. Default: recommend.rank_by."
    ),
]


def recommend(
    out: Out,
    user: Annotated[
        str,
        typer.Option(
            help="JSON file of raw user columns, or the number of an example user."
        ),
    ] = "0",
    top: Annotated[
        int | None, typer.Option(min=1, help="Number of ads. Default: recommend.top.")
    ] = None,
    rank_by: RankBy = None,
    batch: Annotated[
        Path | None,
        typer.Option(
            help="Parquet file of many users, a row each; any number of ranks."
        ),
    ] = None,
    to: To = None,
    key: Key = None,
    eligible: Annotated[
        str | None,
        typer.Option(help="Only ads whose raw columns meet this condition, in SQL."),
    ] = None,
) -> None:
    """Print the best ads for one user, with the milliseconds that each part took.

    A file of a user holds raw columns, as {"I1": 3, "C1": "68fd1e64"}; those that it
    leaves out count as missing. With --batch, the best ads of all users of a Parquet
    file are written to another one, a line for an ad.

    \b
      adrec recommend --out runs/demo --user 7
      adrec recommend --out runs/demo --user user.json --top 3
      adrec recommend --out runs/demo --rank-by 'click * value'
      adrec recommend --out runs/demo --eligible "age_limit < 18 OR C14 = '75ea'"
      adrec recommend --out runs/demo --batch users.parquet --to recs.parquet
    """
    if batch is not None:
        if eligible is not None:
            raise ConfigError("--eligible is for one user and not for --batch")
        _recommend_batch(out, batch, to, key, top, rank_by)
        return
    from torchrec_adrec.pipeline.report import ads_table, wide_console
    from torchrec_adrec.serve.recommender import Recommender

    features = _user(user, out)  # before the models are loaded: a typo is told at once
    recommender = Recommender.load(out, rank_by=rank_by)
    recommender.recommend(features)  # the first call pays for allocations
    answer = recommender.recommend(features, top, eligible)
    console = wide_console()
    console.print(ads_table(answer.ads, f"Best of {answer.candidates} candidates"))
    parts = answer.milliseconds.items()
    console.print("ms: " + ", ".join(f"{name} {value:.2f}" for name, value in parts))


def _recommend_batch(
    run: Path,
    batch: Path,
    to: Path | None,
    key: str | None,
    top: int | None,
    rank_by: str | None,
) -> None:
    from torchrec_adrec.data.prepare.encoder import Encoder
    from torchrec_adrec.data.prepare.user_file import UserFile
    from torchrec_adrec.runs.run_folder import ranks_of_launcher
    from torchrec_adrec.runtime.disk import disk_errors
    from torchrec_adrec.serve.batch import recommend_batch
    from torchrec_adrec.serve.recommender import Recommender

    target = written_to(to, "--batch")
    users = UserFile.open(batch, Encoder.load(run / "data"), key)
    with disk_errors(target.parent), ranks_of_launcher() as ranks:
        recommender = Recommender.load(run, rank_by=rank_by)
        began = time.monotonic()
        recommend_batch(recommender, users, target, ranks, top)
        rate = users.count / (time.monotonic() - began)
        if ranks.is_first:
            typer.echo(
                f"{target}: the best ads of {users.count:,} users, {rate:,.0f} users/s"
            )


def _user(user: str, out: Path) -> dict[str, Any]:
    # isdigit() alone takes digits such as superscripts, of which int() makes nothing.
    is_example = user.isascii() and user.isdigit()
    path = out / "data/example_users.json" if is_example else Path(user)
    try:
        features = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"--user: cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}") from None
    if is_example:
        count = len(features)
        if int(user) >= count:
            raise ConfigError(f"--user {user}: there are {count} examples, from 0")
        features = features[int(user)]
    if not isinstance(features, dict):
        raise DataError(f"{path}: expected one object of raw columns")
    return features


def serve(
    out: Out,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="TCP port.")] = 8000,
    rank_by: RankBy = None,
) -> None:
    """Answer POST /recommend over HTTP; needs the extra `serve`.

    The body of a request is one user and the number of ads.

    \b
      adrec serve --out runs/demo --port 8000
      curl localhost:8000/recommend -H 'Content-Type: application/json' \\
        -d '{"user": {"I1": 3, "C1": "68fd1e64"}, "top": 10}'
    """
    try:
        import uvicorn

        from torchrec_adrec.serve.app import build_app
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error}; pip install 'torchrec-adrec[serve]'") from None
    from torchrec_adrec.serve.recommender import Recommender

    recommender = Recommender.load(out, rank_by=rank_by)
    uvicorn.run(build_app(recommender), host=host, port=port)
