"""Writes docs/configuration.md from the settings themselves, so that it stays true.

Pydantic describes the settings as a JSON schema; a node is a part of it.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from torchrec_adrec.config.run import Config
from torchrec_adrec.config.unused import RULES

Node = dict[str, Any]

HEAD = """\
# All settings

This page lists every setting of a run, with the values that it may have, its default
and its meaning. A command prints it from the code, and a test compares the two:

```bash
adrec settings
```

Settings stand in blocks. The full name of a setting is the heading of its block, a dot
and its own name. So `batch_size` in the block *train* is written
`train.batch_size=4096` on a command line, and in a file

```yaml
train:
  batch_size: 4096
```

An unknown name is an error. Where a default is null, the meaning says what happens
then. NAME in a heading stands for a name from your data. The kinds of columns are
described below *data.table.user*, and are the same below *data.table.ad*. At the end of
some meanings stands which other setting must have which value for this one to count.
"""
ONE = {"integer": "a whole number", "number": "a number", "string": "text"}
ONE |= {"boolean": "true or false", "null": "null"}
MANY = {"integer": "whole numbers", "number": "numbers", "string": "texts"}
BOUNDS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "up to"}
BOUNDS |= {"exclusiveMaximum": "and below", "multipleOf": "in steps of"}


def reference() -> str:
    """Return the page, as Markdown."""
    schema = Config.model_json_schema()
    return HEAD + "".join(Blocks(schema["$defs"]).tables("", schema, {}))


class Blocks:
    """Writes a table for each block of settings.

    Args:
        models: the schema of every block, by the name of its class.
    """

    def __init__(self, models: dict[str, Node]) -> None:
        self.models = models
        self.described: set[str] = set()  # blocks under names

    def tables(self, path: str, block: Node, defaults: Node) -> Iterator[str]:
        """Yield the table of a block, then those of the blocks inside it.

        Args:
            path: its dotted name, empty for the whole configuration.
            block: its schema.
            defaults: values that replace those of the schema here.
        """
        fields: dict[str, Node] = block["properties"]
        yield f"\n## {path or 'Top level'}\n"
        yield f"\n{_prose(block['description'])}\n"
        yield "\n| setting | values | default | meaning |\n|---|---|---|---|\n"
        for name, field in fields.items():
            if "const" not in field and "$ref" not in field:
                default = _default(name, field, block, defaults)
                meaning = _prose(field["description"]) + _condition(f"{path}.{name}")
                yield f"| `{name}` | {self._values(field)} | {default} | {meaning} |\n"
        for name, field in fields.items():
            yield from self._inner(f"{path}.{name}".strip("."), field)

    def _inner(self, path: str, field: Node) -> Iterator[str]:
        """Yield the tables of the blocks that a setting may hold."""
        for model in _models(field):
            defaults = field.get("default") or {}
            yield from self.tables(path, self.models[model], defaults)
        for model in _models(_under_names(field)):
            # The columns of users and of ads are the same blocks: described once.
            if model not in self.described:
                self.described.add(model)
                block = self.models[model]
                kind = block["properties"].get("kind", {}).get("const")
                suffix = f" of kind {kind}" if kind else ""
                yield from self.tables(f"{path}.NAME{suffix}", block, {})

    def _values(self, node: Node) -> str:
        """Say what a setting may be."""
        if "anyOf" in node:
            return ", or ".join(self._values(part) for part in node["anyOf"])
        if "enum" in node:
            return ", ".join(f"`{value}`" for value in node["enum"])
        if _models(node):
            return "a block"
        if node["type"] == "array":
            items = node["items"] if "items" in node else node["prefixItems"][0]
            is_choice, least = "enum" in items, node.get("minItems")
            each = self._values(items) if is_choice else MANY[items["type"]]
            is_fixed = least == node.get("maxItems")
            count = f"{least} of them" if is_fixed else "at least one"
            end = f", {count}" if least else ""
            return f"a list of {each}{_bounds(items)}{end}"
        if node["type"] == "object":
            return f"names, each with {self._values(_under_names(node))}"
        return ONE[node["type"]] + _bounds(node)


def _under_names(field: Node) -> Node:
    """Return the schema of the values of a setting that maps names to values."""
    patterns = field.get("patternProperties", {"": field.get("additionalProperties")})
    (value,) = patterns.values()
    return dict(value or {})


def _models(node: Node) -> list[str]:
    """Return the classes of the blocks that a node may be."""
    parts = [node, *node.get("anyOf", ()), *node.get("oneOf", ())]
    return [part["$ref"].rpartition("/")[2] for part in parts if "$ref" in part]


def _default(name: str, field: Node, block: Node, defaults: Node) -> str:
    if name in block.get("required", ()):
        return "must be given"
    value = defaults.get(name, field.get("default", {}))
    # An empty text or a space would not be seen without quotes.
    is_word = isinstance(value, str) and value.strip()
    return f"`{value if is_word else json.dumps(_number(value))}`"


def _bounds(node: Node) -> str:
    parts = [
        f" {word} {_number(node[key]):,}" for key, word in BOUNDS.items() if key in node
    ]
    return "".join(parts)


def _number(value: Any) -> Any:
    """Return 1 for 1.0, and everything else as it is."""
    is_whole = isinstance(value, float) and value.is_integer()
    return int(value) if is_whole else value


def _condition(setting: str) -> str:
    """Say with which values of other settings a setting counts at all."""
    rules = [rule for rule in RULES if setting in rule.settings]
    parts = [f"`{rule.other}` {', '.join(rule.values)}" for rule in rules]
    return f" Counts only with {' and '.join(parts)}." if parts else ""


def _prose(docstring: str) -> str:
    """Return a docstring as one line for a cell, its pages as links."""
    text = " ".join(docstring.split()).replace("|", "\\|")
    return re.sub(r"docs/(\w+\.md)", r"[\1](\1)", text)
