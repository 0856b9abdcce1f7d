"""Settings that were changed and have no effect, because of what another one says.

They are not refused: who compares models changes `ranking.model` alone, and keeps the
sizes of the others in the file. But nobody should believe that such a setting counted.
"""

from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torchrec_adrec.config.run import Config

DEEP = ("dnn", "deepfm", "dcnv2", "dlrm", "finalmlp")


@dataclass(frozen=True)
class Rule:
    """Names the settings that count only with some values of another setting.

    Attributes:
        settings: dotted names.
        other: dotted name of the setting that decides.
        values: those of its values with which the settings count.
    """

    settings: tuple[str, ...]
    other: str
    values: tuple[str, ...]


RULES = (
    Rule(
        tuple(
            f"ranking.{name}"
            for name in (
                "layers",
                "model_dim",
                "feedforward_dim",
                "head_dim",
                "experts",
                "ad_tokens",
                "history",
            )
        ),
        "ranking.model",
        ("transformer",),
    ),
    Rule(("ranking.heads",), "ranking.model", ("transformer", "finalmlp")),
    Rule(("ranking.hidden",), "ranking.model", DEEP),
    Rule(
        ("ranking.cross_layers", "ranking.cross_rank"),
        "ranking.model",
        ("transformer", "dcnv2"),
    ),
    Rule(("ranking.dropout",), "ranking.model", ("transformer", *DEEP)),
    Rule(
        ("ranking.table_init", "ranking.embedding_dim"),
        "ranking.model",
        ("transformer", *DEEP),
    ),
    Rule(("ranking.table_init",), "ranking.tables", ("scratch",)),
    Rule(
        ("retrieval.history.layers", "retrieval.history.dropout"),
        "retrieval.history.encoder",
        ("attention", "gru"),
    ),
    Rule(("retrieval.history.heads",), "retrieval.history.encoder", ("attention",)),
    Rule(("retrieval.output_dim",), "retrieval.similarity", ("cosine", "dot")),
    Rule(("retrieval.log_q",), "retrieval.contrast", ("softmax",)),
    Rule(("data.hash_size",), "data.ids", ("hash",)),
    Rule(("data.min_count",), "data.ids", ("frequency",)),
    Rule(("index.memory_gib",), "index.kind", ("auto",)),
)


def without_effect(config: Config) -> list[str]:
    """Return a line for every setting that differs from its default to no effect.

    A saved configuration holds all settings, so it does not say which ones were given;
    those that are the default are nobody's wish.

    >>> from torchrec_adrec.config.run import load_config
    >>> without_effect(load_config(None, ["ranking.hidden=[64]"]))
    ['ranking.hidden = (64,) has no effect with ranking.model = transformer']
    """
    default = Config()
    return [
        f"{name} = {_value(config, name)} has no effect with {rule.other} ="
        f" {_value(config, rule.other)}"
        for rule in RULES
        if _value(config, rule.other) not in rule.values
        for name in rule.settings
        if _value(config, name) != _value(default, name)
    ]


def _value(config: Config, name: str) -> Any:
    return attrgetter(name)(config)
