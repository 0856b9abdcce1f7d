"""Rows of retrieved ads: whose they are, what they may know, and who reads them."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from statistics_rows import across, prepare_rows
from trained_run import SETTINGS, STEADY, metrics, train_ranker

from torchrec_adrec.arrays import Float32s
from torchrec_adrec.config.run import Config, load_config
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.data.loader.collate import batch_columns, tower_input
from torchrec_adrec.data.loader.parquet import Reader
from torchrec_adrec.data.loader.sampled_split import RetrievedRows, training_split
from torchrec_adrec.data.prepare.fold_statistics import (
    FOLD,
    encode_in_fold,
    fold_statistics,
)
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import ConfigError, ManifestError
from torchrec_adrec.runtime.files import HASHES
from torchrec_adrec.schema import AD_ID, NO_USER, USER_KEY, Schema, Side
from torchrec_adrec.tasks.sharded import final_checkpoint, restore_whole
from torchrec_adrec.training.ledger_report import audit_stage
from torchrec_adrec.training.refit import fit_stage
from torchrec_adrec.training.retrieved_rows import RETRIEVED, draw_retrieved_rows

CANDIDATES, PER_CLICK, WEIGHT = 20, 3, 0.5
DRAWN = (
    *SETTINGS,
    STEADY,
    f"ranking.retrieved_negatives={{per_click: {PER_CLICK}, weight: {WEIGHT},"
    f" candidates: {CANDIDATES}}}",
    "ranking.calibration=platt",
)


def draw(run: Path, folder: Path, process: Process, *words: str) -> RetrievedRows:
    config = load_config(None, [*DRAWN, *words])
    towers = final_checkpoint(run / "retrieval")
    rows = draw_retrieved_rows(config, process, run / "data", folder, towers)
    assert rows is not None
    return rows


def rows_of(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(sorted(folder.glob("part-*.parquet")))


@pytest.fixture(scope="module")
def drawn(
    run: Path, process: Process, tmp_path_factory: pytest.TempPathFactory
) -> RetrievedRows:
    return draw(run, tmp_path_factory.mktemp("drawn"), process)


@pytest.fixture(scope="module")
def clicks(run: Path) -> pl.DataFrame:
    return rows_of(run / "data/train").filter(pl.col("click") == 1)


def vectors(run: Path, rows: pl.DataFrame, side: Side) -> Float32s:
    """Encode rows by the towers in one piece."""
    schema = Schema.load(run / "data/schema.json")
    task, _ = restore_whole("retrieval", run, schema)
    columns = {name: rows[name].to_numpy() for name in schema.columns_of(side)}
    tower = task.model.encode_users if side == Side.USER else task.model.ad_tower
    return np.asarray(tower(tower_input(columns, schema, side)).detach().numpy())


def test_they_are_the_candidates_of_a_click_and_nobody_s_clicks(
    run: Path, drawn: RetrievedRows, clicks: pl.DataFrame
) -> None:
    rows = rows_of(drawn.folder)
    ads = load_catalog(run / "data").filter(pl.col("impressions") > 0)
    scores = vectors(run, rows, Side.USER) @ vectors(run, ads, Side.AD).T
    least = np.sort(scores, axis=1)[:, -CANDIDATES]
    places = np.searchsorted(ads[AD_ID].to_numpy(), rows[AD_ID].to_numpy())
    assert (scores[np.arange(len(rows)), places] >= least - 1e-5).all()
    # Neither the clicked ad of the row nor any other that its user has clicked.
    schema = Schema.load(run / "data/schema.json")
    users = [*schema.columns_of(Side.USER), USER_KEY]
    assert not len(rows.join(clicks, on=users, how="anti"))
    assert not len(rows.join(clicks, on=[*users, AD_ID]))
    named = clicks.filter(pl.col(USER_KEY) != NO_USER)
    assert not len(rows.join(named, on=[USER_KEY, AD_ID]))
    assert len(rows) == pytest.approx(PER_CLICK * len(clicks), rel=0.02)
    # Drawn, and not the best ones: those would be the same few ads for everybody.
    assert (scores.argmax(axis=1) == places).mean() < 0.5


def test_what_they_know_is_the_user_the_ad_and_no_click(
    run: Path, drawn: RetrievedRows
) -> None:
    rows, schema = rows_of(drawn.folder), Schema.load(run / "data/schema.json")
    assert rows.schema == rows_of(run / "data/train").schema
    click, *others = schema.label_names
    assert (rows[click] == 0).all()
    for name in others:
        assert rows[name].is_nan().all(), name
    names = schema.columns_of(Side.AD)
    ads = rows.select(AD_ID).join(load_catalog(run / "data"), on=AD_ID, how="left")
    for name in names:
        assert ads[name].to_list() == rows[name].to_list()


def test_they_count_by_their_weight_and_come_from_training_rows(
    run: Path, drawn: RetrievedRows
) -> None:
    schema = Schema.load(run / "data/schema.json")
    split = training_split(run / "data", schema, 1, 0, retrieved=drawn)
    logged = len(rows_of(run / "data/train"))
    reader = Reader(split, batch_columns(schema), 128, seed=0)
    steps = [(step.numbers, step.weights) for step in reader.epoch()]
    numbers, weights = (np.concatenate(x) for x in zip(*steps, strict=True))
    assert ((numbers >= logged) == (weights == WEIGHT)).all()
    assert (weights[numbers < logged] == 1).all()
    assert 0.3 < (numbers >= logged).mean() < 0.8


def test_the_same_rows_stay_where_a_run_goes_on(
    run: Path, drawn: RetrievedRows, process: Process, tmp_path: Path
) -> None:
    stale = tmp_path / f"{RETRIEVED}.partial"
    stale.mkdir()
    (stale / "part-99999.parquet").write_text("of a run that was killed")
    again = draw(run, tmp_path, process)
    hashes = json.loads((again.folder / HASHES).read_text())
    assert hashes == json.loads((drawn.folder / HASHES).read_text())
    assert not stale.exists()
    # Another seed draws others, and rows that are there already are taken as they are.
    kept = draw(run, tmp_path, process, "seed=1")
    assert json.loads((kept.folder / HASHES).read_text()) == hashes
    (first, *_) = sorted(again.folder.glob("part-*.parquet"))
    first.write_bytes(first.read_bytes()[:-1] + b"?")
    with pytest.raises(ManifestError, match=r"part-.*damaged or changed"):
        draw(run, tmp_path, process)


def test_another_seed_draws_other_rows(
    run: Path, drawn: RetrievedRows, process: Process, tmp_path: Path
) -> None:
    other = rows_of(draw(run, tmp_path, process, "seed=1").folder)
    ours = rows_of(drawn.folder)
    assert len(other) == len(ours)
    assert 2 * (other[AD_ID] != ours[AD_ID]).sum() > len(ours)


def test_their_statistics_are_those_of_the_fold_of_their_click(
    process: Process, tmp_path: Path
) -> None:
    """The catalog's totals would hold the click that a row was made of."""
    data, folds = tmp_path / "data", {"folds": 4, "strengths": [10]}
    prepare_rows(data, across(), keep_folds=True, pairs=1, cross_pairs=2, **folds)
    (tmp_path / "retrieval").mkdir()
    towers = load_config(None, [*SETTINGS, "train={batch_size: 128, epochs: 1}"])
    fit_stage("retrieval", towers, process, data, tmp_path / "retrieval")
    rows = rows_of(draw(tmp_path, tmp_path, process).folder)
    schema = Schema.load(data / "schema.json")
    users = [*schema.columns_of(Side.USER), FOLD]
    clicks = rows_of(data / "train").filter(pl.col("click") == 1)
    assert not len(rows.join(clicks, on=users, how="anti"))
    catalog = load_catalog(data)
    ads = rows.select(AD_ID).join(catalog, on=AD_ID, how="left")
    statistics = fold_statistics(data, schema)
    assert statistics is not None
    expected = encode_in_fold(statistics, schema, ads, rows)
    assert set(expected) >= {feature.name for feature in schema.cross}
    for name, values in expected.items():
        assert (rows[name].to_numpy() == values).all(), name
        if name in catalog.columns:
            assert 2 * (rows[name] != ads[name]).sum() > len(rows), name


