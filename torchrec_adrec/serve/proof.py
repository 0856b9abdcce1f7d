"""Proves, before the first answer, that what is served is what was exported.

Names are compared first, because every artefact names its checkpoint. Then numbers: the
loaded towers encode again what was exported, and the index's scores must be theirs.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.batch import TowerInput
from torchrec_adrec.data.request import RawUser
from torchrec_adrec.distributed.checkpoint import Checkpoint
from torchrec_adrec.errors import ManifestError
from torchrec_adrec.index.changes import Changes
from torchrec_adrec.index.manifest import (
    EXAMPLES,
    EmbeddingManifest,
    IndexManifest,
    vectors_of,
)
from torchrec_adrec.runs.stages import EXPORT, INDEX
from torchrec_adrec.runtime.files import Origin, check_files
from torchrec_adrec.serve.retriever import Retriever
from torchrec_adrec.serve.scorer import RankingScorer
from torchrec_adrec.tasks.sharded import check_origin

SAMPLED_ADS = 256  # ads of the catalog that are encoded again
# Largest difference, as a share of the vector's length, between what export wrote and
# what is loaded. Export always computes in float32; another processor, device or number
# of ranks rounds its sums in another order, which made 1e-6 at most. fp16 lookups
# (`sharding.qcomm`) are rounded to 5e-4 on their way between ranks, which the tower's
# layers may enlarge. The last checkpoint in the place of the best one was 0.1 to 0.4
# away.
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2}
# What `export.dtype` adds: half of the last of 11 bits is 5e-4 of a number.
ROUNDING = {"fp32": 0.0, "fp16": 1e-3}


def check_names(
    run: Path, towers: Checkpoint, ranker: Checkpoint, manifest: IndexManifest
) -> None:
    """Refuse an export, an index or a ranker made from other towers than the loaded.

    Args:
        run: folder of the run, which messages name.
        towers, ranker: the checkpoints that are loaded.
        manifest: of the index.

    Raises:
        ManifestError: names both sides.
    """
    check_origin(run / INDEX.name, manifest.embeddings.checkpoint, towers)
    exported = EmbeddingManifest.load(run / EXPORT.name)
    check_origin(run / EXPORT.name, exported.checkpoint, towers)
    if exported != manifest.embeddings:
        raise ManifestError(
            f"{run / INDEX.name} was built from other files than those in"
            f" {run / EXPORT.name}; run `adrec index` again"
        )
    if exported.schema_fingerprint != towers.state["schema"]:
        raise ManifestError(
            f"{run / EXPORT.name} and {run / INDEX.name} were made with schema"
            f" {exported.schema_fingerprint}, {towers.path} with"
            f" {towers.state['schema']}; run `adrec export` again"
        )
    tables = ranker.state["tables_from"]
    if tables is not None:  # with `ranking.tables: scratch` it has tables of its own
        check_origin(ranker.path, Origin.model_validate(tables), towers)


@dataclass(frozen=True)
class Proof:
    """Compares the loaded towers and the index with what was exported.

    Names can agree where numbers do not, for example after a change of the code. So the
    vectors themselves are computed again and compared.

    Args:
        user_input: encodes a raw user for the towers.
        retriever: the user tower and the index.
        scorer: holds the features of the ads.
        ad_tower: of the same checkpoint as the retriever's user tower.
        checkpoint: the one of both towers; errors name it.
        manifest: of the index.
        embeddings: the folder of the export.
        changes: of the ads, since then; None: there are none.
    """

    user_input: Callable[[RawUser], TowerInput]
    retriever: Retriever
    scorer: RankingScorer
    ad_tower: nn.Module
    checkpoint: Checkpoint
    manifest: IndexManifest
    embeddings: Path
    changes: Changes | None = None

    def check(self) -> float:
        """Compare ads, users and one user's scores.

        Returns:
            The largest difference of an index's score from the towers' product.

        Raises:
            ManifestError: a difference above the tolerance; names both sides.
        """
        expected_hash = self.manifest.embeddings.files[EXAMPLES]
        check_files(self.embeddings, {EXAMPLES: expected_hash})
        examples = json.loads((self.embeddings / EXAMPLES).read_text())
        self._check_ads()
        users = np.concatenate([self._encode_user(e["user"]) for e in examples])
        expected = np.array([e["vector"] for e in examples], dtype=np.float32)
        self._compare("users", distance(users, expected))
        return self._check_scores(users[:1])

    def _check_ads(self) -> None:
        rng, changes = np.random.default_rng(0), self.changes
        ids = self.scorer.ids
        # To sort a million ids takes half a second, so only where there are changes.
        if changes is not None and len(changes.touched):
            ids = np.setdiff1d(ids, changes.touched)
        sample = rng.choice(ids, min(SAMPLED_ADS, len(ids)), replace=False)
        expected = vectors_of(self.embeddings, sample)
        self._compare("ads", distance(self._encode_ads(sample), expected))
        if changes is not None and len(changes.ids):
            size = min(SAMPLED_ADS, len(changes.ids))
            rows = rng.choice(len(changes.ids), size, replace=False)
            changed = self._encode_ads(changes.ids[rows])
            self._compare("changed ads", distance(changed, changes.vectors[rows]))

    def _check_scores(self, user: Float32s) -> float:
        """Compare the index's scores of one user, (1, D), with the towers' products."""
        ids, scores = self.retriever.index.search(user, self.manifest.gate.k)
        ads = self._encode_ads(ids[0])
        error = np.abs(ads @ user[0] - scores[0])
        lengths = np.linalg.norm(ads, axis=1) * np.linalg.norm(user)
        # What the kind's codes round was measured, and allowed, by the gate.
        rounding = self.manifest.gate.code_error
        self._compare("scores of the index", error / positive(lengths), rounding)
        return float(error.max())

    @torch.inference_mode()
    def _encode_ads(self, ids: Int64s) -> Float32s:
        return np.asarray(self.ad_tower(self.scorer.features(ids)).numpy())

    @torch.inference_mode()
    def _encode_user(self, user: RawUser) -> Float32s:
        return np.asarray(self.retriever.tower(self.user_input(user)).numpy())

    def _compare(self, noun: str, distances: Float32s, rounding: float = 0) -> None:
        exported = self.manifest.embeddings
        tolerance = TOLERANCE[exported.lookups] + ROUNDING[exported.dtype] + rounding
        # Not `distances > tolerance`, which is false for NaN.
        too_far = ~(distances <= tolerance)
        if too_far.any():
            raise ManifestError(
                f"{self.checkpoint.path}, {self.checkpoint.origin}, gives other {noun}"
                f" than {self.embeddings}, made from"
                f" {self.manifest.embeddings.checkpoint}:"
                f" {too_far.sum()} of {len(too_far)} are too far away, the furthest"
                f" {distances.max():.2g} of a vector's length where {tolerance:g} is"
                " allowed; run `adrec export` and `adrec index` again"
            )


def distance(actual: Float32s, expected: Float32s) -> Float32s:
    """Return each row's distance as a share of the expected row's length, (n,)."""
    difference = np.linalg.norm(actual - expected, axis=1)
    return np.asarray(difference / positive(np.linalg.norm(expected, axis=1)))


def positive(lengths: Float32s) -> Float32s:
    """Raise lengths of 0, by which nothing can be divided, to the smallest float."""
    return np.maximum(lengths, np.finfo(np.float32).tiny)
