"""The protocol that every kind of index fulfils, one file of this folder each.

A kind is a frozen dataclass. Its fields are the sizes of the index, all of them
integers: the manifest keeps them, and the kind is made from them again when a published
index is opened.
"""

from typing import Any, ClassVar, Protocol, Self

from torchrec_adrec.arrays import Float32s
from torchrec_adrec.config.run import IndexConfig

# FAISS's name of a search parameter -> its value; empty where nothing can be tuned.
SearchSetting = dict[str, int]


class IndexKind(Protocol):
    """One way to build an index of inner products and to search it.

    The FAISS index numbers its vectors 0, 1, ... as they are added, and `ShardedIndex`
    keeps the ids of the ads beside them.

    Attributes:
        name: what `index.kind` and the manifest call it.
        auto_from: the number of ads from which `index.kind: auto` chooses it, or None
            for a kind that is built only on request.
    """

    name: ClassVar[str]
    auto_from: ClassVar[int | None]

    def __init__(self, **sizes: int) -> None: ...

    @classmethod
    def derive(cls, config: IndexConfig, count: int) -> Self:
        """Choose the sizes for `count` ads where the settings leave them open.

        Raises:
            ConfigError: the settings do not fit so few ads.
        """

    @property
    def training_rows(self) -> int:
        """The number of vectors that `create` learns from, 0 if it needs none."""

    def create(self, sample: Float32s, seed: int) -> Any:
        """Make the FAISS index: trained, by inner product, without vectors.

        Args:
            sample: (n, D), n at most `training_rows`; D is the width of the index.
            seed: of whatever is random in the training.
        """

    def search_settings(self) -> list[SearchSetting]:
        """List what the gate may choose from, from the fastest to the most thorough.

        The last one must find an ad for every place of the answer, because it is what
        a search falls back to that returned too few.
        """

    def search_parameters(self, setting: SearchSetting) -> Any:
        """Translate a setting to FAISS's `SearchParameters`, or None for none."""


def describe(values: dict[str, int]) -> str:
    """Write sizes or a search setting for people, as `nprobe 8`."""
    return ", ".join(f"{name} {value}" for name, value in values.items())
