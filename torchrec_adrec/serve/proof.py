"""What is served is what was exported and judged: proved before the first answer.

Names are compared first (every artefact names its checkpoint), then numbers: the towers
that were loaded encode again what was exported, and the index's scores must be theirs.
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

ADS = 256  # of the catalog that are encoded again
# Largest difference, as a share of the vector's length, between what export wrote and
# what is loaded. Export always computes in float32; on another processor, device or
# number of ranks its sums are rounded in another order, which was 1e-6 at most. fp16
# lookups (`sharding.qcomm`) are rounded to 5e-4 on their way between ranks, which the
# tower's layers may enlarge. The last checkpoint in the place of the best one was 0.1
# to 0.4 away.
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2}


def check_names(
    run: Path, towers: Checkpoint, ranker: Checkpoint, manifest: IndexManifest
) -> None:
    """Exported, indexed and ranked with are just the towers that are loaded.

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
    tables = ranker.state["tables_from"]
    if tables is not None:  # with `ranking.tables: scratch` it has tables of its own
        check_origin(ranker.path, Origin.model_validate(tables), towers)


@dataclass(frozen=True)
class Proof:
    """Compares the loaded towers and the index with what was exported.

    Args:
        user_input: a raw user as the towers take it.
        ad_tower: of the same checkpoint as the retriever's user tower.
        checkpoint: that one; errors name it.
        embeddings: the folder of what was exported.
    """

    user_input: Callable[[RawUser], TowerInput]
    retriever: Retriever
    scorer: RankingScorer
    ad_tower: nn.Module
    checkpoint: Checkpoint
    manifest: IndexManifest
    embeddings: Path

    def check(self) -> None:
        """Compare ads, users and one user's scores.

        Raises:
            ManifestError: a difference above the tolerance; names both sides.
        """
        exported = self.manifest.embeddings.files[EXAMPLES]
        check_files(self.embeddings, {EXAMPLES: exported})
        examples = json.loads((self.embeddings / EXAMPLES).read_text())
        self._check_ads()
        users = np.concatenate([self._user(example["user"]) for example in examples])
        expected = np.array([e["vector"] for e in examples], dtype=np.float32)
        self._compare("users", _distance(users, expected))
        self._check_scores(users[:1])

    def _check_ads(self) -> None:
        ids = self.scorer.ids
        chosen = np.random.default_rng(0).choice(len(ids), min(ADS, len(ids)), False)
        sample = ids[chosen]
        expected = vectors_of(self.embeddings, sample)
        self._compare("ads", _distance(self._ads(sample), expected))

    def _check_scores(self, user: Float32s) -> None:
        """What the index says of a user is the inner product of the two towers."""
        ids, scores = self.retriever.index.search(user, self.manifest.gate.k)
        ads = self._ads(ids[0])
        error = np.abs(ads @ user[0] - scores[0])
        lengths = np.linalg.norm(ads, axis=1) * np.linalg.norm(user)
        self._compare("scores of the index", error / _not_zero(lengths))

    @torch.inference_mode()
    def _ads(self, ids: Int64s) -> Float32s:
        return np.asarray(self.ad_tower(self.scorer.features(ids)).numpy())

    @torch.inference_mode()
    def _user(self, user: RawUser) -> Float32s:
        return np.asarray(self.retriever.tower(self.user_input(user)).numpy())

    def _compare(self, what: str, distance: Float32s) -> None:
        allowed = TOLERANCE[self.manifest.embeddings.lookups]
        wrong = ~(distance <= allowed)  # true of NaN too
        if wrong.any():
            raise ManifestError(
                f"{self.checkpoint.path}, {self.checkpoint.origin}, gives other {what}"
                f" than {self.embeddings}, made from"
                f" {self.manifest.embeddings.checkpoint}:"
                f" {wrong.sum()} of {len(wrong)} are too far away, the furthest"
                f" {distance.max():.2g} of a vector's length where {allowed:g} is"
                " allowed; run `adrec export` and `adrec index` again"
            )


def _distance(found: Float32s, expected: Float32s) -> Float32s:
    """Of each row, as a share of the expected one's length, (n,)."""
    difference = np.linalg.norm(found - expected, axis=1)
    return np.asarray(difference / _not_zero(np.linalg.norm(expected, axis=1)))


def _not_zero(lengths: Float32s) -> Float32s:
    return np.maximum(lengths, np.finfo(np.float32).tiny)
