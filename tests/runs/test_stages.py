"""A stage is skipped only if nothing has changed, and a wrong input is refused."""

import shutil
from pathlib import Path

import pytest
from conftest import adrec, criteo_line, on_ranks

from torchrec_adrec.config.run import Config, load_config
from torchrec_adrec.errors import ConfigError, ManifestError
from torchrec_adrec.runs import stages
from torchrec_adrec.runs.stage_folder import check_place, make_run, stage_workspace
from torchrec_adrec.runs.stages import DATA, EXPORT, INDEX, RANKING, RETRIEVAL
from torchrec_adrec.runtime.status import STATUS_FILE, Status, StatusReader


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "raw.tsv").write_text(criteo_line(1) + "\n")
    return load_config(None, [f"data.raw={tmp_path / 'raw.tsv'}"])


@pytest.fixture
def run(tmp_path: Path, config: Config) -> Path:
    """A run whose stages are all done, with nothing in them."""
    out = tmp_path / "run"
    make_run(out)
    for stage in (DATA, RETRIEVAL, EXPORT, INDEX, RANKING):
        make(stage, config, out)
    return out


def make(stage: stages.Stage, config: Config, run: Path) -> None:
    with stage_workspace(stage, config, run):
        pass


def done(config: Config, run: Path) -> list[str]:
    order = (DATA, RETRIEVAL, EXPORT, INDEX, RANKING)
    return [stage.name for stage in order if stages.is_done(stage, config, run)]


def test_a_stage_made_again_is_another_one(config: Config, run: Path) -> None:
    """The same settings on other ranks give other bits: nothing after it still fits."""
    assert len(done(config, run)) == 5
    make(RETRIEVAL, config, run)
    assert done(config, run) == ["data", "retrieval"]
    with pytest.raises(ManifestError, match="export was made from retrieval"):
        stages.check_inputs(EXPORT, run)
    with pytest.raises(ManifestError, match="run `adrec export` again"):
        stages.require(INDEX, config, run)


def test_a_changed_setting_reaches_just_the_stages_that_read_it(
    config: Config, run: Path
) -> None:
    ranker = load_config(None, ["ranking.layers=3", f"data.raw={config.data.raw[0]}"])
    assert done(ranker, run) == ["data", "retrieval", "export", "index"]
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
    with pytest.raises(KeyError), stage_workspace(DATA, config, run) as folder:
        (folder / "half").touch()
        raise KeyError
    assert (run / "data/stage.json").read_text() == before
    assert not (run / "data/half").exists()


def test_a_place_that_is_no_folder_is_refused_before_the_work(
    config: Config, run: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (run / "ranking").rename(elsewhere)
    for name in ("ranking", "ranking.old", "ranking.partial-1"):
        (run / name).symlink_to(elsewhere)
        with pytest.raises(ConfigError, match=f"{name} is a symbolic link to"):
            check_place(RANKING, run)
        (run / name).unlink()
        (run / name).touch()
        with pytest.raises(ConfigError, match="expected a folder, found a file"):
            check_place(RANKING, run)
        (run / name).unlink()
    check_place(RANKING, run)
    make(RANKING, config, run)
    check_place(RANKING, run)


def test_commands_refuse_a_link_before_they_work(
    finished_run: Path, tmp_path: Path
) -> None:
    """A stage that is done may be read through one."""
    run = tmp_path / "run"
    run.mkdir()
    for name in ("data", "baselines", "retrieval", "export"):
        (run / name).symlink_to(finished_run / name)
    shutil.copy(finished_run / "config.yaml", run)
    (run / "index").symlink_to(finished_run / "index")
    shutil.copytree(finished_run / "ranking", run / "ranking")
    assert adrec("recommend", "--out", run).returncode == 0
    for args in (("run", "-j", "1x1"), ("index",)):
        done = adrec(*args, "--out", run, "index.queries=3")
        assert done.returncode == 2
        assert f"{run}/index is a symbolic link" in done.stderr
    assert not list(run.glob("*.partial-*"))


def test_ranks_with_other_settings_are_refused(config: Config, run: Path) -> None:
    class Second:
        rank, world_size, is_first = 1, 2, False

        def barrier(self) -> None:
            """The first rank has begun."""

    other = load_config(None, [f"data.raw={config.data.raw[0]}", "data.min_count=9"])
    with stage_workspace(DATA, config, run):
        with stage_workspace(DATA, config, run, Second()):
            pass
        with (
            pytest.raises(ConfigError, match="rank 1 would make data from other"),
            stage_workspace(DATA, other, run, Second()),
        ):
            pass


def test_a_stage_says_when_it_begins_and_when_it_is_whole(
    config: Config, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = StatusReader(tmp_path / "status")
    reader.clear()
    monkeypatch.setenv(STATUS_FILE, str(reader.path))
    before = stages.load_record(run, "data").build_id
    with stage_workspace(DATA, config, run):
        assert list(reader.read()) == [Status("begin", "data")]
    assert list(reader.read()) == [Status("end", "data")]
    assert stages.load_record(run, "data").build_id != before
    with pytest.raises(KeyError), stage_workspace(DATA, config, run):
        raise KeyError
    assert [status.kind for status in reader.read()] == ["begin"]


def test_baselines_are_not_for_the_launcher(tmp_path: Path) -> None:
    launched = on_ranks(2, "baselines", "data.adapter=synthetic", "--out", tmp_path)
    assert launched.returncode != 0
    assert "start it without the launcher" in launched.stderr


def test_damaged_parts_are_one_line(finished_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy)
    for path in (
        copy / "data/catalog.parquet",
        copy / "data/vocabulary/C3.parquet",
        stages.stage_folder(copy, "index") / "shard-00001.faiss",
    ):
        whole = path.read_bytes()
        path.write_bytes(whole[:-9])
        answer = adrec("recommend", "--out", copy)
        assert answer.returncode == 2 and "expected sha256" in answer.stderr
        assert answer.stderr.count("\n") == 1
        path.write_bytes(whole)
    assert adrec("recommend", "--out", copy).returncode == 0
