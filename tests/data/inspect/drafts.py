"""What the tests of `adrec init` share: rows, and a draft that is prepared."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from typer.testing import CliRunner

from torchrec_adrec.cli import app as cli
from torchrec_adrec.config.run import load_config
from torchrec_adrec.data.adapters import open_data
from torchrec_adrec.data.prepare.prepare import prepare
from torchrec_adrec.runtime.ranks import SingleProcess

ROWS = 600


def init(path: Path, *options: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Propose, load and prepare; returns the YAML, its settings and the report."""
    settings = path.parent / "my.yaml"
    done = CliRunner().invoke(
        cli.app, ["init", str(path), "--to", str(settings), *options]
    )
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    config = load_config(settings).data
    out = path.parent / "out"
    out.mkdir()
    data = open_data(config, 0, out, SingleProcess())
    prepare(config, data, out)
    text = settings.read_text()
    report = json.loads((out / "report.json").read_text())
    return text, yaml.safe_load(text)["data"], report


def columns(rows: int = ROWS) -> dict[str, Any]:
    """Users, items and clicks in time order, as numbers."""
    rng = np.random.default_rng(0)
    return {
        "user": rng.integers(40, size=rows),
        "item": rng.integers(15, size=rows),
        "clicked": rng.integers(2, size=rows),
    }


def histories(rows: dict[str, Any]) -> list[list[str]]:
    """The items that each row's user clicked before it, the latest last."""
    clicked: dict[int, list[str]] = {}
    lists = []
    for user, item, click in zip(*rows.values(), strict=True):
        taken_before = clicked.setdefault(int(user), [])
        lists.append(taken_before[-3:])
        if click:
            taken_before.append(str(item))
    return lists


def unsure(text: str) -> str:
    """The sentences of doubt at the top of a YAML."""
    return text.partition("# Look at these first:")[2].partition("data:")[0]
