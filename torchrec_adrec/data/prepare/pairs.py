"""The choice of pairs of columns that get statistics, on a sample of the training rows.

A pair is worth its place if its out-of-fold rate predicts the click better than either
of its columns alone, and better than the sum of their logits: then the two columns say
together what they do not say apart.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product

import numpy as np
from pydantic import BaseModel, ConfigDict

from torchrec_adrec.arrays import Bools, Float64s, Int64s
from torchrec_adrec.config.data import StatisticsConfig
from torchrec_adrec.data.keys import salt, salted_hash
from torchrec_adrec.data.prepare.spill import THREADS
from torchrec_adrec.data.prepare.statistics import logit
from torchrec_adrec.data.prepare.training_rows import TrainingRows
from torchrec_adrec.data.prepare.value_counts import NO_FOLD
from torchrec_adrec.data.prepare.value_keys import ValueKeys
from torchrec_adrec.schema import Schema, Side

SAMPLE_ROWS = 200_000  # gains to about 0.0001; 571 pairs take half a minute


class PairGain(BaseModel):
    """What a pair of columns is worth on the sampled training rows.

    Attributes:
        first: a raw column.
        second: another one of the same side, or of the user's if `first` is the ad's.
        gain: the log loss of the best of both columns and their sum, minus the pair's.
    """

    model_config = ConfigDict(frozen=True)

    first: str
    second: str
    gain: float


@dataclass(frozen=True)
class Sample:
    """Some training and validation rows.

    Attributes:
        codes: by raw column, (n,) the number of each row's key, from 0.
        folds: (n,) of training rows; of the others `NO_FOLD`.
        clicks: (n,) 0 or 1.
    """

    codes: dict[str, Int64s]
    folds: Int64s
    clicks: Float64s

    @property
    def train(self) -> Bools:
        """Which rows are trained on, (n,)."""
        return np.asarray(self.folds != NO_FOLD)

    def pair(self, first: str, second: str) -> Int64s:
        """Return the codes of a pair of columns, (n,)."""
        width = int(self.codes[second].max()) + 1
        joint = self.codes[first] * width + self.codes[second]
        return np.asarray(np.unique(joint, return_inverse=True)[1])

    def logits(self, codes: Int64s, strength: float, folds: int) -> Float64s:
        """Return the smoothed rate of each row's code as a logit, (n,).

        A training row sees the training rows without its own fold, any other row sees
        all of them.

        Args:
            codes: (n,).
            strength: number of rows by which a rate is drawn towards that of all.
            folds: how many there are.
        """
        train, size = self.train, int(codes.max(initial=0)) + 1
        counted, clicks = codes[train], self.clicks[train]
        cells = counted * folds + self.folds[train]
        rows = np.bincount(counted, minlength=size)[codes]
        rows[train] -= np.bincount(cells)[cells]
        positives = np.bincount(counted, clicks, minlength=size)[codes]
        positives[train] -= np.bincount(cells, clicks)[cells]
        return logit((positives + strength * clicks.mean()) / (rows + strength))


def sample_rows(
    schema: Schema, keys: ValueKeys, rows: TrainingRows, share: float
) -> Sample:
    """Read a share of the training and validation rows, drawn evenly over all files.

    Test rows, and rows whose click was not observed, are left out.

    Args:
        schema: names the columns and the click.
        keys: gives values their keys.
        rows: the chunks with their training rows and folds.
        share: of the rows.
    """
    names = [name for side in Side for name in schema.scalar_sources_of(side)]
    parts: dict[str, list[Int64s]] = {name: [] for name in names}
    row_folds, clicks = [], []
    for ref in rows.store.chunks:
        chunk, train, folds = rows.load(ref)
        click = chunk.labels[schema.labels[0].name]
        numbers = np.arange(ref.row, ref.row + chunk.num_rows, dtype=np.uint64)
        hashed = salted_hash(numbers, salt(f"sample {rows.folds.seed}"))
        is_drawn = hashed.astype(np.float64) < share * 2.0**64
        usable = train | rows.valid(chunk, ref)
        drawn = np.flatnonzero(usable & is_drawn & ~np.isnan(click))
        columns = keys.of(chunk.columns, [(name,) for name in names])
        for (name,), column in columns.items():
            parts[name].append(column.keys[column.codes[drawn]])
        row_folds.append(folds[drawn])
        clicks.append(click[drawn].astype(np.float64))
    codes = {
        name: np.unique(np.concatenate(values), return_inverse=True)[1]
        for name, values in parts.items()
    }
    return Sample(codes, np.concatenate(row_folds), np.concatenate(clicks))


def same_side(schema: Schema) -> Iterable[tuple[str, str]]:
    """Return every two columns of one side."""
    for side in Side:
        yield from combinations(schema.scalar_sources_of(side), 2)


def across(schema: Schema) -> Iterable[tuple[str, str]]:
    """Return every column of the ad with every column of the user."""
    users, ads = (schema.scalar_sources_of(side) for side in Side)
    return product(ads, users)


def choose_pairs(
    sample: Sample,
    pairs: Iterable[tuple[str, str]],
    count: int,
    config: StatisticsConfig,
) -> list[PairGain]:
    """Return the best pairs, the largest gain first; validation rows have no say.

    Args:
        sample: of the rows.
        pairs: to choose from.
        count: how many are taken at most.
        config: the folds and the strength of a pair.
    """
    train = sample.train
    clicks = sample.clicks[train]
    if not count or not len(clicks):
        return []
    smoothed = partial(sample.logits, strength=config.pair_strength, folds=config.folds)
    singles = {name: smoothed(codes)[train] for name, codes in sample.codes.items()}
    losses = {name: _log_loss(z, clicks) for name, z in singles.items()}
    base = logit(np.array([clicks.mean()]))

    def gain(pair: tuple[str, str]) -> PairGain:
        first, second = pair
        added = singles[first] + singles[second] - base
        apart = min(losses[first], losses[second], _log_loss(added, clicks))
        together = _log_loss(smoothed(sample.pair(first, second))[train], clicks)
        return PairGain(first=first, second=second, gain=apart - together)

    with ThreadPoolExecutor(THREADS) as pool:
        gains = list(pool.map(gain, pairs))
    helpful = [pair for pair in gains if pair.gain > 0]
    return sorted(helpful, key=lambda p: (-p.gain, p.first, p.second))[:count]


def _log_loss(logits: Float64s, clicks: Float64s) -> float:
    return float((np.logaddexp(0, logits) - clicks * logits).mean())
