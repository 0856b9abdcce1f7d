"""The private attributes of TorchRec that this project reads, each behind one function.

TorchRec offers no public way to any of them, and a release may rename them without
notice. So no other file of the package touches one (`tests/test_private_names.py`), and
`tests/distributed/test_torchrec_internals.py` reads each of them from a real sharded
model: after an upgrade it says which function is to be mended.
"""

from collections.abc import Sequence
from typing import Any

import torchrec
from torch import nn
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.modules.embedding_configs import BaseEmbeddingConfig, PoolingType

CHECKED_WITH = "1.8.0"
"""The version of TorchRec in which every comment below was checked."""


def sharded_collections(model: nn.Module) -> list[Any]:
    """All sharded collections of a model, of bags or not. (All of this is public.)"""
    sharded = ShardedEmbeddingBagCollection, ShardedEmbeddingCollection
    return [m for m in model.modules() if isinstance(m, sharded)]


def pools(collection: Any) -> bool:
    """Whether a sharded collection gives one vector a bag, not one an id. (Public.)"""
    return isinstance(collection, ShardedEmbeddingBagCollection)


def table_configs(collection: Any) -> list[BaseEmbeddingConfig]:
    """The tables of a sharded collection, in the order in which they were configured.

    An unsharded collection has `embedding_bag_configs()` for it, a sharded one keeps
    the same list and shows it to nobody (1.8.0).
    """
    bags = "_embedding_bag_configs" if pools(collection) else "_embedding_configs"
    return list(_read(collection, bags))


def table_of_feature(collection: Any) -> dict[str, str]:
    """Feature -> table of a sharded collection; here every table serves one feature."""
    return {t.feature_names[0]: t.name for t in table_configs(collection)}


def sharding_types(collection: Any) -> list[str]:
    """The sharding types that occur in a sharded collection, each once (1.8.0)."""
    return list(_read(collection, "_sharding_types"))


def lookup_groups(collection: Any) -> list[Any]:
    """What looks up this rank's rows, one for each of `sharding_types` (1.8.0).

    Each has a public `grouped_configs`, the tables of every kernel.
    """
    return list(_read(collection, "_lookups"))


def kernels(lookup: Any) -> list[nn.Module]:
    """FBGEMM's kernels of one of `lookup_groups`, one for each of its
    `grouped_configs`: modules that take indices and offsets (1.8.0).
    """
    return [_read(kernel, "emb_module") for kernel in _read(lookup, "_emb_modules")]


def output_names(collection: Any) -> list[str]:
    """The keys of a sharded collection's output, in order (1.8.0)."""
    return list(_read(collection, "_embedding_names"))


def output_widths(collection: Any) -> list[int]:
    """The width of the vectors of each of `output_names` (1.8.0)."""
    return list(_read(collection, "_embedding_dims"))


def never_divide(collection: Any, features: Sequence[str]) -> None:
    """Make a sharded collection leave the vectors of some features as they are.

    Where one averaged table is cut by rows, a collection divides the vectors of all its
    features by the number of their ids, but for those in a list of its own: it fills
    that list with the features of summed tables that are cut by rows (1.8.0).
    """
    features_by_pooling = _read(collection, "_pooling_type_to_rs_features")
    features_by_pooling[PoolingType.SUM.value].extend(features)


def in_backward_optimizers(parameter: nn.Parameter) -> Sequence[Any]:
    """The optimizers that will step a table inside backward.

    `apply_optimizer_in_backward` leaves them on the parameter; a parameter that it was
    never called for has no such attribute, which here means none (1.8.0).
    """
    return getattr(parameter, "_in_backward_optimizers", ())


def estimators(enumerator: EmbeddingEnumerator) -> list[Any]:
    """What estimates the memory and the time of the planner's options (1.8.0)."""
    return list(_read(enumerator, "_estimators"))


def sharder_data(enumerator: EmbeddingEnumerator) -> Any:
    """The sharders' facts, which every estimator takes as its second argument. They are
    only there once `enumerate` has begun (1.8.0).
    """
    return _read(enumerator, "_sharder_data_map")


def _read(owner: Any, name: str) -> Any:
    # nn.Module's own error says neither which version is installed nor what to do.
    try:
        return getattr(owner, name)
    except AttributeError:
        raise AttributeError(
            f"{type(owner).__name__} of torchrec {torchrec.__version__} has no {name},"
            f" expected as in {CHECKED_WITH}: install that version, or mend"
            " torchrec_adrec/distributed/torchrec_internals.py"
        ) from None
