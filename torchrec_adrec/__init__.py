"""Ad recommendation on sharded TorchRec embeddings, end to end.

    from torchrec_adrec import Recommender, Schema, load_config

Each name is imported when it is first used: reading settings then never waits for
torch, which takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchrec_adrec.config.run import Config, load_config
    from torchrec_adrec.schema import Schema
    from torchrec_adrec.serve.recommender import Recommender

__version__ = "0.2.0"
__all__ = ["Config", "Recommender", "Schema", "load_config"]

_HOMES = {
    "Config": "torchrec_adrec.config.run",
    "Recommender": "torchrec_adrec.serve.recommender",
    "Schema": "torchrec_adrec.schema",
    "load_config": "torchrec_adrec.config.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
