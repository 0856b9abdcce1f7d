"""Writes the vectors of LightGCN, fitted on training clicks alone, for the towers."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from torchrec_adrec.evaluation.classics.factors import Vectors
from torchrec_adrec.evaluation.classics.interactions import Interactions
from torchrec_adrec.evaluation.classics.kept_vectors import FILES, SOURCE, rows_of
from torchrec_adrec.evaluation.classics.lightgcn import LightGCNSettings, fit_lightgcn
from torchrec_adrec.evaluation.classics.methods import CHOSEN_BY, METHODS
from torchrec_adrec.evaluation.classics.protocol import RankingProtocol, judge
from torchrec_adrec.export.parts import write_vectors
from torchrec_adrec.runs.stage_folder import publish
from torchrec_adrec.runtime.files import read_json, write_hashes
from torchrec_adrec.schema import Side

METHOD = "lightgcn"
TUNING_USERS = 10_000

log = logging.getLogger(__name__)


def keep_lightgcn(data: Path, folder: Path, dim: int, seed: int) -> dict[str, Any]:
    """Fit LightGCN on the training clicks, and write the vectors that they determine.

    Ads and users without a training click have none: what the fit holds of them is what
    it began with. The temperature is chosen on validation clicks, as in `adrec evaluate
    classics`, which fits on these too before it judges; here that would teach towers
    the very clicks that choose their best step.

    Args:
        data: a prepared data set.
        folder: of the vectors (`kept_vectors`); one of the same rows and settings stays
            as it is.
        dim: D, the width of a vector.
        seed: of the fit.

    Returns:
        What `source.json` holds.

    Raises:
        DataError: the data name no user, or a split has no click.
    """
    source = {"method": METHOD, "rows": rows_of(data), "dim": dim, "seed": seed}
    if (folder / SOURCE).exists():
        kept: dict[str, Any] = read_json(folder / SOURCE)
        if source.items() <= kept.items():
            log.info("%s holds the vectors of these rows already", folder)
            return kept
    clicks = Interactions.load(data)
    vectors, chosen = _fit(clicks, dim, seed)
    train = clicks.splits["train"]
    known = {
        Side.USER: np.flatnonzero(np.diff(train.indptr)),
        Side.AD: np.unique(train.indices),
    }
    partial = folder.with_name(f"{folder.name}.partial-{seed}")
    partial.mkdir(parents=True, exist_ok=True)
    of_side = {Side.USER: vectors.users, Side.AD: vectors.ads}
    names = {Side.USER: clicks.users, Side.AD: clicks.ids}
    for side, (name, key) in FILES.items():
        ids, rows = names[side][known[side]], of_side[side][known[side]]
        write_vectors(partial / name, ids, rows, key=key)
        source[f"{side}s"] = len(ids)
    source |= chosen
    (partial / SOURCE).write_text(json.dumps(source, indent=1) + "\n")
    write_hashes(partial, [partial / n for n in (SOURCE, *dict(FILES.values()))])
    publish(partial, folder)
    return source


def _fit(clicks: Interactions, dim: int, seed: int) -> tuple[Vectors, dict[str, Any]]:
    """Fit with each of the method's settings; return the best on validation clicks."""
    train = clicks.known("valid")  # all that is known before the validation begins
    tuning = RankingProtocol(split="valid", most_users=TUNING_USERS)
    fits = []
    for grid in METHODS[METHOD].grid:
        vectors = fit_lightgcn(train, LightGCNSettings(**{**grid, "dim": dim}), seed)
        value = judge(vectors, clicks, tuning).means[CHOSEN_BY]
        log.info("lightgcn: %s on valid %.4f with %s", CHOSEN_BY, value, dict(grid))
        fits.append((value, vectors, {"settings": dict(grid), CHOSEN_BY: value}))
    _, vectors, chosen = max(fits, key=lambda fit: fit[0])
    return vectors, chosen
