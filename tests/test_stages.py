"""When a stage may be skipped, and what may never stand beside what."""

import shutil
from pathlib import Path

import pytest
from conftest import adrec, criteo_line, on_ranks

from torchrec_adrec import stages
from torchrec_adrec.config import Config, load_config
from torchrec_adrec.errors import ConfigError, ManifestError
from torchrec_adrec.stage_folder import at_work, make_run
from torchrec_adrec.stages import DATA, EMBEDDINGS, INDEX, RANKING, RETRIEVAL


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "raw.tsv").write_text(criteo_line(1) + "\n")
    return load_config(None, [f"data.raw={tmp_path / 'raw.tsv'}"])


@pytest.fixture
def run(tmp_path: Path, config: Config) -> Path:
    """A run whose stages are all done, with nothing in them."""
    out = tmp_path / "run"
    make_run(out)
    for stage in (DATA, RETRIEVAL, EMBEDDINGS, INDEX, RANKING):
        make(stage, config, out)
    return out


def make(stage: stages.Stage, config: Config, run: Path) -> None:
    with at_work(stage, config, run):
        pass


def done(config: Config, run: Path) -> list[str]:
    order = (DATA, RETRIEVAL, EMBEDDINGS, INDEX, RANKING)
    return [stage.name for stage in order if stages.is_done(stage, config, run)]


def test_a_stage_made_again_is_another_one(config: Config, run: Path) -> None:
    """The same settings on other ranks give other bits: nothing after it still fits."""
    assert len(done(config, run)) == 5
    make(RETRIEVAL, config, run)
    assert done(config, run) == ["data", "retrieval"]
    with pytest.raises(ManifestError, match="embeddings was made from retrieval"):
        stages.check_inputs(EMBEDDINGS, run)
    with pytest.raises(ManifestError, match="run `adrec export` again"):
        stages.require(INDEX, config, run)


def test_a_changed_setting_reaches_just_the_stages_that_read_it(
    config: Config, run: Path
) -> None:
    ranker = load_config(None, ["ranker.layers=3", f"data.raw={config.data.raw[0]}"])
    assert done(ranker, run) == ["data", "retrieval", "embeddings", "index"]
    watched = load_config(None, ["train.log_every=3", f"data.raw={config.data.raw[0]}"])
    assert len(done(watched, run)) == 5


def test_changed_raw_files_are_seen(config: Config, run: Path) -> None:
    raw = Path(config.data.raw[0])
    text = raw.read_text()
    raw.unlink()  # gone is not changed: training may run where no raw data is
    stages.require(RETRIEVAL, config, run)
    assert len(done(config, run)) == 5
    raw.write_text(text * 2)
    assert done(config, run)[:1] != ["data"]
    with pytest.raises(ManifestError, match="raw files have changed"):
        stages.require(RETRIEVAL, config, run)


def test_a_stage_that_failed_leaves_the_old_one(config: Config, run: Path) -> None:
    before = (run / "data/stage.json").read_text()
    with pytest.raises(KeyError), at_work(DATA, config, run) as folder:
        (folder / "half").touch()
        raise KeyError
    assert (run / "data/stage.json").read_text() == before
    assert not (run / "data/half").exists()


def test_two_commands_cannot_work_in_one_run(config: Config, run: Path) -> None:
    with (
        at_work(DATA, config, run),
        pytest.raises(ConfigError, match="another command is at work"),
        at_work(RETRIEVAL, config, run),
    ):
        pass


def test_baselines_are_not_for_the_launcher(tmp_path: Path) -> None:
    launched = on_ranks(2, "baselines", "data.adapter=synthetic", "--out", tmp_path)
    assert launched.returncode != 0
    assert "start it without the launcher" in launched.stderr


def test_damaged_parts_are_one_line(finished_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy)
    for path in (
        "data/catalog.parquet",
        "data/vocabulary/C3.parquet",
        "index/shard-00001.faiss",
    ):
        whole = (copy / path).read_bytes()
        (copy / path).write_bytes(whole[:-9])
        answer = adrec("recommend", "--out", copy)
        assert answer.returncode == 2 and "expected sha256" in answer.stderr
        assert answer.stderr.count("\n") == 1
        (copy / path).write_bytes(whole)
    assert adrec("recommend", "--out", copy).returncode == 0
