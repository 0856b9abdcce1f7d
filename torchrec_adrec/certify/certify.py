"""Compares held-out requests in every way in which they can be computed.

1 rank = 2 ranks = exported vectors = scores of the index = scores over HTTP
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchrec_adrec.arrays import Float32s, Float64s, Int64s
from torchrec_adrec.certify.eager import Computed, Pairs, compute, compute_on_ranks
from torchrec_adrec.certify.rounded import compare_engines, compare_index
from torchrec_adrec.certify.served import answers_of
from torchrec_adrec.data.request import RawUser
from torchrec_adrec.errors import DataError, ManifestError
from torchrec_adrec.index.manifest import IndexManifest, vectors_of
from torchrec_adrec.runs.ad_changes import open_changes
from torchrec_adrec.runs.stages import EXPORT, INDEX, RANKING, RETRIEVAL, stage_folder
from torchrec_adrec.runs.unpack import check_no_bundle
from torchrec_adrec.schema import AD_ID, SCORE
from torchrec_adrec.serve.certificate import (
    PREDICTION_TOLERANCE,
    Certificate,
    Comparison,
    Sample,
    hashes_of,
)
from torchrec_adrec.serve.open_run import example_users, open_run
from torchrec_adrec.serve.parts import Parts
from torchrec_adrec.serve.proof import ROUNDING, TOLERANCE, distance, positive
from torchrec_adrec.tasks.sharded import final_checkpoint

SAMPLES = 4  # requests that every start computes again: some 30 ms each
RANKS = 2
LENGTH, ITSELF = "a vector's length", "the prediction"


def certify(
    run: Path, requests: int, ranks: Callable[..., Computed] = compute_on_ranks
) -> Certificate:
    """Compute held-out requests in every way, and compare.

    Args:
        run: folder of a run, which nobody may change meanwhile.
        requests: how many; fewer where the data kept fewer example users.
        ranks: computes pairs in several processes.

    Returns:
        The certificate, which `issue` writes if all differences are allowed.

    Raises:
        ConfigError: the folder is a bundle.
        AdRecError: the run cannot be served.
    """
    check_no_bundle(run)
    users = example_users(run)[:requests]
    if not users:
        raise DataError(f"{run} has no example users: give the test split some rows")
    made_of = _hashes(run)
    manifest = IndexManifest.load(stage_folder(run, INDEX.name))
    changes = open_changes(run, manifest.embeddings)
    # Ads that were updated since have neither an exported vector nor a catalog's row.
    answers = [
        [ad for ad in ads if ad[AD_ID] not in changes.touched]
        for ads in answers_of(run, users)
    ]
    pairs = Pairs(
        users,
        np.repeat(np.arange(len(users)), [len(ads) for ads in answers]),
        np.array([ad[AD_ID] for ads in answers for ad in ads]),
    )
    if not len(pairs.ads):
        raise DataError(
            f"{run} answers {len(users)} held-out users with nothing but ads that were"
            " updated since the export: certify with more --requests, or export again"
        )
    one, several = compute(run, pairs), ranks(run, pairs, RANKS)
    parts = open_run(run, is_certified=False)
    comparisons = [
        *_compare_ranks(run, one, several),
        *_compare_served(run, parts, pairs, one, answers),
        compare_index(run, parts, users, changes),
        *compare_engines(parts, users),
    ]
    if _hashes(run) != made_of:
        raise ManifestError(f"{run} was changed while it was being certified")
    samples = [
        _sample(n, user, pairs, one, answers)
        for n, user in enumerate(users)
        if answers[n]
    ]
    return Certificate(
        made_of=made_of,
        requests=len(users),
        comparisons=comparisons,
        samples=samples[:SAMPLES],
    )


def issue(run: Path, certificate: Certificate) -> None:
    """Write the certificate of a run; one that does not pass changes nothing.

    Raises:
        ManifestError: a difference is too large; names all that are.
    """
    failed = [c for c in certificate.comparisons if not c.passes]
    if failed:
        lines = [f"{c.name} {c.largest:.2g} of {c.unit}" for c in failed]
        raise ManifestError(
            f"{run} is not certified, too far apart are: {'; '.join(lines)}; a run that"
            " was made in one piece by one version of the package has equal numbers, so"
            " make again what does not fit"
        )
    certificate.save(run)


def _hashes(run: Path) -> dict[str, str]:
    towers, ranker = (final_checkpoint(run / s.name) for s in (RETRIEVAL, RANKING))
    return hashes_of(run, towers, ranker, stage_folder(run, INDEX.name))


def _compare_ranks(run: Path, one: Computed, several: Computed) -> list[Comparison]:
    lookups = IndexManifest.load(stage_folder(run, INDEX.name)).embeddings.lookups
    name, tolerance = f"1 rank = {RANKS} ranks", TOLERANCE[lookups]
    users = distance(several.users, one.users)
    ads = distance(several.ads, one.ads)
    return [
        _compared(f"{name}: vectors of users", users, LENGTH, tolerance),
        _compared(f"{name}: vectors of ads", ads, LENGTH, tolerance),
        _compared(
            f"{name}: predictions",
            _shares(several.predictions, one.predictions),
            ITSELF,
            PREDICTION_TOLERANCE[lookups],
        ),
    ]


def _compare_served(
    run: Path,
    parts: Parts,
    pairs: Pairs,
    one: Computed,
    answers: Sequence[Sequence[dict[str, Any]]],
) -> list[Comparison]:
    manifest = IndexManifest.load(stage_folder(run, INDEX.name))
    exported, settings = manifest.embeddings, parts.settings
    ids, places = np.unique(pairs.ads, return_inverse=True)
    vectors = vectors_of(run / EXPORT.name, ids)[places]
    tolerance = TOLERANCE[exported.lookups] + ROUNDING[exported.dtype]
    flat = [ad for ads in answers for ad in ads]
    scores = np.array([ad[SCORE] for ad in flat], dtype=np.float32)
    lengths = np.linalg.norm(one.users, axis=1) * np.linalg.norm(vectors, axis=1)
    error = np.abs(scores - (one.users * vectors).sum(axis=1)) / positive(lengths)
    served = {n: np.array([ad[n] for ad in flat]) for n in one.predictions}
    rounding = manifest.gate.code_error
    allowed = PREDICTION_TOLERANCE["fp32"]
    rounds = not settings.serves_exactly or (parts.scorer.towers and rounding > 0)
    if rounds:  # what loading allows of a logit
        allowed += math.expm1(settings.max_score_error)
    return [
        _compared(
            "1 rank = exported vectors", distance(one.ads, vectors), LENGTH, tolerance
        ),
        _compared(
            "exported vectors = served scores", error, LENGTH, tolerance + rounding
        ),
        _compared(
            "1 rank = served predictions",
            _shares(served, one.predictions),
            ITSELF,
            allowed,
        ),
    ]


def _compared(
    name: str, differences: Float32s | Float64s, unit: str, allowed: float
) -> Comparison:
    # The maximum of an array is NaN where one of its numbers is.
    largest = float(differences.max())
    return Comparison(
        name=name, count=differences.size, largest=largest, unit=unit, allowed=allowed
    )


def _shares(actual: dict[str, Float64s], expected: dict[str, Float64s]) -> Float64s:
    """Return the differences of all predictions as shares of the expected ones."""
    tiny = np.finfo(np.float64).tiny
    return np.concatenate(
        [
            np.abs(actual[label] - numbers) / np.maximum(np.abs(numbers), tiny)
            for label, numbers in expected.items()
        ]
    )


def _sample(
    number: int,
    user: RawUser,
    pairs: Pairs,
    one: Computed,
    answers: Sequence[Sequence[dict[str, Any]]],
) -> Sample:
    rows: Int64s = np.flatnonzero(pairs.requests == number)
    return Sample.model_validate(
        {
            "user": user,
            "ads": pairs.ads[rows].tolist(),
            "scores": [ad[SCORE] for ad in answers[number]],
            "predictions": {n: p[rows].tolist() for n, p in one.predictions.items()},
        }
    )
