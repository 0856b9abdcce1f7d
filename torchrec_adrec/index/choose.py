"""Chooses a kind of index for `index.kind: auto`, from a sample of the vectors."""

from dataclasses import dataclass

import numpy as np

from torchrec_adrec.arrays import Float32s
from torchrec_adrec.index.exported import Exported
from torchrec_adrec.index.kinds import derive_kind
from torchrec_adrec.index.kinds.ivf import IvfFlat
from torchrec_adrec.index.kinds.ivf_refined import PcaIvfSq8Refined
from torchrec_adrec.index.kinds.kind import IndexKind
from torchrec_adrec.index.sharded import ShardedIndex
from torchrec_adrec.index.trial import Trial

EXACT_ROWS = 100_000  # up to so many ads a scan is as fast, and right by construction
EXACT_SHARE = 0.01  # of all ads that is retrieved, from which lists save nothing
READ_SHARE = 0.25  # of the lists, from which reading them costs as much as a scan
VARIANCE = 0.98  # that the projection must keep
SAMPLE, USERS = 50_000, 200
ID_BYTES = 8


@dataclass(frozen=True)
class Choice:
    """A kind of index and why it was taken."""

    kind: IndexKind
    reason: str


@dataclass(frozen=True)
class Purpose:
    """What an index is for.

    Attributes:
        count: number of ads.
        k: number of ads that are retrieved.
        target: recall to reach.
        memory: bytes that it may take; 0: any.
        on_gpu: whether it is to be searched on GPUs, where some kinds cannot go.
    """

    count: int
    k: int
    target: float
    memory: float = 0
    on_gpu: bool = False


def choose(sample: Float32s, queries: Float32s, purpose: Purpose) -> Choice:
    """Choose from rows, dimension, K, memory and recall target.

    Args:
        sample: (n, D) of the exported vectors, drawn by chance.
        queries: (B, D), held-out users.
        purpose: what the index is for.
    """
    count, dim = purpose.count, sample.shape[1]
    if count <= EXACT_ROWS:
        return _scan(purpose, dim, f"a scan of {count:,} ads is as fast as lists")
    if purpose.k > EXACT_SHARE * count:
        share = purpose.k / count
        return _scan(purpose, dim, f"{share:.1%} of all ads are retrieved")
    sample = sample[:SAMPLE]
    read = share_to_read(sample, queries[:USERS], purpose)
    if read > READ_SHARE:
        return _scan(
            purpose,
            dim,
            f"lists cannot serve: {read:.0%} of them must be read for recall"
            f" {purpose.target:g}, these vectors have no near neighbours",
        )
    pca = PcaIvfSq8Refined.defaults(dim)["pca"]
    kept = variance_kept(sample, pca)
    names = ["ivf_sqfp16", "ivf_sq8"]
    if kept >= VARIANCE and dim > pca:
        names = ["pca_ivf_sq8_refined", *names]
    kinds = [derive_kind(name, {}, count, dim) for name in names]
    if purpose.on_gpu:
        kinds = [kind for kind in kinds if kind.on_gpu]
    fitting = [kind for kind in kinds if fits(kind, purpose, dim)]
    kind = (fitting or kinds[-1:])[0]
    reason = (
        f"{count:,} ads of width {dim}: {read:.0%} of the lists suffice for recall"
        f" {purpose.target:g} at {purpose.k}, {pca} directions keep {kept:.1%} of the"
        " vectors"
    )
    if kind is not kinds[0]:
        reason += (
            f"; {kinds[0].name} does not fit into {purpose.memory / 2**30:.2g} GiB"
        )
    return Choice(kind, reason)


def _scan(purpose: Purpose, dim: int, reason: str) -> Choice:
    exact = derive_kind("exact", {}, purpose.count, dim)
    if fits(exact, purpose, dim):
        return Choice(exact, reason)
    kind = derive_kind("ivf_sqfp16", {}, purpose.count, dim)
    gib = purpose.memory / 2**30
    return Choice(kind, f"{reason}, but whole vectors do not fit into {gib:.2g} GiB")


def fits(kind: IndexKind, purpose: Purpose, dim: int) -> bool:
    """Return whether an index of a kind takes no more memory than it may."""
    size = purpose.count * (kind.bytes_per_ad(dim) + ID_BYTES)
    return not purpose.memory or size <= purpose.memory


def share_to_read(sample: Float32s, queries: Float32s, purpose: Purpose) -> float:
    """Measure which share of inverted lists of a sample a search must read.

    As large a share of the sample is retrieved as will be of all ads, so that the
    neighbours are as far away. On vectors of a normal distribution without structure it
    is nearly all of them.
    """
    rows = np.arange(len(sample))
    kind = IvfFlat.derive({}, len(sample), sample.shape[1])
    index = ShardedIndex.of_vectors(kind, rows, sample)
    k = max(round(purpose.k * len(sample) / purpose.count), 1)
    trial = Trial(index, Exported.by_id(rows, sample), queries, k)
    setting = trial.cheapest(kind.search_grid(), purpose.target)
    return 1.0 if setting is None else setting["nprobe"] / kind.nlist


def variance_kept(sample: Float32s, directions: int) -> float:
    """Return which share of the squared lengths some best directions keep.

    Around 0 and not around the mean, because inner products are around 0.
    """
    moments = sample.T @ sample
    kept = np.linalg.eigvalsh(moments)[::-1]
    return float(kept[:directions].sum() / kept.sum())
