"""The changes of the ads and new versions of index and export."""

import pytest
from updates import USER, alike, answers, rebuild, update

from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.distributed.process import process_group
from torchrec_adrec.errors import AdRecError, GateError, ManifestError
from torchrec_adrec.export.export import export
from torchrec_adrec.export.update import Updater
from torchrec_adrec.index.manifest import IndexManifest
from torchrec_adrec.index.updated import UpdatedIndex
from torchrec_adrec.runs import versions
from torchrec_adrec.runs.ad_changes import changes_name
from torchrec_adrec.runs.stage_folder import stage_workspace
from torchrec_adrec.runs.stage_settings import stage_settings
from torchrec_adrec.runs.stages import EXPORT, stage_folder
from torchrec_adrec.serve.recommender import Recommender
from torchrec_adrec.serve.rollback import roll_back
from torchrec_adrec.tasks.sharded import restore


def test_compaction_builds_the_changes_in_and_answers_the_same(
    updater: Updater,
) -> None:
    run = updater.run
    served = Recommender.load(run)
    gone = served.recommend(USER, 1).ads["ad_id"][0]
    update(updater, "a3,b6,7.5", "new,b1,", remove=(gone,))
    before = answers(served.refreshed(run))
    first = stage_folder(run, "index")
    rebuild(run)
    version = stage_folder(run, "index")
    manifest = IndexManifest.load(version)
    assert version != first and manifest.count == 200
    assert manifest.changes == changes_name(run)
    compacted = Recommender.load(run)
    index = compacted.retriever.index
    assert isinstance(index, UpdatedIndex)
    assert index.segment.count == 0 and index.changed_share == 0
    alike(answers(compacted), before)
    # It goes on from there, and so does one that was opened before.
    done = update(updater, "new,b2,2", "newer,b1,1")
    assert done.changed_share == 2 / 200
    newest = answers(compacted.refreshed(run))
    assert (newest["new"]["brand"], len(newest)) == ("b2", len(before) + 1)
    # Back in the version before, what was removed stays removed.
    assert roll_back(run).startswith(first.name)
    alike(answers(Recommender.load(run)), newest)
    rebuild(run, "index.kind=ivf_flat", "index.shards=3")
    alike(answers(Recommender.load(run)), newest)


def test_an_index_that_the_gate_refuses_leaves_the_updates_served(
    updater: Updater, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = updater.run
    update(updater, "new,b1,")
    version = stage_folder(run, "index")

    def refuse(*args: object, **kwargs: object) -> None:
        raise GateError("too low")

    monkeypatch.setattr("torchrec_adrec.export.build_index.tune_and_validate", refuse)
    with pytest.raises(GateError):
        rebuild(run)
    assert stage_folder(run, "index") == version
    assert "new" in answers(Recommender.load(run))


def test_changes_that_are_older_than_the_index_are_refused(updater: Updater) -> None:
    run = updater.run
    update(updater, "new,b1,")
    name = changes_name(run)
    update(updater, "newer,b1,")
    rebuild(run)
    versions.make_current(run / "changes", name)
    with pytest.raises(
        ManifestError, match=r"not in the run's changes .*: they are older"
    ):
        Recommender.load(run)


def test_a_new_export_encodes_the_changed_ads_again(updater: Updater) -> None:
    run = updater.run
    served = Recommender.load(run)
    gone = served.recommend(USER, 1).ads["ad_id"][0]
    update(updater, "a3,b6,7.5", "new,b1,", remove=(gone,))
    expected = answers(served.refreshed(run))
    settings = stage_settings(run / "data", ["export.dtype=fp16"])
    schema = Encoder.load(run / "data").schema
    with (
        process_group("cpu") as process,
        stage_workspace(EXPORT, settings, run, process) as folder,
    ):
        model, towers = restore("retrieval", run, schema, settings, process)
        export(model, towers, run / "data", settings, process, folder)
    with pytest.raises(ManifestError, match="made from export"):
        Recommender.load(run)
    with pytest.raises(AdRecError):
        update(updater, "newest,b1,")
    old = changes_name(run)
    rebuild(run, "export.dtype=fp16")
    assert changes_name(run) != old
    served = Recommender.load(run)
    assert set(answers(served)) == set(expected)
    # Changes of the export before, in the place of the new ones, are refused.
    versions.make_current(run / "changes", old)
    with pytest.raises(ManifestError, match="encodes the changed ads again"):
        served.refreshed(run)
