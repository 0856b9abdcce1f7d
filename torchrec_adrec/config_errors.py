"""Faults of a configuration, in words."""

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line for each fault; an unknown key comes with the nearest known one."""
    lines = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            lines.append(f"unknown key {key!r}{_nearest(fault['loc'], model)}")
        else:
            found = "" if fault["type"] == "missing" else f", found {fault['input']!r}"
            lines.append(f"{key or 'config'}: {fault['msg']}{found}")
    return lines


def _nearest(loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    fields = _fields_under([str(part) for part in loc[:-1]], model)
    close = difflib.get_close_matches(str(loc[-1]), fields, n=1, cutoff=0.5)
    prefix = "".join(f"{part}." for part in loc[:-1])
    if close:
        return f", did you mean {prefix + close[0]!r}?"
    return f", expected one of {', '.join(sorted(fields))}"


def _fields_under(parts: list[str], model: type[BaseModel]) -> list[str]:
    models = [model]
    for part in parts:
        under = [m.model_fields[part].annotation for m in models if _has(m, part)]
        # A key that a user made up (`user.AGE`) or the kind of a feature is no field.
        models = [inner for one in under for inner in _models_in(one)] or models
    return list(dict.fromkeys(name for model in models for name in model.model_fields))


def _has(model: type[BaseModel], field: str) -> bool:
    return field in model.model_fields


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
