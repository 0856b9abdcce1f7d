"""`adrec evaluate classics`: tables, figures and picture."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from torchrec_adrec.cli.app import app
from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.data.adapters import sequences
from torchrec_adrec.data.prepare.prepare import prepare
from torchrec_adrec.evaluation.classics.report import FIGURES, FOLDER, PICTURE


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty users who take the items of one of three tastes, in a prepared run."""
    out = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    lines = [
        [f"u{u}", *(f"i{u % 3 * 8 + i}" for i in rng.permutation(8)[:6])]
        for u in range(30)
    ]
    path = out / "a.txt"
    path.write_text("".join(" ".join(line) + "\n" for line in lines))
    data = {"adapter": "sequences", "raw": [str(path)], "min_count": 1}
    data |= {"split": {"by": "leave_one_out"}}
    config = DataConfig.model_validate(data)
    (out / "data").mkdir()
    prepare(config, sequences.open_data(config), out / "data")
    (out / "config.yaml").write_text(json.dumps({"data": data}))
    return out


def test_the_command_prints_both_tables_and_keeps_the_figures(run: Path) -> None:
    names = ("popularity", "item_knn")
    asked = [part for name in names for part in ("--method", name)]
    result = CliRunner().invoke(
        app, ["evaluate", "classics", "--out", str(run), *asked]
    )
    assert result.exit_code == 0, result.output
    report = json.loads((run / FOLDER / FIGURES).read_text())
    assert list(report["methods"]) == list(names)
    assert report["data"]["users"] == 30 and report["data"]["clicks"]["test"] == 30
    best = report["tables"]["full"]["item_knn"]
    assert best["hr@5"] == 1 > report["tables"]["full"]["popularity"]["hr@5"]
    assert "sampled" not in report["methods"]["item_knn"]  # 24 ads are too few
    assert (run / FOLDER / PICTURE).stat().st_size > 10_000
    for text in ("full ranking", "by the known clicks", f"{best['ndcg@10']:.4f}"):
        assert text in result.output


def test_the_help_teaches_the_protocols() -> None:
    text = CliRunner().invoke(app, ["evaluate", "classics", "--help"]).output
    for word in ("full ranking", "100 drawn ads", "validation", "--method"):
        assert word in " ".join(text.split())
