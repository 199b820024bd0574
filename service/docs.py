"""The API described on one page, from its own schema, without a script or anything from another machine."""

from __future__ import annotations

import json
import re
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code, pre { font: 0.9em/1.5 ui-monospace, monospace }
section { border-top: 1px solid #8884; padding: 0.5rem 0 }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem }
td, th { text-align: left; vertical-align: top; padding: 0.2rem 0.8rem 0.2rem 0; border-top: 1px solid #8882 }
"""

Schema = dict[str, Any]


def render(schema: Schema) -> str:
    """An OpenAPI schema as HTML."""
    routes = "".join(
        _operation(schema, path, method, operation)
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    )
    title = escape(schema["info"]["title"])
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}: the API</title>"
        f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style>"
        f"<h1>{title}: the API</h1><p>{_prose(schema['info'].get('description', ''))}</p>"
        "<p>The same for programs: <a href=/openapi.json>/openapi.json</a>.</p>"
        f"{routes}</html>"
    )


def _operation(schema: Schema, path: str, method: str, operation: Schema) -> str:
    inputs = [_row(item["name"], item["in"], item["schema"], item) for item in operation.get("parameters", [])]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    for model in _models(schema, body):
        inputs += [_row(name, "body", field, field) for name, field in model.get("properties", {}).items()]
    head = "<tr><th>Name<th>In<th>Type<th>Default<th>Meaning"
    table = f"<table>{head}{''.join(inputs)}</table>" if inputs else ""
    answers = ", ".join(escape(status) for status in operation.get("responses", {}) if status != "default")
    described = _prose(operation.get("description", ""))
    return (
        f"<section><h2><code>{method.upper()} {escape(path)}</code></h2><p>{described}</p>"
        f"{table}<p>Answers: {answers}</p></section>"
    )


def _models(schema: Schema, part: Schema) -> list[Schema]:
    """The objects that a body may be."""
    parts = part.get("anyOf", [part])
    refs = [item["$ref"].rpartition("/")[2] for item in parts if "$ref" in item]
    return [schema["components"]["schemas"][name] for name in refs]


def _row(name: str, place: str, kind: Schema, described: Schema) -> str:
    default = json.dumps(kind["default"], ensure_ascii=False) if "default" in kind else ""
    cells = (f"<code>{escape(name)}</code>", place, escape(_type(kind)), escape(default))
    return f"<tr><td>{'<td>'.join(cells)}<td>{_prose(described.get('description', ''))}"


def _type(kind: Schema) -> str:
    if "anyOf" in kind:
        return " or ".join(_type(part) for part in kind["anyOf"] if part.get("type") != "null")
    if "$ref" in kind:
        return str(kind["$ref"].rpartition("/")[2])
    if "enum" in kind:
        return ", ".join(map(str, kind["enum"]))
    bounds = [f"{sign} {_number(kind[key])}" for key, sign in _BOUNDS.items() if key in kind]
    return " ".join([str(kind.get("type", "any")), *bounds])


def _number(bound: float) -> str:
    """The schema has every bound as a float; a whole one is written whole."""
    return str(int(bound)) if bound == int(bound) else str(bound)


def _prose(text: str) -> str:
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
