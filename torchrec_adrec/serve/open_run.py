"""Opens a finished run for serving, and proves that its parts belong together."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchrec_adrec.config.run import Config
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.request import RawUser
from torchrec_adrec.distributed.checkpoint import Checkpoint
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.index.changes import Changes
from torchrec_adrec.index.device import place
from torchrec_adrec.index.manifest import IndexManifest
from torchrec_adrec.index.sharded import ShardedIndex
from torchrec_adrec.index.updated import Absorbed
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
from torchrec_adrec.serve.bundle import EXAMPLE_USERS, check_bundle
from torchrec_adrec.serve.certificate import Certificate, hashes_of
from torchrec_adrec.serve.crosses import Crosses
from torchrec_adrec.serve.parts import Parts
from torchrec_adrec.serve.proof import Proof, check_names
from torchrec_adrec.serve.recheck import check_samples
from torchrec_adrec.serve.retriever import Retriever
from torchrec_adrec.serve.scorer import RankingScorer
from torchrec_adrec.tasks.blend import ALONE, Blend, load_blend
from torchrec_adrec.tasks.blend import FILE as BLEND
from torchrec_adrec.tasks.calibration import load_calibrations
from torchrec_adrec.tasks.sharded import check_origin, restore_whole


def open_run(run: Path, is_certified: bool = True, **overrides: str | None) -> Parts:
    """Load the parts of a run and compare them with one another.

    Args:
        run: its folder, or that of a bundle.
        is_certified: whether a certificate that is there must hold.
        overrides: settings of `recommend` in the place of the run's own; None: as the
            run has it.

    Raises:
        ConfigError: the index rounds scores more than a blend may be off.
        ManifestError, CheckpointError: a part is missing, damaged, was made from
            another part than the ones in the run, or gives other vectors or scores than
            were exported; or the certificate does not hold.
    """
    check_bundle(run)
    for stage in (RETRIEVAL, EXPORT, INDEX, RANKING):
        check_inputs(stage, run)
    version = stage_folder(run, INDEX.name)
    config = _config(run, version, overrides)
    settings = config.recommend
    encoder = Encoder.load(run / "data")
    if encoder.vectors is not None:
        encoder.vectors.check_encoders(encoder.schema)
    towers, towers_checkpoint = restore_whole("retrieval", run, encoder.schema)
    ranker, ranker_checkpoint = restore_whole("ranking", run, encoder.schema)
    manifest = IndexManifest.load(version)
    check_names(run, towers_checkpoint, ranker_checkpoint, manifest)
    calibrations = load_calibrations(ranker_checkpoint)
    blend = _blend(ranker_checkpoint, towers_checkpoint)
    blended = None if blend == ALONE else towers.model
    catalog = load_catalog(run / "data")
    certificate = None
    if is_certified:
        certificate = _certificate(run, towers_checkpoint, ranker_checkpoint, version)
    index = ShardedIndex.load(version, manifest)
    place(index, config.index.device, settings.candidates, tuned=True)
    parts = Parts(
        encoder,
        Retriever(towers.model.encode_users, index),
        RankingScorer(
            ranker.model, encoder.schema, catalog, calibrations, blend, blended
        ),
        Crosses(encoder, catalog),
        settings,
        towers.model,
        catalog,
        manifest.embeddings,
        Absorbed.load(version, manifest),
    )
    changes = open_changes(run, manifest.embeddings)
    if changes.name or manifest.changes:
        parts = parts.with_changes(changes)
    _prove(run, parts, towers_checkpoint, manifest, changes)
    if certificate is not None:
        check_samples(run, certificate, parts, changes.touched)
    return parts


def _blend(ranker: Checkpoint, towers: Checkpoint) -> Blend:
    blend = load_blend(ranker)
    if blend != ALONE:
        check_origin(ranker.path / BLEND, blend.origin, towers)
    return blend


def _certificate(
    run: Path, towers: Checkpoint, ranker: Checkpoint, version: Path
) -> Certificate | None:
    """Read the certificate, if there is one, and compare what it was made of."""
    certificate = Certificate.load(run)
    if certificate is not None:
        certificate.check_parts(run, hashes_of(run, towers, ranker, version))
    return certificate


def _config(run: Path, version: Path, overrides: Mapping[str, str | None]) -> Config:
    """Read how the run is served, as its index was built for."""
    given = [f"recommend.{k}={json.dumps(v)}" for k, v in overrides.items() if v]
    # The index was measured at as many candidates as its own settings name.
    config = stage_settings(version, given)
    if config.recommend.rank_by is not None:
        # The formula is checked against the labels as the ranker was made to predict
        # them; the index may have been built before that was settled.
        formula = f"recommend.rank_by={json.dumps(config.recommend.rank_by)}"
        stage_settings(run / RANKING.name, [formula])
    return config


def example_users(run: Path) -> list[RawUser]:
    """Return the raw users that `adrec prepare` kept as examples."""
    users: list[Any] = json.loads((run / EXAMPLE_USERS).read_text())
    return users


def _prove(
    run: Path,
    parts: Parts,
    towers: Checkpoint,
    manifest: IndexManifest,
    changes: Changes,
) -> None:
    """Compare numbers: vectors, scores, and what a blend makes of their rounding."""
    score_error = Proof(
        parts.user_input,
        parts.retriever,
        parts.scorer,
        parts.towers.ad_tower,
        towers,
        manifest,
        run / EXPORT.name,
        changes,
    ).check()
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
