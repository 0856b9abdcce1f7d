"""Adds, replaces and removes ads of a published index, without building it again.

The changes are written beside the index (`index/changes.py`), read back and checked
there, and published by renaming. Whatever goes wrong before that changes nothing.
"""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.errors import ManifestError
from torchrec_adrec.export.ad_encoder import AdEncoder
from torchrec_adrec.export.ad_file import AdIds, AdRows
from torchrec_adrec.index.changes import ADS, CHANGES, Changes, Source
from torchrec_adrec.index.changes_gate import check_changes
from torchrec_adrec.index.manifest import EmbeddingManifest, IndexManifest
from torchrec_adrec.index.sharded import ShardedIndex
from torchrec_adrec.index.updated import Absorbed, UpdatedIndex
from torchrec_adrec.runs.ad_changes import (
    changes_name,
    newest_changes,
    open_changes,
)
from torchrec_adrec.runs.run_lock import Job, hold
from torchrec_adrec.runs.stage_settings import stage_settings
from torchrec_adrec.runs.stages import (
    DATA,
    EXPORT,
    INDEX,
    RETRIEVAL,
    check_inputs,
    load_record,
    stage_folder,
)
from torchrec_adrec.runs.versions import VERSIONS, publish_version
from torchrec_adrec.runtime.disk import disk_errors
from torchrec_adrec.schema import AD_ID
from torchrec_adrec.serve.rank_by import RankBy
from torchrec_adrec.serve.scorer import shown

PARTIAL = f"{CHANGES}.partial"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Update:
    """What an update has done.

    Attributes:
        name: of the published version of the changes.
        added, replaced, removed: numbers of ads.
        changed_share: of the index's ads since it was built.
    """

    name: str
    added: int
    replaced: int
    removed: int
    changed_share: float

    def __str__(self) -> str:
        """Return one line for people."""
        return (
            f"{self.name}: {self.added} ads added, {self.replaced} replaced,"
            f" {self.removed} removed; {self.changed_share:.2%} of the index's ads have"
            " changed since it was built"
        )


