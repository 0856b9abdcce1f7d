"""`adrec recommend` and `adrec serve`: answers of a finished run."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from torchrec_adrec.cli.options import Out
from torchrec_adrec.errors import ConfigError, DataError


def recommend(
    out: Out,
    user: Annotated[
        str,
        typer.Option(
            help="JSON file of raw user columns, or the number of an example."
        ),
    ] = "0",
    top: Annotated[
        int | None, typer.Option(min=1, help="Default: recommend.top.")
    ] = None,
) -> None:
    """Ranked ads for one user, with milliseconds per stage.

    The file holds raw columns, as {"I1": 3, "C1": "68fd1e64"}; absent ones are missing.
    """
    from torchrec_adrec.pipeline.report import ads_table, wide_console
    from torchrec_adrec.serve.recommender import Recommender

    features = _user(user, out)
    recommender = Recommender.load(out)
    recommender.recommend(features)  # the first call pays for allocations
    answer = recommender.recommend(features, top)
    console = wide_console()
    console.print(ads_table(answer.ads, f"Best of {answer.candidates} candidates"))
    spent = answer.milliseconds.items()
    console.print("ms: " + ", ".join(f"{name} {value:.2f}" for name, value in spent))


def _user(user: str, out: Path) -> dict[str, Any]:
    is_example = user.isascii() and user.isdigit()
    path = out / "data/example_users.json" if is_example else Path(user)
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"--user: cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}") from None
    if is_example:
        if int(user) >= len(found):
            raise ConfigError(f"--user {user}: there are {len(found)} examples, from 0")
        found = found[int(user)]
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected one object of raw columns")
    return found


def serve(
    out: Out,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
) -> None:
    """Answer POST /recommend over HTTP; needs the extra `serve`.

    The body is one user, as {"user": {"I1": 3, "C1": "68fd1e64"}, "top": 10}.
    """
    try:
        import uvicorn

        from torchrec_adrec.serve.app import build_app
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error}; pip install 'torchrec-adrec[serve]'") from None
    from torchrec_adrec.serve.recommender import Recommender

    uvicorn.run(build_app(Recommender.load(out)), host=host, port=port)
