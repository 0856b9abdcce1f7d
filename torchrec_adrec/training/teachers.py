"""Gives the towers' loss the vectors that it draws theirs towards."""

import logging
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import nn

from torchrec_adrec.arrays import Int64s
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.evaluation.classics.kept_vectors import load_kept
from torchrec_adrec.losses.teacher import Teacher
from torchrec_adrec.models.tower import l2_normalize
from torchrec_adrec.schema import AD_ID, NO_USER, USER_KEY, Side
from torchrec_adrec.tasks.retrieval import RetrievalLoss

log = logging.getLogger(__name__)


def teach(
    loss: nn.Module, data: Path, device: torch.device
) -> dict[str, dict[str, int]]:
    """Load the teacher that the settings name; without one, and for a ranker, nothing.

    Its vectors are part of no checkpoint: every rank reads them again, and holds them
    whole.

    Args:
        loss: of the task.
        data: the prepared data set.
        device: of this rank.

    Returns:
        By side, how many of those with training rows have a vector (`known`, `of`).

    Raises:
        ConfigError: the vectors are not as wide as the towers'.
        ManifestError: they are missing, damaged, or were made from other rows.
    """
    if not isinstance(loss, RetrievalLoss) or loss.config.teacher is None:
        return {}
    towers, settings = loss.config, loss.config.teacher
    kept = load_kept(Path(settings.vectors), data)
    teachers, counts = {}, {}
    for side in map(Side, dict.fromkeys(settings.sides)):
        ids, vectors = kept[side]
        if vectors.shape[1] != towers.output_dim:
            raise ConfigError(
                f"{settings.vectors} holds vectors of {vectors.shape[1]} numbers, the"
                f" towers' have {towers.output_dim}; make them anew by `adrec lightgcn"
                f" --dim {towers.output_dim}`, or set retrieval.output_dim"
            )
        numbers = torch.from_numpy(vectors)
        # Vectors of length 1 can come near to no others.
        if towers.similarity == "cosine":
            numbers = l2_normalize(numbers)
        teachers[side] = Teacher(torch.from_numpy(ids).to(device), numbers.to(device))
        trained = _ids_in_training(side, data)
        known = int(np.isin(trained, ids).sum())
        counts[str(side)] = {"known": known, "of": len(trained)}
        log.info(
            f"teacher: {known:,} of the {len(trained):,} {side}s with training rows"
            f" have a vector in {settings.vectors}; the others are left out of its loss"
        )
    loss.teachers = teachers
    return counts


def _ids_in_training(side: Side, data: Path) -> Int64s:
    if side == Side.AD:
        catalog = load_catalog(data)
        return catalog.filter(pl.col("impressions") > 0)[AD_ID].to_numpy()
    rows = pl.scan_parquet(data / "train" / "*.parquet").select(USER_KEY)
    keys = rows.filter(pl.col(USER_KEY) != NO_USER).unique().collect()
    return keys[USER_KEY].to_numpy()
