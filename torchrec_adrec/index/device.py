"""Whether an index is searched on GPUs, and how; `device_build.py` builds on them.

A card holds a copy that is searched; the index itself stays in its mapped files, from
which vectors are decoded. What a card does not do, the CPU does with the same index:
more than 2,048 ads or lists for a query, and every filter, because FAISS's GPU indexes
accept a selector and never look at it.
"""

import logging
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

import faiss
import numpy as np

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.config.index import IndexDevice
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.index.kinds.kind import (
    IndexKind,
    SearchSetting,
)
from torchrec_adrec.index.sharded import ShardedIndex

LIMIT = 2048  # of K and of nprobe on a card
TEMPORARY = 1 << 30  # bytes of each card that FAISS may use while it works
PADDING = 1.1  # lists on a card are padded to 32 vectors
PROBES, PROBED = 8, 64  # searches that card and CPU must agree on, and their nprobe
TOLERANCE = 1e-5  # of a score, or absolute if it is below 1
CUVS_KINDS = ("exact", "ivf_flat")  # whose GPU indexes have a cuVS form

# The type stubs are those of the CPU build, which has none of the GPU's names.
library: Any = faiss
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gpus:
    """The cards that FAISS sees.

    Attributes:
        count: number of cards.
        cuvs: whether this build of FAISS has NVIDIA's cuVS.
    """

    count: int
    cuvs: bool


def find_gpus(device: IndexDevice) -> Gpus | None:
    """Return the cards to work on; None: the CPU.

    Raises:
        ConfigError: `gpu` is asked for, and there is none or FAISS was built without.
    """
    if device == "cpu":
        return None
    options = library.get_compile_options()
    # Both must hold: the GPU build imports without a driver and then sees no card.
    count = library.get_num_gpus() if "GPU" in options.split() else 0
    if count:
        return Gpus(count, "CUVS" in options)
    build = "GPU" if "GPU" in options.split() else "CPU"
    finding = f"FAISS {library.__version__} is a {build} build and sees no GPU"
    if device == "gpu":
        raise ConfigError(
            f"index.device = gpu, but {finding}; install the extra `gpu` on a machine"
            " with an NVIDIA driver, or set index.device=auto"
        )
    log.warning("index.device = auto: the CPU is taken, %s", finding)
    return None


def cloner_options(kind: IndexKind, gpus: Gpus) -> Any:
    """Return how an index of a kind is spread over cards.

    Raises:
        ConfigError: FAISS has no GPU form of it.
    """
    if not kind.on_gpu:
        raise ConfigError(
            f"index.kind = {kind.name} cannot go to a GPU: FAISS clones only tables of"
            " whole vectors and lists without a second stage, and no graphs; take"
            " exact, ivf_flat, ivf_sqfp16 or ivf_sq8, or set index.device=cpu"
        )
    options = library.GpuMultipleClonerOptions()
    options.shard = True  # the default is a whole copy on every card
    options.shard_type = 1  # number modulo cards: every card has a share of each list
    options.common_ivf_quantizer = True  # lists are chosen once and not on every card
    options.indicesOptions = library.INDICES_64_BIT
    options.useFloat16 = options.useFloat16CoarseQuantizer = False
    # Half floats and bytes refuse to be cloned where cuVS is left on.
    options.use_cuvs = gpus.cuvs and kind.name in CUVS_KINDS
    return options