SCRIPT = """
import sys
from pathlib import Path
from test_retrieved_rows import draw
from torchrec_adrec.distributed.process import process_group

with process_group("cpu") as process:
    draw(Path({run!r}), Path({folder!r}), process)
"""


def test_two_ranks_draw_the_same_rows(
    run: Path,
    drawn: RetrievedRows,
    tmp_path: Path,
    ranks_script: Callable[[int, str], subprocess.CompletedProcess[str]],
) -> None:
    tests = str(Path(__file__).parent)
    paths = f"import sys; sys.path[:0] = [{tests!r}]\n"
    script = SCRIPT.format(run=str(run), folder=str(tmp_path))
    done = ranks_script(2, paths + script)
    assert done.returncode == 0, done.stderr
    assert rows_of(tmp_path / RETRIEVED).equals(rows_of(drawn.folder))


@pytest.fixture(scope="module")
def trained(
    run: Path, process: Process, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run whose ranker has read them, fitted twice."""
    out = tmp_path_factory.mktemp("trained") / "run"
    shutil.copytree(run, out)
    loop = "train={patience: null, evaluate_every: 0, epochs: 1, ledger: true}"
    config = load_config(None, [*DRAWN, loop, "ranking.refit=true"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchrec_adrec.training.calibrate.LEAST", 1)
        train_ranker(out, config, process)
    return out


def test_a_ranker_reads_each_of_them_once_an_epoch(trained: Path) -> None:
    data, folder = trained / "data", trained / "ranking"
    rows = len(rows_of(folder / RETRIEVED))
    for stage, splits in (("first_fit", ("train",)), ("", ("train", "valid"))):
        if not stage:
            (audit,) = audit_stage(folder)
            total = rows + sum(len(rows_of(data / split)) for split in splits)
            assert audit.is_whole
            assert total - 128 < audit.rows <= total
        trained_on = json.loads((folder / stage / "metrics.json").read_text())
        assert trained_on["trained_on"] == list(splits)
        assert trained_on["train"]["retrieved_rows_per_epoch"] == rows


def test_the_report_tells_what_they_did_to_the_probability(trained: Path) -> None:
    click = metrics(trained, "ranking")["details"]["click"]
    assert {"slope", "ece"} <= set(click["uncalibrated"])


def test_settings_that_cannot_hold_are_refused(
    run: Path, process: Process, tmp_path: Path
) -> None:
    settings = "ranking.retrieved_negatives={per_click: 1}"
    with pytest.raises(ConfigError, match="set calibration to platt"):
        load_config(None, [settings])
    with pytest.raises(ConfigError, match="weight"):
        load_config(None, [*DRAWN, "ranking.retrieved_negatives={weight: 0}"])
    config: Config = load_config(None, DRAWN)
    with pytest.raises(ConfigError, match="needs the towers"):
        draw_retrieved_rows(config, process, run / "data", tmp_path, None)
    one: Any = ["ranking.retrieved_negatives={per_click: 1, candidates: 1}"]
    assert len(rows_of(draw(run, tmp_path, process, *one).folder)) < PER_CLICK * 3000
