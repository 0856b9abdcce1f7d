"""What to build: kind, number of lists, metric."""

from dataclasses import dataclass
from math import sqrt

from torchrec_adrec.config.run import IndexConfig
from torchrec_adrec.errors import ConfigError

# Below this, exact search is as fast and right by construction.
EXACT_TO = 100_000
TRAIN_PER_LIST = 64  # FAISS warns below 39 points a list and samples above 256


@dataclass(frozen=True)
class IndexSpec:
    """The index of `count` vectors.

    Attributes:
        kind: `exact` or `ivf_flat`, both by inner product: the towers' score is one.
        nlist: inverted lists, 1 when exact.
    """

    kind: str
    nlist: int
    dim: int
    count: int

    @classmethod
    def derive(cls, config: IndexConfig, dim: int, count: int) -> "IndexSpec":
        """Fill in what the config leaves open.

        Raises:
            ConfigError: more lists than vectors.
        """
        kind = config.kind
        if kind == "auto":
            kind = "exact" if count <= EXACT_TO else "ivf_flat"
        nlist = 1 if kind == "exact" else config.nlist or int(4 * sqrt(count))
        if nlist > count:
            raise ConfigError(f"index.nlist = {nlist} exceeds the {count} ads")
        return cls(kind, nlist, dim, count)
