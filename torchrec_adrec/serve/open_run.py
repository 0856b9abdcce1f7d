"""Opens a finished run for serving, and proves that its parts belong together."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import polars as pl

from torchrec_adrec.batch import TowerInput
from torchrec_adrec.config.run import RecommendConfig
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.data.column import RawColumns
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.request import RawUser, raw_user
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.index.changes import Changes
from torchrec_adrec.index.manifest import EmbeddingManifest, IndexManifest
from torchrec_adrec.index.sharded import ShardedIndex
from torchrec_adrec.index.updated import Absorbed, UpdatedIndex
from torchrec_adrec.runs.ad_changes import open_changes
from torchrec_adrec.runs.stage_settings import stage_settings
from torchrec_adrec.runs.stages import (
    EXPORT,
    INDEX,
    RANKING,
    RETRIEVAL,
    check_inputs,
    stage_folder,
)
from torchrec_adrec.schema import Side
from torchrec_adrec.serve.crosses import Crosses
from torchrec_adrec.serve.proof import Proof, check_names
from torchrec_adrec.serve.retriever import Retriever
from torchrec_adrec.serve.scorer import RankingScorer
from torchrec_adrec.tasks.blend import ALONE, load_blend
from torchrec_adrec.tasks.blend import FILE as BLEND
from torchrec_adrec.tasks.calibration import load_calibrations
from torchrec_adrec.tasks.sharded import check_origin, restore_whole


@dataclass(frozen=True)
class Parts:
    """What answers requests.

    Attributes:
        encoder: fitted by `adrec prepare`.
        retriever: the user tower and the index.
        scorer: the ranker and the catalog.
        crosses: join a user with ads of that catalog.
        settings: how many ads are retrieved and returned, and in which order.
        catalog: as it was prepared.
        exported: the manifest of the vectors that the index was built from.
        absorbed: the changes that the index was built with.
        changes: name of the changes of the ads; empty: there are none.
    """

    encoder: Encoder
    retriever: Retriever
    scorer: RankingScorer
    crosses: Crosses
    settings: RecommendConfig
    catalog: pl.DataFrame
    exported: EmbeddingManifest
    absorbed: Absorbed
    changes: str = ""

    def with_changes(self, changes: Changes) -> Self:
        """Return the parts with changes of the ads; nothing is read or loaded again.

        Args:
            changes: all since the export, in the place of those that are there.

        Raises:
            ManifestError: they are older than the index.
        """
        index = self.retriever.index
        base = index.base if isinstance(index, UpdatedIndex) else index
        updated = UpdatedIndex(base, changes, self.absorbed)
        return replace(
            self,
            retriever=Retriever(self.retriever.tower, updated),
            scorer=self.scorer.with_changes(self.catalog, changes),
            crosses=Crosses(self.encoder, changes.rows_behind(self.catalog)),
            changes=changes.name,
        )


def open_run(run: Path, **overrides: str | None) -> Parts:
    """Load the parts of a run and compare them with one another.

    Args:
        run: its folder.
        overrides: settings of `recommend` in the place of the run's own; None: as the
            run has it.

    Raises:
        ConfigError: the index rounds scores more than a blend may be off.
        ManifestError, CheckpointError: a part is missing, damaged, was made from
            another part than the ones in the run, or gives other vectors or scores than
            were exported.
    """
    for stage in (RETRIEVAL, EXPORT, INDEX, RANKING):
        check_inputs(stage, run)
    given = [f"recommend.{k}={json.dumps(v)}" for k, v in overrides.items() if v]
    version = stage_folder(run, INDEX.name)
    # The index was measured at as many candidates as its own settings name.
    settings = stage_settings(version, given).recommend
    if settings.rank_by is not None:
        # The formula is checked against the labels as the ranker was made to predict
        # them; the index may have been built before that was settled.
        formula = f"recommend.rank_by={json.dumps(settings.rank_by)}"
        stage_settings(run / RANKING.name, [formula])
    encoder = Encoder.load(run / "data")
    towers, towers_checkpoint = restore_whole("retrieval", run, encoder.schema)
    ranker, ranker_checkpoint = restore_whole("ranking", run, encoder.schema)
    manifest = IndexManifest.load(version)
    check_names(run, towers_checkpoint, ranker_checkpoint, manifest)
    blend = load_blend(ranker_checkpoint)
    if blend != ALONE:
        path = ranker_checkpoint.path / BLEND
        check_origin(path, blend.origin, towers_checkpoint)
    catalog = load_catalog(run / "data")
    parts = Parts(
        encoder,
        Retriever(towers.model.user_tower, ShardedIndex.load(version, manifest)),
        RankingScorer(
            ranker.model,
            encoder.schema,
            catalog,
            load_calibrations(ranker_checkpoint),
            blend,
            None if blend == ALONE else towers.model,
        ),
        Crosses(encoder, catalog),
        settings,
        catalog,
        manifest.embeddings,
        Absorbed.load(version, manifest),
    )
    changes = open_changes(run, manifest.embeddings)
    if changes.name or manifest.changes:
        parts = parts.with_changes(changes)
    score_error = Proof(
        lambda user: encode_user(encoder, raw_user(user, encoder.schema)),
        parts.retriever,
        parts.scorer,
        towers.model.ad_tower,
        towers_checkpoint,
        manifest,
        run / EXPORT.name,
        changes,
    ).check()
    _check_rounding(parts, score_error, manifest)
    return parts


def encode_user(encoder: Encoder, raw: RawColumns) -> TowerInput:
    """Encode the raw columns of users as the models take them."""
    return tower_input(encoder.encode(raw, Side.USER), encoder.schema, Side.USER)


def example_users(run: Path) -> list[RawUser]:
    """Return the raw users that `adrec prepare` kept as examples."""
    users: list[Any] = json.loads((run / "data/example_users.json").read_text())
    return users


def _check_rounding(parts: Parts, score_error: float, manifest: IndexManifest) -> None:
    # A blend was fitted with the towers' exact products and is served with the
    # products of what the index has stored.
    error = parts.scorer.logit_error(score_error)
    bound = parts.settings.max_score_error
    if not error <= bound:
        raise ConfigError(
            f"the index {manifest.kind} rounds scores by {score_error:.2g}, which"
            f" changes the blended click logit by {error:.2g}, where"
            f" recommend.max_score_error allows {bound:g}; take a kind that stores"
            " vectors exactly or refines them, or set ranking.blend=none"
        )
