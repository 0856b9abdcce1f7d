"""An earlier version of the index is served again if it still fits, and only then."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import adrec
from trained_run import SETTINGS, K

from torchrec_adrec.config.run import Config, load_config
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import ConfigError, GateError, ManifestError
from torchrec_adrec.export.build_index import build_index
from torchrec_adrec.index.manifest import EmbeddingManifest, IndexManifest
from torchrec_adrec.runs.stage_folder import stage_workspace
from torchrec_adrec.runs.stages import (
    CONFIG,
    INDEX,
    RECORD,
    Record,
    is_done,
    stage_folder,
)
from torchrec_adrec.runs.versions import VERSIONS, version_names
from torchrec_adrec.runtime.files import Origin
from torchrec_adrec.serve.proof import check_names
from torchrec_adrec.serve.recommender import Recommender
from torchrec_adrec.serve.rollback import roll_back
from torchrec_adrec.tasks.sharded import final_checkpoint

IVF = ("index.kind=ivf_flat", "index.shards=3")


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A run whose index may be changed; the other stages are looked at only."""
    out = tmp_path / "run"
    out.mkdir()
    for stage in ("data", "retrieval", "ranking"):
        (out / stage).symlink_to(run / stage)
    for stage in ("export", "index"):
        shutil.copytree(run / stage, out / stage)
    return out


def build(run: Path, config: Config, process: Process) -> None:
    with stage_workspace(INDEX, config, run, process) as folder:
        build_index(run / "export", config.index, process, folder, k=K, seed=0)


def test_back_to_the_version_before_and_forth(copy: Path, process: Process) -> None:
    first = stage_folder(copy, "index").name
    config = load_config(None, [*SETTINGS, *IVF])
    build(copy, config, process)
    second = stage_folder(copy, "index").name
    assert version_names(copy / "index") == [first, second]
    expected = Recommender.load(copy).recommend({}).ads
    assert roll_back(copy).startswith(f"{first} is current: exact of 197 ads")
    assert not is_done(INDEX, config, copy)
    assert (
        Recommender.load(copy).recommend({}).ads["ad_id"].to_list()
        == expected["ad_id"].to_list()
    )
    assert roll_back(copy, second).startswith(f"{second} is current: ivf_flat, nlist")
    assert is_done(INDEX, config, copy)
    with pytest.raises(ConfigError, match=f"no version '7', expected one of.*{first}"):
        roll_back(copy, "7")


def test_an_index_that_fails_the_gate_leaves_the_old_one(
    copy: Path, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise GateError("too low")

    before = stage_folder(copy, "index")
    monkeypatch.setattr("torchrec_adrec.export.build_index.tune_and_validate", refuse)
    with pytest.raises(GateError):
        build(copy, load_config(None, [*SETTINGS, *IVF]), process)
    assert stage_folder(copy, "index") == before
    assert Recommender.load(copy).recommend({}).candidates == K


def test_without_a_gpu_the_cpu_serves_or_nothing_is_published(
    copy: Path,
    process: Process,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The settings of the version say where it is built, and where it is served."""
    monkeypatch.setattr("faiss.get_num_gpus", lambda: 0)
    before = stage_folder(copy, "index")
    with pytest.raises(ConfigError, match=r"index\.device = gpu, but FAISS"):
        build(copy, load_config(None, [*SETTINGS, *IVF, "index.device=gpu"]), process)
    assert stage_folder(copy, "index") == before
    build(copy, load_config(None, [*SETTINGS, *IVF, "index.device=auto"]), process)
    assert "auto: the CPU is taken" in caplog.text
    caplog.clear()
    assert Recommender.load(copy).recommend({}).candidates == K
    assert "auto: the CPU is taken" in caplog.text


def test_a_version_of_another_export_is_not_served(
    copy: Path, process: Process
) -> None:
    first = stage_folder(copy, "index")
    build(copy, load_config(None, [*SETTINGS, *IVF]), process)
    manifest = IndexManifest.load(first)
    other = Origin(step=9, weights="0" * 16)
    of_other = manifest.embeddings.model_copy(update={"checkpoint": other})
    manifest.model_copy(update={"embeddings": of_other}).save(first)
    before = stage_folder(copy, "index")
    with pytest.raises(ManifestError, match=r"built from vectors of step 9 .*adrec in"):
        roll_back(copy)
    manifest.save(first)
    # Nor one of an export that was made again since: serving would refuse it.
    path = first / RECORD
    record = Record.model_validate_json(path.read_bytes())
    again = record.model_copy(update={"needs": record.needs | {"export": "0" * 16}})
    path.write_text(again.model_dump_json())
    with pytest.raises(ManifestError, match="made from export 0000"):
        roll_back(copy)
    path.write_text(record.model_dump_json())
    # A version that is damaged, likewise.
    settings = (first / CONFIG).read_text()
    (first / CONFIG).write_text("")
    with pytest.raises(ManifestError, match=r"config\.yaml: expected sha256"):
        roll_back(copy)
    (first / CONFIG).write_text(settings)
    shard = first / "shard-00000.faiss"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ManifestError, match="expected sha256"):
        roll_back(copy)
    assert stage_folder(copy, "index") == before


def test_an_export_of_another_schema_is_refused(copy: Path) -> None:
    towers, ranker = map(final_checkpoint, (copy / "retrieval", copy / "ranking"))
    manifest = IndexManifest.load(stage_folder(copy, "index"))
    check_names(copy, towers, ranker, manifest)
    exported = EmbeddingManifest.load(copy / "export")
    other = exported.model_copy(update={"schema_fingerprint": "0"})
    of_other = manifest.model_copy(update={"embeddings": other})
    with pytest.raises(ManifestError, match="built from other files than those in"):
        check_names(copy, towers, ranker, of_other)
    other.save(copy / "export")
    with pytest.raises(ManifestError, match=r"were made with schema 0, .* with"):
        check_names(copy, towers, ranker, of_other)
    same = replace(towers, state=towers.state | {"schema": "0"})
    check_names(copy, same, ranker, of_other)


def test_the_commands(copy: Path, process: Process) -> None:
    build(copy, load_config(None, [*SETTINGS, *IVF]), process)
    first, second = version_names(copy / "index")
    done = adrec("versions", "list", "--out", copy)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"  {first}: exact of 197 ads in 2 shards, recall@50 1")
    assert lines[1].startswith(f"* {second}: ivf_flat, nlist")
    done = adrec("versions", "rollback", "--out", copy)
    assert done.returncode == 0 and done.stdout.startswith(f"{first} is current")
    done = adrec("versions", "rollback", "--out", copy)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "no version before" in done.stderr
    record = json.loads((copy / "index" / VERSIONS / second / "stage.json").read_text())
    assert second.endswith(record["build_id"])