def bytes_on_each(kind: IndexKind, count: int, dim: int, cards: int) -> int:
    """Estimate what an index takes on each card, while it is searched."""
    vectors = -(-count // cards) * kind.bytes_per_ad(dim) * PADDING
    centres = 4 * dim * getattr(kind, "nlist", 0)
    return int(vectors + centres) + TEMPORARY


def check_memory(kind: IndexKind, count: int, dim: int, gpus: Gpus) -> None:
    """Refuse an index that does not fit, before a byte of it is copied.

    Raises:
        ConfigError: names what it needs and what is free.
    """
    need = bytes_on_each(kind, count, dim, gpus.count)
    free = [_free_bytes(card) for card in range(gpus.count)]
    if need > min(free):
        raise ConfigError(
            f"{count:,} ads as {kind.name} take {need / 2**30:.1f} GiB on each of"
            f" {gpus.count} GPUs, and {min(free) / 2**30:.1f} GiB are free on card"
            f" {free.index(min(free))}; take more cards, ivf_sqfp16 or ivf_sq8, end"
            " what else runs there, or set index.device=cpu"
        )


def _free_bytes(card: int) -> int:
    import torch  # which serving has loaded anyway; FAISS does not tell

    return int(torch.cuda.mem_get_info(card)[0])


def check_limits(k: int, setting: SearchSetting) -> None:
    """Refuse to put on cards what they could never be asked for.

    Raises:
        ConfigError: K or nprobe is too large.
    """
    nprobe = setting.get("nprobe", 0)
    for name, value in (("recommend.candidates", k), ("nprobe", nprobe)):
        if value > LIMIT:
            raise ConfigError(
                f"{name} = {value:g} is more than the {LIMIT:,} that FAISS does on a"
                " GPU; take fewer, fewer lists (index.build.nlist), or"
                " index.device=cpu"
            )


@dataclass
class GpuCopy:
    """An index on cards. One search at a time: a card's workspace is for one thread.

    Attributes:
        index: of FAISS, over one card or several.
        resources: one a card; FAISS holds bare pointers to them.
    """

    index: Any
    resources: list[Any]
    _lock: Any = field(default_factory=Lock)

    @property
    def _parts(self) -> list[Any]:
        whole: Any = faiss.downcast_index(self.index)
        # Not with `isinstance`, whose result the stubs know too little of.
        if not hasattr(whole, "at"):
            return [whole]
        return [faiss.downcast_index(whole.at(n)) for n in range(whole.count())]

    def can(self, k: int, setting: SearchSetting) -> bool:
        """Whether the cards do such a search."""
        return max(k, setting.get("nprobe", 0)) <= LIMIT

    def search(
        self, queries: Float32s, k: int, setting: SearchSetting
    ) -> tuple[Float32s, Int64s]:
        """Find scores and numbers, both (B, k), as an index of FAISS does."""
        with self._lock:
            # Set on the parts and not given with the call: shards behind a common
            # quantiser read their own, and refuse a call that names another one.
            for part in self._parts if "nprobe" in setting else ():
                part.nprobe = int(setting["nprobe"])
            scores, numbers = self.index.search(queries, k)
            return scores, numbers


def copy_to_gpus(index: ShardedIndex, gpus: Gpus) -> None:
    """Search an index on cards from now on.

    Raises:
        ConfigError: its kind cannot go there, it does not fit, FAISS fails, or the copy
            does not answer as the index does.
    """
    options = cloner_options(index.kind, gpus)
    (shard,) = index.shards  # files of lists and tables are joined to one
    check_memory(index.kind, index.count, shard.index.d, gpus)
    resources = workspaces(gpus.count)
    cards = list(range(gpus.count))
    try:
        clone = library.index_cpu_to_gpu_multiple_py(
            resources, shard.index, options, cards
        )
    except RuntimeError as error:  # FAISS knows no other
        text = str(error).strip().splitlines()[-1]
        raise ConfigError(f"the index cannot be copied to the GPU: {text}") from None
    # Without a card FAISS returns an empty index and says nothing.
    if clone.ntotal != index.count:
        raise ConfigError(
            f"the copy on {gpus.count} GPUs holds {clone.ntotal} of {index.count} ads;"
            " set index.device=cpu"
        )
    copy = GpuCopy(clone, resources)
    _check_answers(index, copy)
    index.shards = [replace(shard, copy=copy)]
    log.info("index: on %d GPUs, %s", gpus.count, index.kind.name)


def _check_answers(index: ShardedIndex, copy: GpuCopy) -> None:
    """Compare searches of card and CPU, for some ads' own vectors."""
    ids = index.ids()[:: max(index.count // PROBES, 1)]
    queries, k = index.stored(ids), min(100, index.count)
    grid = index.kind.search_grid()
    setting = {name: min(PROBED, values[-1]) for name, values in grid.items()}
    expected = index.nearest(queries, k, setting)[1]
    scores, numbers = copy.search(queries, k, setting)
    missing = numbers < 0
    scores = np.where(missing, -np.inf, scores)
    # By what the ads score that were named: right scores of other ads are wrong too.
    named = index.stored(index.shards[0].ids[np.where(missing, 0, numbers)].ravel())
    products = np.einsum("bd,bkd->bk", queries, named.reshape(*scores.shape, -1))
    products = np.where(missing, -np.inf, products)
    size = np.maximum(np.abs(expected), 1)
    same = np.ones_like(missing)
    for actual in (scores, products):
        same &= (actual == expected) | (np.abs(actual - expected) <= TOLERANCE * size)
    if not same.all():
        raise ConfigError(
            f"the copy on the GPU gives other ads or scores than the index for"
            f" {(~same).any(axis=1).sum()} of {len(ids)} ads' own vectors; set"
            " index.device=cpu"
        )


def place(index: ShardedIndex, device: IndexDevice, k: int, *, tuned: bool) -> None:
    """Put an index where the settings say.

    Args:
        index: opened from its files.
        device: as of `index.device`.
        k: number of ads that are retrieved.
        tuned: whether its setting is the one that serves, and not still to be chosen.

    Raises:
        ConfigError: `gpu` is asked for, and cannot be had.
    """
    gpus = find_gpus(device)
    if gpus is None:
        return
    try:
        check_limits(k, index.setting if tuned else {})
        copy_to_gpus(index, gpus)
    except ConfigError as error:
        if device == "gpu":
            raise
        log.warning("index.device = auto: the CPU is taken, %s", error)


def workspaces(count: int) -> list[Any]:
    """Make the workspace of each card."""
    resources = [library.StandardGpuResources() for _ in range(count)]
    for one in resources:
        one.setTempMemory(TEMPORARY)
    return resources
