"""The kinds of index by name: entered in `KINDS` here and in `IndexConfig`."""

from collections.abc import Mapping
from inspect import signature

from torchrec_adrec.errors import ConfigError, ManifestError
from torchrec_adrec.index.kinds.exact import Exact
from torchrec_adrec.index.kinds.hnsw import Hnsw
from torchrec_adrec.index.kinds.ivf import IvfFlat, IvfSq8, IvfSqFp16
from torchrec_adrec.index.kinds.ivf_refined import (
    IvfPqRefined,
    IvfRabitqRefined,
    IvfSq8Refined,
    PcaIvfSq8Refined,
)
from torchrec_adrec.index.kinds.kind import IndexKind

_CLASSES: tuple[type[IndexKind], ...] = (
    Exact,
    IvfFlat,
    IvfSqFp16,
    IvfSq8,
    IvfSq8Refined,
    IvfPqRefined,
    IvfRabitqRefined,
    PcaIvfSq8Refined,
    Hnsw,
)
KINDS = {kind.name: kind for kind in _CLASSES}


def derive_kind(name: str, build: Mapping[str, int], count: int, dim: int) -> IndexKind:
    """Make a kind, with its own values for what `build` leaves open.

    Args:
        name: of `KINDS`.
        build: build parameters by name.
        count: number of ads.
        dim: D, the width of a vector.

    Raises:
        ConfigError: the kind has no such parameter, or it does not fit the ads.
    """
    fields = list(signature(KINDS[name]).parameters)
    unknown = [key for key in build if key not in fields]
    if unknown:
        raise ConfigError(
            f"index.build has {unknown[0]!r}, index.kind {name} takes"
            f" {', '.join(fields) or 'no build parameters'}"
        )
    return KINDS[name].derive(build, count, dim)


def open_kind(name: str, build: Mapping[str, int]) -> IndexKind:
    """Make the kind of a published index again.

    Args:
        name, build: as the manifest holds them.

    Raises:
        ManifestError: this version knows no such kind.
    """
    # Parameters that the kind does not have are a TypeError of its constructor.
    try:
        return KINDS[name](**build)
    except (KeyError, TypeError):
        raise ManifestError(
            f"the index is of kind {name!r} with {dict(build)}, expected one of"
            f" {list(KINDS)} with the build parameters of this version; run"
            " `adrec index` again"
        ) from None
