"""Answers the samples of a certificate again, before the first request is served."""

from pathlib import Path

import numpy as np

from torchrec_adrec.arrays import Bools, Float32s, Float64s, Int64s
from torchrec_adrec.errors import ManifestError
from torchrec_adrec.schema import SCORE
from torchrec_adrec.serve.bundle import CERTIFICATE
from torchrec_adrec.serve.certificate import (
    AGAIN,
    PREDICTION_TOLERANCE,
    Certificate,
    Sample,
)
from torchrec_adrec.serve.parts import Parts
from torchrec_adrec.serve.proof import TOLERANCE


def check_samples(
    run: Path, certificate: Certificate, parts: Parts, touched: Int64s
) -> None:
    """Answer every sample, and refuse other numbers than the certified ones.

    Args:
        run: its folder, which messages name.
        certificate: whose samples.
        parts: loaded, the ranker in float32.
        touched: ids of ads that were replaced or removed since the export, of which
            other numbers are right.

    Raises:
        ManifestError: names the request, the ad and both numbers.
    """
    for number, sample in enumerate(certificate.samples):
        difference = _difference(sample, parts, touched)
        if difference:
            raise ManifestError(
                f"{run / CERTIFICATE}: of its request {number}, {difference}; the parts"
                " are those that were certified, so their code or this machine"
                f" computes other numbers: {AGAIN}"
            )


def _difference(sample: Sample, parts: Parts, touched: Int64s) -> str:
    """Return the first difference of an answer; empty if there is none."""
    ads, certified = np.array(sample.ads), np.array(sample.scores, dtype=np.float32)
    retrieved, scores = parts.retrieve(sample.user)
    limit = TOLERANCE["fp32"] * float(np.abs(certified).max())
    order = np.argsort(retrieved)
    places = order[np.searchsorted(retrieved[order], ads).clip(max=len(order) - 1)]
    kept = ~np.isin(ads, touched)
    is_there = kept & (retrieved[places] == ads)
    # An ad at the very cut may fall behind it where sums are rounded otherwise.
    lost = kept & ~is_there & ~(certified <= scores[-1] + limit)
    if lost.any():
        return f"ad {ads[lost][0]} is not retrieved any more"
    if not is_there.any():  # updates have touched all of them
        return ""
    ads, certified, actual = (x[is_there] for x in (ads, certified, scores[places]))
    difference = _first(ads, SCORE, actual, certified, np.full(len(ads), limit))
    predictions = parts.predict(sample.user, ads, actual)
    for label, numbers in sample.predictions.items():
        expected = np.array(numbers)[is_there]
        allowed = PREDICTION_TOLERANCE["fp32"] * np.abs(expected)
        difference = difference or _first(
            ads, label, predictions[label], expected, allowed
        )
    return difference


def _first(
    ads: Int64s,
    name: str,
    actual: Float32s | Float64s,
    certified: Float32s | Float64s,
    allowed: Float64s,
) -> str:
    # Not `> allowed`, which is false for NaN.
    wrong: Bools = ~(np.abs(actual - certified) <= allowed)
    if not wrong.any():
        return ""
    row = int(np.argmax(wrong))
    return (
        f"ad {ads[row]} has {name} {actual[row]:.6g}, certified was"
        f" {certified[row]:.6g}, a difference of {allowed[row]:.2g} is allowed"
    )
