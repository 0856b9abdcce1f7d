"""The choice of pairs of columns that get statistics, on a sample of the training rows.

A pair is worth its place if its out-of-fold rate predicts the click better than either
of its columns alone, and better than the sum of their logits: then the two columns say
together what they do not say apart.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np
from pydantic import BaseModel, ConfigDict

from torchrec_adrec.arrays import Float64s, Int64s
from torchrec_adrec.config.data import StatisticsConfig
from torchrec_adrec.data.keys import salt, salted_hash
from torchrec_adrec.data.prepare.spill import THREADS
from torchrec_adrec.data.prepare.statistics import logit
from torchrec_adrec.data.prepare.training_rows import TrainingRows
from torchrec_adrec.data.prepare.value_keys import ValueKeys
from torchrec_adrec.schema import Schema, Side

SAMPLE_ROWS = 200_000  # gains to about 0.0001; 571 pairs take half a minute


class PairGain(BaseModel):
    """What a pair of columns is worth on the sampled training rows.

    Attributes:
        first: a raw column.
        second: another one of the same side.
        gain: the log loss of the best of both columns and their sum, minus the pair's.
    """

    model_config = ConfigDict(frozen=True)

    first: str
    second: str
    gain: float


@dataclass(frozen=True)
class Sample:
    """Some training rows.

    Attributes:
        codes: by raw column, (n,) the number of each row's key, from 0.
        folds: (n,).
        clicks: (n,) 0 or 1.
    """

    codes: dict[str, Int64s]
    folds: Int64s
    clicks: Float64s


def sample_rows(
    schema: Schema, keys: ValueKeys, rows: TrainingRows, share: float
) -> Sample:
    """Read a share of the training rows, drawn evenly over all files.

    Rows of other splits, and those whose click was not observed, are left out.

    Args:
        schema: names the columns and the click.
        keys: gives values their keys.
        rows: the chunks with their training rows and folds.
        share: of the training rows.
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
        drawn = np.flatnonzero(train & is_drawn & ~np.isnan(click))
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


def choose_pairs(
    sample: Sample, schema: Schema, config: StatisticsConfig
) -> list[PairGain]:
    """Return the best `config.pairs` pairs of both sides, the largest gain first.

    Args:
        sample: of the training rows.
        schema: says which columns are of one side.
        config: the number of pairs, folds, and their strength.
    """
    if not len(sample.clicks):
        return []
    smoothed = partial(_out_of_fold, sample, config.folds, config.pair_strength)
    singles = {name: smoothed(codes) for name, codes in sample.codes.items()}
    losses = {name: _log_loss(z, sample.clicks) for name, z in singles.items()}
    base = logit(np.array([sample.clicks.mean()]))

    def gain(pair: tuple[str, str]) -> PairGain:
        first, second = pair
        second_codes = sample.codes[second]
        joint = sample.codes[first] * (int(second_codes.max()) + 1) + second_codes
        pair_logits = smoothed(np.unique(joint, return_inverse=True)[1])
        added = singles[first] + singles[second] - base
        apart = min(losses[first], losses[second], _log_loss(added, sample.clicks))
        together = _log_loss(pair_logits, sample.clicks)
        return PairGain(first=first, second=second, gain=apart - together)

    with ThreadPoolExecutor(THREADS) as pool:
        gains = list(pool.map(gain, _same_side(schema)))
    helpful = [pair for pair in gains if pair.gain > 0]
    return sorted(helpful, key=lambda p: (-p.gain, p.first, p.second))[: config.pairs]


def _same_side(schema: Schema) -> Iterable[tuple[str, str]]:
    for side in Side:
        yield from combinations(schema.scalar_sources_of(side), 2)


def _out_of_fold(
    sample: Sample, folds: int, strength: float, codes: Int64s
) -> Float64s:
    """Return the logit of each row's code, (n,), without the row's own fold."""
    cells = codes * folds + sample.folds
    rows = np.bincount(codes)[codes] - np.bincount(cells)[cells]
    clicks = np.bincount(codes, sample.clicks)[codes]
    clicks = clicks - np.bincount(cells, sample.clicks)[cells]
    rate = sample.clicks.mean()
    return logit((clicks + strength * rate) / (rows + strength))


def _log_loss(logits: Float64s, clicks: Float64s) -> float:
    return float((np.logaddexp(0, logits) - clicks * logits).mean())
