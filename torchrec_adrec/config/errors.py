"""Faults of a configuration, in words."""

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

MIXED_TYPE = "model_attributes_type"  # neither text nor keys, where a kind may stand


def explain(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line for each fault; an unknown key comes with the nearest known one."""
    lines = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            lines.append(f"unknown key {key!r}{_nearest(fault['loc'], model)}")
        else:
            found = "" if fault["type"] == "missing" else f", found {fault['input']!r}"
            lines.append(f"{key or 'config'}: {_in_words(fault, model)}{found}")
    return lines


def _in_words(fault: ErrorDetails, model: type[BaseModel]) -> str:
    """The fault, without pydantic's names of classes and discriminators."""
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
    fields, given = _fields_under(parts, model), fault["input"]
    is_column = isinstance(given, str) and "column" in fields
    example = f", as {{column: {given}}}" if is_column else ""
    return f"expected a block of keys ({', '.join(fields)}){example}"


def _nearest(loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    fields = _fields_under([str(part) for part in loc[:-1]], model)
    close = difflib.get_close_matches(str(loc[-1]), fields, n=1, cutoff=0.5)
    prefix = "".join(f"{part}." for part in loc[:-1])
    if close:
        return f", did you mean {prefix + close[0]!r}?"
    return f", expected one of {', '.join(sorted(fields))}"


def _fields_under(parts: list[str], model: type[BaseModel]) -> list[str]:
    models = _models_under(parts, model)
    return list(dict.fromkeys(name for model in models for name in model.model_fields))


def _models_under(parts: list[str], model: type[BaseModel]) -> list[type[BaseModel]]:
    models = [model]
    for part in parts:
        under = [m.model_fields[part].annotation for m in models if _has(m, part)]
        # A key that a user made up (`user.AGE`) or the kind of a feature is no field.
        models = [inner for one in under for inner in _models_in(one)] or models
    return models


def _has(model: type[BaseModel], field: str) -> bool:
    return field in model.model_fields


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
