"""The faults of a configuration, as lines that a user can act on."""

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

MIXED_TYPE = "model_attributes_type"  # neither text nor keys, where a kind may stand

# Keys of older configurations, and their names of today. They are refused all the same:
# a key that still worked under two names could be set twice.
RENAMED = {
    "towers": "retrieval",
    "ranker": "ranking",
    "start": "init_from",
    "high": "max_value",
    "shares": "shares_ids_with",
    "nlist": "build",
}


def explain(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Describe every fault in one line.

    An unknown key comes with its new name if it is an old one, else with the nearest
    known key.
    """
    lines = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            lines.append(f"unknown key {key!r}{_known_key(fault['loc'], model)}")
        else:
            is_missing = fault["type"] == "missing"
            value = "" if is_missing else f", found {fault['input']!r}"
            lines.append(f"{key or 'config'}: {_reason(fault, model)}{value}")
    return lines


def _reason(fault: ErrorDetails, model: type[BaseModel]) -> str:
    """The reason of a fault, without pydantic's names of classes and discriminators."""
    parts = [str(part) for part in fault["loc"]]
    if fault["type"].startswith("union_tag") or fault["type"] == MIXED_TYPE:
        models = _models_under(parts, model)
        kinds: list[Any] = [m.model_fields["kind"].annotation for m in models]
        names = dict.fromkeys(name for kind in kinds for name in get_args(kind))
        return f"expected a kind: {', '.join(names)}"
    if fault["type"] == "dict_type":
        return "expected names with settings, as {name: ...}"
    if fault["type"] != "model_type":
        return fault["msg"]
    fields, value = _fields_under(parts, model), fault["input"]
    is_column = isinstance(value, str) and "column" in fields
    example = f", as {{column: {value}}}" if is_column else ""
    return f"expected a block of keys ({', '.join(fields)}){example}"


def _known_key(loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """The key that was most likely meant, else all keys of the block."""
    fields, key = _fields_under([str(part) for part in loc[:-1]], model), str(loc[-1])
    prefix = "".join(f"{part}." for part in loc[:-1])
    # `start` may be a slip for another key in a block that never had it.
    if RENAMED.get(key) in fields:
        return f", which is {prefix + RENAMED[key]!r} now"
    close = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
    if close:
        return f", did you mean {prefix + close[0]!r}?"
    return f", expected one of {', '.join(sorted(fields))}"


def _fields_under(parts: list[str], model: type[BaseModel]) -> list[str]:
    models = _models_under(parts, model)
    return list(dict.fromkeys(name for model in models for name in model.model_fields))


def _models_under(parts: list[str], model: type[BaseModel]) -> list[type[BaseModel]]:
    """The settings classes of the block that a path of keys leads to."""
    models = [model]
    for part in parts:
        fields = [m.model_fields[part] for m in models if part in m.model_fields]
        inner = [m for field in fields for m in _models_in(field.annotation)]
        # A name that a user made up (`user.AGE`) or a kind leads to no other block.
        models = inner or models
    return models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes of a type, those inside unions and dicts included."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
