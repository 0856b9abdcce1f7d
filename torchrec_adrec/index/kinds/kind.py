"""The protocol that every kind of index fulfils.

A kind is a frozen dataclass. Its fields are the build parameters, all of them integers:
the manifest keeps them, and the kind is made from them again when a published index is
opened. How thoroughly it is searched is no field: the gate chooses that by measuring.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, Self

from torchrec_adrec.arrays import Float32s

# FAISS's name of a search parameter -> its value; empty where nothing can be tuned.
SearchSetting = dict[str, int | float]
# The same name -> the values to choose from, from the fastest to the most thorough.
SearchGrid = dict[str, tuple[int | float, ...]]
# Trains an index of FAISS that has no vectors yet on a sample, (n, D).
Trainer = Callable[[Any, Float32s], None]


def train_on_cpu(index: Any, sample: Float32s) -> None:
    """Train an index as FAISS does by itself."""
    index.train(sample)


class IndexKind(Protocol):
    """One way to build an index of inner products and to search it.

    The FAISS index numbers its vectors 0, 1, ... as they are added, and `ShardedIndex`
    keeps the ids of the ads beside them: so selecting ads by bitmap, filling up short
    answers and reading ids are the same for all kinds.

    Attributes:
        name: what `index.kind` and the manifest call it.
        exhaustive: whether its most thorough search compares every vector, so that it
            finds what brute force does up to the rounding of its codes.
        code_error: the largest distance of a stored vector from the exported one that
            the code explains, as a share of the vector's length. Scores come from the
            stored vectors, so it bounds their error too.
        on_gpu: whether FAISS can copy it to GPUs.
    """

    name: ClassVar[str]
    exhaustive: ClassVar[bool]
    code_error: ClassVar[float]
    on_gpu: ClassVar[bool]

    def __init__(self, **build: int) -> None: ...

    @classmethod
    def derive(cls, build: Mapping[str, int], count: int, dim: int) -> Self:
        """Choose the build parameters that `build` leaves open.

        Args:
            build: names and values; those that the kind does not have are a TypeError.
            count: number of ads.
            dim: D, the width of a vector.

        Raises:
            ConfigError: the parameters do not fit so few ads or such vectors.
        """

    @property
    def training_rows(self) -> int:
        """The number of vectors that `create` learns from, 0 if it needs none."""

    def create(
        self, sample: Float32s, seed: int, trainer: Trainer = train_on_cpu
    ) -> Any:
        """Make the FAISS index: trained, by inner product, without vectors.

        Args:
            sample: (n, D), n at most `training_rows`; D is the width of the index.
            seed: of whatever is random in the training.
            trainer: trains the index where its lists are to be trained.
        """

    def search_grid(self) -> SearchGrid:
        """List what the gate may choose from.

        More of the first parameter must never cost recall, because the gate bisects it.
        """

    def search_parameters(self, setting: SearchSetting, selector: Any = None) -> Any:
        """Translate a setting to FAISS's `SearchParameters`, or None for none.

        Args:
            setting: a value of each parameter of the grid.
            selector: a `faiss.IDSelector` of the numbers that may be returned.
        """

    def store(self, index: Any) -> Any:
        """Return the part of the FAISS index that decodes the stored vectors.

        Its `reconstruct_batch` must give those that the scores come from.
        """

    def bytes_per_ad(self, dim: int) -> float:
        """Return what an ad takes in memory, without its id."""


def most_thorough(kind: IndexKind) -> SearchSetting:
    """Return the setting with the last value of every parameter."""
    return {name: values[-1] for name, values in kind.search_grid().items()}


def fastest(kind: IndexKind) -> SearchSetting:
    """Return the setting with the first value of every parameter."""
    return {name: values[0] for name, values in kind.search_grid().items()}


def describe(values: Mapping[str, int | float]) -> str:
    """Write build parameters or a search setting for people, as `nprobe 8`."""
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


def steps(least: int, most: int) -> tuple[int, ...]:
    """Return whole numbers from `least` to `most`, each about a fifth above the last.

    >>> steps(1, 10)
    (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    >>> steps(100, 200)
    (100, 119, 141, 168, 200)
    """
    numbers = [least]
    while numbers[-1] < most:
        numbers.append(min(max(numbers[-1] + 1, int(numbers[-1] * 2**0.25)), most))
    return tuple(numbers)
