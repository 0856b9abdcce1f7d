"""`adrec recommend` and `adrec serve` answer requests from a finished run."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from torchrec_adrec.cli.options import (
    Bundled,
    Condition,
    Engine,
    Key,
    Overrides,
    RankBy,
    To,
    Top,
    User,
    written_to,
)
from torchrec_adrec.config.run import load_config
from torchrec_adrec.errors import ConfigError, DataError, reason
from torchrec_adrec.runs.stages import CONFIG
from torchrec_adrec.runs.unpack import unpacked
from torchrec_adrec.runtime.files import read_json


def recommend(
    out: Bundled,
    user: User = "0",
    top: Top = None,
    rank_by: RankBy = None,
    engine: Engine = None,
    batch: Annotated[
        Path | None,
        typer.Option(
            help="Parquet file of many users, a row each; any number of ranks."
        ),
    ] = None,
    to: To = None,
    key: Key = None,
    eligible: Condition = None,
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
        with unpacked(out) as folder:
            _recommend_batch(folder, batch, to, key, top, rank_by, engine)
        return
    with unpacked(out) as folder:
        features = read_user(user, folder)
        # Only now the models are loaded, which takes seconds: a typo is told at once.
        from torchrec_adrec.pipeline.report import ads_table, wide_console
        from torchrec_adrec.serve.recommender import Recommender

        recommender = Recommender.load(folder, rank_by=rank_by, engine=engine)
    recommender.recommend(features)  # the first call pays for allocations
    answer = recommender.recommend(features, top, eligible)
    console = wide_console()
    console.print(ads_table(answer.ads, f"Best of {answer.candidates} candidates"))
    parts = answer.milliseconds.items()
    console.print("ms: " + ", ".join(f"{name} {value:.2f}" for name, value in parts))
    if recommender.engine is not None:
        console.print(f"engine {recommender.engine}")


def _recommend_batch(
    run: Path,
    batch: Path,
    to: Path | None,
    key: str | None,
    top: int | None,
    rank_by: str | None,
    engine: str | None,
) -> None:
    from torchrec_adrec.data.prepare.encoder import Encoder
    from torchrec_adrec.data.prepare.user_file import UserFile
    from torchrec_adrec.runs.run_folder import ranks_of_launcher
    from torchrec_adrec.runtime.disk import disk_errors
    from torchrec_adrec.serve.batch import load_alike, recommend_batch

    target = written_to(to, "--batch")
    users = UserFile.open(batch, Encoder.load(run / "data"), key)
    with disk_errors(target.parent), ranks_of_launcher() as ranks:
        recommender = load_alike(run, ranks, target, rank_by, engine)
        began = time.monotonic()
        recommend_batch(recommender, users, target, ranks, top)
        rate = users.count / (time.monotonic() - began)
        if ranks.is_first:
            typer.echo(
                f"{target}: the best ads of {users.count:,} users, {rate:,.0f} users/s"
            )


def read_user(user: str, out: Path) -> dict[str, Any]:
    """Read a file of raw columns, or an example user of the run by its number.

    Raises:
        ConfigError, DataError: it cannot be read, or is no user.
    """
    # isdigit() alone takes digits such as superscripts, of which int() makes nothing.
    is_example = user.isascii() and user.isdigit()
    path = out / "data/example_users.json" if is_example else Path(user)
    features = read_json(path)
    if is_example:
        if not isinstance(features, list):
            raise DataError(f"{path}: expected a list of users; run `adrec prepare`")
        if int(user) >= len(features):
            raise ConfigError(
                f"--user {user}: there are {len(features)} examples, from 0"
            )
        features = features[int(user)]
    if not isinstance(features, dict):
        raise DataError(
            f"{path}: expected one object of raw columns, found"
            f" {type(features).__name__}"
        )
    return features


def serve(
    out: Bundled,
    overrides: Overrides = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="TCP port; 0: a free one.")
    ] = 8000,
    rank_by: RankBy = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File of a token that requests must carry. Default: none."),
    ] = None,
    engine: Engine = None,
) -> None:
    """Answer requests over HTTP; needs the extra `serve`.

    The body of a request is one user and the number of ads. What else there is says
    GET /docs. Only settings of `serve` count here.

    \b
      adrec serve --out runs/demo --port 8000 serve.workers=2
      curl localhost:8000/recommend -H 'Content-Type: application/json' \\
        -d '{"user": {"I1": 3, "C1": "68fd1e64"}, "top": 10}'
    """
    try:
        from torchrec_adrec.serve.http import server
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error}; pip install 'torchrec-adrec[serve]'") from None
    token = _token(token_file) if token_file is not None else None
    with unpacked(out) as folder:
        saved = folder / CONFIG
        bounds = load_config(saved if saved.exists() else None, overrides or []).serve
        factory = server.AppFactory(folder, rank_by, engine, bounds, token)
        server.serve(factory, host, port)


def _token(path: Path) -> str:
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file {path}: {reason(error)}") from None
    if not token.isascii() or not token:
        raise ConfigError(f"--token-file {path}: expected one line of ASCII text")
    return token