class Updater:
    """Updates the ads of one run, any number of times; models are loaded once.

    Args:
        run: its folder, with a published index.

    Raises:
        ManifestError: a part is missing, damaged, or was made from others.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self._open()

    def _open(self) -> None:
        run = self.run
        for stage in (RETRIEVAL, EXPORT, INDEX):
            check_inputs(stage, run)
        self._builds = self._published()
        folder = stage_folder(run, INDEX.name)
        self._settings = stage_settings(folder)
        self.ads = AdEncoder.open(run)
        manifest = IndexManifest.load(folder)
        self._base = ShardedIndex.load(folder, manifest)
        self._absorbed = Absorbed.load(folder, manifest)

    def _published(self) -> list[str]:
        stages = (DATA, RETRIEVAL, EXPORT, INDEX)
        return [load_record(self.run, stage.name).build_id for stage in stages]

    def apply(self, add: AdRows | None = None, remove: AdIds | None = None) -> Update:
        """Check and publish one update.

        Args:
            add: raw rows of ads that are added, or replace those of the same id.
            remove: ids of ads that are not returned from then on.

        Raises:
            ConfigError: another command is at work in the run.
            DataError: a row is bad, an id is unknown, or an ad is there twice.
            GateError: the index would answer wrongly, or too much has changed.
            ManifestError: the run's parts or its changes are damaged or do not fit.
        """
        with disk_errors(self.run), hold(self.run, Job.new()):
            if self._published() != self._builds:
                self._open()
            before = open_changes(self.run, self.ads.exported)
            rows, vectors = self._encoded(add)
            new, gone = rows[AD_ID].to_numpy(), self._removed(remove, before)
            _check_apart(add, new, gone)
            changes = before.after(rows, vectors, gone)
            replaced = int(np.isin(new, self._ids(before)).sum())
            name, share = self._publish(changes)
        return Update(name, len(new) - replaced, replaced, len(gone), share)

    def _encoded(self, add: AdRows | None) -> tuple[pl.DataFrame, Float32s]:
        if add is not None:
            return self.ads.encode(add)
        vectors = np.empty((0, self.ads.exported.dim), dtype=np.float32)
        return self.ads.catalog.clear(), vectors

    def _ids(self, changes: Changes) -> Int64s:
        """Return the ids of all ads after some changes, rising."""
        catalog = self.ads.catalog[AD_ID].to_numpy()
        return np.union1d(np.setdiff1d(catalog, changes.touched), changes.ids)

    def _removed(self, remove: AdIds | None, before: Changes) -> Int64s:
        if remove is None:
            return np.empty(0, dtype=np.int64)
        unknown = np.flatnonzero(~np.isin(remove.ids, self._ids(before)))
        if len(unknown):
            row = int(unknown[0])
            raise remove.places.fault(
                row,
                f"there is no ad {remove.ids[row]}, it was removed before or never"
                " there; nothing was changed",
            )
        return remove.ids

    def _publish(self, changes: Changes) -> tuple[str, float]:
        """Write changes, check them as they would be read, and make them current."""
        partial = write_partial(self.run, changes)
        try:
            read = Changes.load(partial)
            read.check_source(partial, self.ads.exported)
            index = UpdatedIndex(self._base, read, self._absorbed)
            settings = self._settings
            check_changes(
                index,
                self._ids(changes),
                settings.recommend.candidates,
                settings.index.max_changed,
            )
            schema = self.ads.encoder.schema
            RankBy.of(settings.recommend.rank_by, schema, shown(read.ads, schema))
        except BaseException:
            shutil.rmtree(partial)
            raise
        name = publish(partial, self.run, settings.index.keep_versions)
        return name, index.changed_share


def carry_changes(run: Path, keep: int) -> None:
    """Encode the changes of an older export again, by the towers of the newest one.

    So ads that were added stay, and ads that were removed do not come back, when the
    towers are trained anew.

    Args:
        run: its folder, held by this command.
        keep: how many versions of the changes stay.

    Raises:
        DataError: an added ad cannot be encoded any more.
        ManifestError: the data have other columns for an ad, or give it another id.
    """
    old = newest_changes(run)
    exported = EmbeddingManifest.load(run / EXPORT.name)
    if old is None or old.source == Source.of(exported):
        return
    ads = AdEncoder.open(run)
    rows, vectors = ads.catalog.clear(), np.empty((0, exported.dim), dtype=np.float32)
    if len(old.ids):
        path = run / CHANGES / VERSIONS / old.name / ADS
        rows, vectors = ads.encode(AdRows.of_catalog(old.ads, ads.encoder.schema, path))
        if not np.array_equal(rows[AD_ID].to_numpy(), old.ids):
            raise ManifestError(
                f"the ads of {path} would get other ids: {run / DATA.name} names ads by"
                f" {', '.join(ads.key.columns)} now; remove {run / CHANGES} and add"
                " them again"
            )
    changes = Changes.none(exported).after(rows, vectors, old.removed)
    publish(write_partial(run, changes), run, keep)
    log.info("%d changed ads were encoded by the new towers", len(old.ids))


def write_partial(run: Path, changes: Changes) -> Path:
    """Write changes beside those that are current; return the folder."""
    for left in run.glob(f"{PARTIAL}*"):  # by an update that was killed
        shutil.rmtree(left)
    folder = run / PARTIAL
    folder.mkdir()
    return folder.rename(run / f"{PARTIAL}-{changes.save(folder)}")


def publish(partial: Path, run: Path, keep: int) -> str:
    """Make written changes current; return the name of their version."""
    build_id = partial.name.rpartition("-")[2]
    publish_version(partial, run / CHANGES, build_id, keep)
    return changes_name(run)


def _check_apart(add: AdRows | None, new: Int64s, gone: Int64s) -> None:
    both = np.flatnonzero(np.isin(new, gone))
    if add is not None and len(both):
        row = int(both[0])
        raise add.places.fault(row, f"ad {new[row]} is to be added and removed at once")
