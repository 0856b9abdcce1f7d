"""What the times of the rows allow: their order, and a split where many share one."""

import numpy as np

from torchrec_adrec.arrays import Int64s
from torchrec_adrec.config.data import SplitConfig
from torchrec_adrec.data.dataset import DataSet
from torchrec_adrec.data.prepare.spill import ChunkStore, time_of

SHARES = ("train", "valid", "test")  # the settings of `data.split`
SMALLEST = 0.001  # share that is worth proposing


def in_time_order(config: SplitConfig, data: DataSet, store: ChunkStore) -> bool:
    """Whether no row is earlier than one before it, and not all are of one time."""
    if data.time is None:
        return config.by == "time"  # which takes them to be
    times = time_of(store)
    return bool(times.is_sorted() and times[0] != times[-1])


def too_few_times(config: SplitConfig, times: Int64s) -> str:
    """Say why the shares cannot be cut off, and propose shares that can be."""
    distinct, counts = np.unique(times, return_counts=True)
    most = int(counts.max())
    text = (
        "data.split: these shares cannot be cut off, because rows of one time must stay"
        f" in one split (different times: {len(distinct)}; the most frequent one,"
        f" {distinct[counts.argmax()]}, has {most:,} of {len(times):,} rows); give a"
        " finer time"
    )
    if len(distinct) == 1:
        return f"{text}, or set data.split.by=random"
    shares = _possible_shares(config, counts)
    if not shares:
        return f"{text}, data.split.valid=0, or data.split.by=random"
    named = ", ".join(f"{n}: {s:g}" for n, s in zip(SHARES, shares, strict=True))
    return f"{text}, these shares: 'data.split={{{named}}}', or data.split.by=random"


def _possible_shares(config: SplitConfig, counts: Int64s) -> tuple[float, ...]:
    """Return the nearest shares that whole times make up, or none.

    Two times are enough for training and test only, so the valid share is then 0.

    Args:
        config: the shares that were asked for.
        counts: the number of rows of each time, in time order.
    """
    rows = int(counts.sum())
    ends = np.cumsum(counts)[:-1] / rows  # where a later split may begin
    has_valid = config.valid > 0 and len(ends) > 1
    later = ends[1:] if has_valid else ends
    test = later[np.abs(later - (1 - config.test)).argmin()]
    earlier = ends[ends < test] if has_valid else np.array([test])
    train = earlier[np.abs(earlier - config.train).argmin()]
    # Rounded down: the row at the cut is then one of the time that begins there.
    held_out = [int(share * 1e4) / 1e4 for share in (test - train, 1 - test)]
    if min(held_out[1], held_out[0] if has_valid else 1) < SMALLEST:
        return ()
    return (round(1 - sum(held_out), 4), *held_out)
