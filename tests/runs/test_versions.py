"""Versions of a stage: the old one serves until the new one is whole."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from torchrec_adrec.config.run import Config, load_config
from torchrec_adrec.errors import ConfigError, DiskError, ManifestError
from torchrec_adrec.runs import stages, versions
from torchrec_adrec.runs.stage_folder import check_place, make_run, stage_workspace
from torchrec_adrec.runs.stages import INDEX, Stage, stage_folder
from torchrec_adrec.runs.versions import (
    CURRENT,
    VERSIONS,
    collect,
    current_name,
    make_current,
    previous_name,
    publish_version,
    version_folder,
    version_names,
)
from torchrec_adrec.runtime import files
from torchrec_adrec.runtime.disk import disk_errors

BUILD = "0123456789abcdef"


def published(folder: Path, text: str, keep: int = 3) -> str:
    """Publish a version that holds one file."""
    partial = folder.with_name("partial")
    partial.mkdir(parents=True)
    (partial / "shard").write_text(text)
    publish_version(partial, folder, BUILD, keep)
    name = current_name(folder)
    assert name is not None
    return name


def served(folder: Path) -> str:
    return (version_folder(folder) / "shard").read_text()


def test_the_last_versions_stay_and_the_new_one_is_current(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    for number in range(1, 6):
        name = published(folder, str(number), keep=2)
        assert name == f"{number:06d}-{BUILD}"
        assert served(folder) == str(number)
        assert len(version_names(folder)) == min(number, 2)
    assert sorted(path.name for path in folder.iterdir()) == [CURRENT, VERSIONS]


def test_more_versions_are_kept_than_there_are(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    names = [published(folder, text, keep=4) for text in "abc"]
    assert version_names(folder) == names


def test_back_and_forth(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    names = [published(folder, text) for text in "abc"]
    make_current(folder, previous_name(folder))
    assert served(folder) == "b" and previous_name(folder) == names[0]
    # The current one stays however old it is, and a new one is numbered as the newest.
    make_current(folder, names[0])
    assert collect(folder, 1) == [names[1]]
    assert published(folder, "d") == f"000004-{BUILD}"
    make_current(folder, names[0])
    with pytest.raises(ManifestError, match="has no version before 000001"):
        previous_name(folder)


def test_an_index_of_a_release_without_versions_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    folder.mkdir()
    (folder / "shard").write_text("old")
    assert served(folder) == "old"
    published(folder, "new")
    assert served(folder) == "new" and not (folder / "shard").exists()


@pytest.mark.parametrize("text", ["", "../../other", "000001"])
def test_a_damaged_pointer_leads_nowhere(text: str, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    name = published(folder, "a")
    (folder / CURRENT).write_text(text)
    with pytest.raises(ManifestError, match=f"expected the name of a version.*{name}"):
        version_folder(folder)
    published(folder, "b") if text == "000001" else make_current(folder, name)
    assert served(folder) in "ab"


@pytest.mark.parametrize("step", ["sync", "rename", "put"])
def test_killed_or_refused_anywhere_the_old_version_serves(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "index"
    published(folder, "old")

    def refuse(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "")

    place, name = {
        "sync": (versions, "sync"),  # before anything has moved
        "rename": (Path, "rename"),
        "put": (files, "put"),  # the version is there, the pointer is not
    }[step]
    with monkeypatch.context() as patch:
        patch.setattr(place, name, refuse)
        with pytest.raises(DiskError, match="No space left"), disk_errors(folder):
            published(folder, "new")
    assert served(folder) == "old"
    shutil.rmtree(tmp_path / "partial", ignore_errors=True)
    assert published(folder, "newer") and served(folder) == "newer"


def test_the_pointer_is_written_after_the_files_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    published(tmp_path / "index", "a")
    expected = ["shard", "partial", VERSIONS, f"{CURRENT}.partial", "index"]
    assert synced == expected


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with an index that needs no other stage."""
    stage = Stage("index", ("index",), ("index",), versions=True)
    monkeypatch.setitem(stages.STAGES, "index", stage)
    out = tmp_path / "run"
    make_run(out)
    build(out, load_config(None))
    return out


def build(run: Path, config: Config) -> None:
    with stage_workspace(stages.STAGES["index"], config, run) as folder:
        (folder / "shard").touch()


def test_a_stage_with_versions_is_found_done_and_made_again(run: Path) -> None:
    config = load_config(None)
    stage = stages.STAGES["index"]
    assert stages.is_done(stage, config, run)
    first = stage_folder(run, "index")
    assert (first / "shard").exists() and first.parent.name == VERSIONS
    # How many are kept does not change what is built.
    assert stages.is_done(stage, load_config(None, ["index.keep_versions=1"]), run)
    other = load_config(None, ["index.shards=3"])
    assert not stages.is_done(stage, other, run)
    build(run, other)
    assert stages.is_done(stage, other, run) and first.exists()
    assert not list(run.glob("*.partial-*"))
    # Back again, the settings of the version that is served are those that count.
    make_current(run / "index", first.name)
    assert stages.is_done(stage, config, run) and not stages.is_done(stage, other, run)


def test_a_build_that_fails_between_its_shards_leaves_the_old_one(run: Path) -> None:
    first = stage_folder(run, "index")
    with (
        pytest.raises(KeyError),
        stage_workspace(
            stages.STAGES["index"], load_config(None, ["seed=1"]), run
        ) as folder,
    ):
        (folder / "shard-00000.faiss").touch()
        raise KeyError
    assert stage_folder(run, "index") == first and (first / "shard").exists()


def test_a_damaged_pointer_is_repaired_by_the_next_build(run: Path) -> None:
    (run / "index" / CURRENT).write_text("")
    config = load_config(None)
    assert not stages.is_done(stages.STAGES["index"], config, run)
    build(run, config)
    assert stages.is_done(stages.STAGES["index"], config, run)


def test_versions_in_a_link_are_refused_before_the_work(
    run: Path, tmp_path: Path
) -> None:
    (run / "index" / VERSIONS).rename(tmp_path / "elsewhere")
    (run / "index" / VERSIONS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="versions is a symbolic link"):
        check_place(INDEX, run)
