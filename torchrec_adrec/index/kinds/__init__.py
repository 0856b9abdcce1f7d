"""The kinds of index by name: one file each, entered in `KINDS` and `IndexConfig`."""

from torchrec_adrec.config.run import IndexConfig
from torchrec_adrec.errors import ManifestError
from torchrec_adrec.index.kinds.exact import Exact
from torchrec_adrec.index.kinds.ivf_flat import IvfFlat
from torchrec_adrec.index.kinds.kind import IndexKind

_CLASSES: tuple[type[IndexKind], ...] = (Exact, IvfFlat)
KINDS = {kind.name: kind for kind in _CLASSES}


def derive_kind(config: IndexConfig, count: int) -> IndexKind:
    """Choose the kind and its sizes where the settings leave them open.

    Args:
        config: with `auto`, the kind that starts at the largest number of ads up to
            `count` is taken.
        count: number of ads.

    Raises:
        ConfigError: the settings do not fit so few ads.
    """
    if config.kind != "auto":
        return KINDS[config.kind].derive(config, count)
    # Of the kinds that suit so many ads, the one that starts last was made for the
    # largest catalogs.
    starts = {
        kind.auto_from: kind
        for kind in KINDS.values()
        if kind.auto_from is not None and kind.auto_from <= count
    }
    return starts[max(starts)].derive(config, count)


def open_kind(name: str, sizes: dict[str, int]) -> IndexKind:
    """Make the kind of a published index again.

    Args:
        name, sizes: as the manifest holds them.

    Raises:
        ManifestError: this version knows no such kind.
    """
    # Sizes that the kind does not have are a TypeError of its constructor.
    try:
        return KINDS[name](**sizes)
    except (KeyError, TypeError):
        raise ManifestError(
            f"the index is of kind {name!r} with sizes {sizes}, expected one of"
            f" {list(KINDS)} with the sizes of this version; run `adrec index` again"
        ) from None
