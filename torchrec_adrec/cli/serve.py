"""`adrec recommend` and `adrec serve` answer requests from a finished run."""

from pathlib import Path
from typing import Annotated, Any

import typer

from torchrec_adrec.cli.options import Out, Overrides
from torchrec_adrec.config.run import load_config
from torchrec_adrec.errors import ConfigError, DataError, reason
from torchrec_adrec.runs.stages import CONFIG
from torchrec_adrec.runtime.files import read_json

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
) -> None:
    """Print the best ads for one user, with the milliseconds that each part took.

    A file of a user holds raw columns, as {"I1": 3, "C1": "68fd1e64"}; those that it
    leaves out count as missing.

    \b
      adrec recommend --out runs/demo --user 7
      adrec recommend --out runs/demo --user user.json --top 3
      adrec recommend --out runs/demo --rank-by 'click * value'
    """
    from torchrec_adrec.pipeline.report import ads_table, wide_console
    from torchrec_adrec.serve.recommender import Recommender

    features = _user(user, out)  # before the models are loaded: a typo is told at once
    recommender = Recommender.load(out, rank_by=rank_by)
    recommender.recommend(features)  # the first call pays for allocations
    answer = recommender.recommend(features, top)
    console = wide_console()
    console.print(ads_table(answer.ads, f"Best of {answer.candidates} candidates"))
    parts = answer.milliseconds.items()
    console.print("ms: " + ", ".join(f"{name} {value:.2f}" for name, value in parts))


def _user(user: str, out: Path) -> dict[str, Any]:
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
    out: Out,
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
    saved = out / CONFIG
    bounds = load_config(saved if saved.exists() else None, overrides or []).serve
    token = _token(token_file) if token_file is not None else None
    server.serve(server.AppFactory(out, rank_by, bounds, token), host, port)


def _token(path: Path) -> str:
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file {path}: {reason(error)}") from None
    if not token.isascii() or not token:
        raise ConfigError(f"--token-file {path}: expected one line of ASCII text")
    return token
