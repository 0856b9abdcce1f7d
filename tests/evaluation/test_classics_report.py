"""`adrec evaluate classics`: tables, figures, picture, and the towers beside them."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from torchrec_adrec.cli.app import app
from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.data.adapters import sequences
from torchrec_adrec.data.prepare.prepare import prepare
from torchrec_adrec.errors import DataError
from torchrec_adrec.evaluation.classics.interactions import Interactions
from torchrec_adrec.evaluation.classics.protocol import RankingProtocol, judge
from torchrec_adrec.evaluation.classics.report import FIGURES, FOLDER, PICTURE
from torchrec_adrec.evaluation.classics.towers import QUERIES, Towers
from torchrec_adrec.evaluation.full_catalog import held_out_clicks
from torchrec_adrec.export.parts import write_vectors
from torchrec_adrec.schema import USER_KEY, Schema


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


def export(run: Path, users: np.ndarray, ads: np.ndarray, ids: np.ndarray) -> None:
    """Write vectors as `adrec export` does."""
    (run / "export").mkdir(exist_ok=True)
    for name, keys, vectors in (
        ("part-00000.parquet", ids, ads),
        (QUERIES, np.arange(len(users)), users),
    ):
        write_vectors(
            run / "export" / name, keys.astype(np.int64), vectors.astype(np.float32)
        )


def test_exported_towers_are_judged_as_what_they_are(run: Path) -> None:
    """Vectors that know each answer find it; those of other users do not."""
    data = Interactions.load(run / "data")
    schema = Schema.load(run / "data/schema.json")
    clicks, _ = held_out_clicks(run / "data", schema, 1000, 0)
    places = np.searchsorted(data.ids, clicks["ad_id"].to_numpy())
    vectors = np.eye(len(data.ids))
    shuffled = np.random.default_rng(0).permutation(len(data.ids))
    export(run, vectors[places], vectors[shuffled], data.ids[shuffled])
    towers = Towers.load(run, data, 1000, 0)
    assert judge(towers, data, RankingProtocol()).means["mrr@5"] == 1
    keys = np.searchsorted(data.users, clicks[USER_KEY].to_numpy())
    assert np.array_equal(towers.users[keys], vectors[places])
    with pytest.raises(DataError, match="known by their whole history alone"):
        judge(towers, data, RankingProtocol(history=3))
    with pytest.raises(DataError, match=r"evaluation\.queries=30"):
        Towers.load(run, data, 20, 0)
    export(run, vectors[places], vectors, data.ids + 1)
    with pytest.raises(DataError, match="other ads than the catalog"):
        Towers.load(run, data, 1000, 0)
