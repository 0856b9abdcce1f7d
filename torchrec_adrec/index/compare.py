"""Kinds of index side by side, on the same vectors and users."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import faiss
from pydantic import BaseModel, ConfigDict

from torchrec_adrec.arrays import Float32s
from torchrec_adrec.errors import ConfigError, GateError
from torchrec_adrec.index.exported import Exported
from torchrec_adrec.index.gate import tune_and_validate
from torchrec_adrec.index.kinds import derive_kind
from torchrec_adrec.index.kinds.kind import SearchSetting
from torchrec_adrec.index.sharded import ShardedIndex

# In the folder of a run.
COMPARISON, PICTURE = "index_kinds.json", "index_kinds.png"


class Compared(BaseModel):
    """What one kind of index needs to reach the recall target.

    Attributes:
        kind, build: what was built.
        search: the cheapest search setting that reaches the target.
        recall, low, high: of held-out users, with its 95% interval.
        milliseconds: of single queries on one thread, `p50`, `p95`, `p99`.
        bytes_per_ad: of the file.
        build_s: seconds of training and adding.
        refusal: why the kind does not reach the target; the rest is then empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    build: dict[str, int] = {}
    search: SearchSetting = {}
    recall: float | None = None
    low: float | None = None
    high: float | None = None
    milliseconds: dict[str, float] = {}
    bytes_per_ad: float | None = None
    build_s: float | None = None
    refusal: str = ""


def compare(
    names: Iterable[str], exported: Exported, queries: Float32s, k: int, target: float
) -> Iterator[Compared]:
    """Build, tune and measure one kind after the other.

    Args:
        names: of the kinds.
        exported: the vectors to index.
        queries: (B, D), held-out users.
        k: number of ads retrieved.
        target: recall to reach.
    """
    for name in names:
        try:
            yield _compared(name, exported, queries, k, target)
        except (ConfigError, GateError) as error:
            yield Compared(kind=name, refusal=str(error))


def _compared(
    name: str, exported: Exported, queries: Float32s, k: int, target: float
) -> Compared:
    kind = derive_kind(name, {}, len(exported), exported.vectors.shape[1])
    started = time.perf_counter()
    index = ShardedIndex.of_vectors(kind, exported.ids, exported.vectors)
    build_s = time.perf_counter() - started
    gate = tune_and_validate(index, exported, queries, k, target, shares=())
    return Compared(
        kind=name,
        build=dict(vars(kind)),
        search=index.setting,
        recall=gate.recall,
        low=gate.low,
        high=gate.high,
        milliseconds=gate.milliseconds,
        bytes_per_ad=file_bytes(index.shards[0].index) / index.count,
        build_s=build_s,
    )


def file_bytes(index: Any) -> int:
    """Count the bytes of an index's file without writing it."""
    count = 0

    def add(part: bytes) -> None:
        nonlocal count
        count += len(part)

    writer: Any = faiss.PyCallbackIOWriter  # type: ignore[attr-defined]
    faiss.write_index(index, writer(add, 2**20))
    return count
