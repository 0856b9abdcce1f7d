"""The page of GET /docs: plain HTML without a script, made from OpenAPI."""

import json
from collections.abc import Iterator
from html import escape
from typing import Any

# Nothing may be loaded, from this host or another one.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = "body{font:15px sans-serif;max-width:60em;margin:2em auto}pre{background:#eee}"


def docs_page(openapi: dict[str, Any]) -> str:
    """Describe every path, with the columns of a user and an example.

    Args:
        openapi: as the application generates it.
    """
    schemas = openapi["components"]["schemas"]
    body = [f"<h1>{escape(openapi['info']['title'])}</h1>"]
    body += ["<p>The whole of it: <a href=openapi.json>openapi.json</a></p>"]
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            body.append(f"<h2>{method.upper()} {escape(path)}</h2>")
            body.append(f"<p>{escape(operation.get('description', ''))}</p>")
            body += _request(operation, schemas)
            body += _answers(operation)
    body.append("<h2>Columns of a user</h2><table>")
    for name, column in schemas["User"]["properties"].items():
        words = escape(column.get("description", ""))
        body.append(f"<tr><td>{escape(name)}<td>{words}</tr>")
    head = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    return f"<!doctype html><meta charset=utf-8>{head}<style>{STYLE}</style>" + (
        "\n".join([*body, "</table>"])
    )


def _request(operation: dict[str, Any], schemas: dict[str, Any]) -> Iterator[str]:
    for content in operation.get("requestBody", {}).get("content", {}).values():
        name = content["schema"]["$ref"].rpartition("/")[2]
        for example in schemas[name].get("examples", []):
            yield f"<pre>{escape(json.dumps(example))}</pre>"


def _answers(operation: dict[str, Any]) -> Iterator[str]:
    for status, answer in operation["responses"].items():
        yield f"<p>{status}: {escape(answer['description'])}</p>"
