"""The page of the API: the OpenAPI document as people read it."""

from __future__ import annotations

from typing import Any

from casemate.api import openapi
from casemate.api.routes import ROUTES, SOCKETS

Schema = dict[str, Any]

PROLOGUE = """\
# API

{description}

The machine's form of this page is [openapi.json](openapi.json) (OpenAPI 3.1), which casemated also answers at
`/v1/openapi.json`. All paths stand on the unix socket `/run/casemate/api.sock`, and over TLS where
[`api.tls_listen`](settings.md) says so:

```sh
curl --silent --unix-socket /run/casemate/api.sock http://casemate/v1/version
```

`{{ref}}` is an id, the unique beginning of one, or a name. What takes long answers `202` with an
[Operation](#operation), whose progress is followed at `/v1/operations/{{ref}}/events`. Every error is a
[Problem](#problem) (`application/problem+json`); its codes are on [a page of their own](errors.md).
"""


def api_page() -> str:
    """Markdown: a section for each group of paths, then one for each value."""
    document: dict[str, Any] = openapi.document(ROUTES, SOCKETS)
    lines = [PROLOGUE.format(description=document["info"]["description"])]
    groups: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            groups.setdefault(operation["tags"][0], []).extend(_operation(method, path, operation))
    for name in sorted(groups):
        lines += [f"## Paths: {name}\n", *groups[name]]
    lines.append("## Values\n")
    for name, schema in sorted(document["components"]["schemas"].items()):
        lines += _value(name, schema)
    return "\n".join(lines).rstrip() + "\n"


def _operation(method: str, path: str, operation: Schema) -> list[str]:
    socket = "101" in operation["responses"]
    lines = [f"### {'WebSocket' if socket else method.upper()} `{path}`\n", operation["summary"] + ".\n"]
    lines.append(operation["description"] + "\n")
    if parameters := [row for row in operation.get("parameters", []) if row["in"] != "path"]:
        lines += ["| parameter | value | default |", "|---|---|---|"]
        lines += [f"| `{row['name']}` | {_type(row['schema'])} | {_default(row['schema'])} |" for row in parameters]
        lines.append("")
    if body := operation.get("requestBody"):
        lines.append(f"Body: {_content(body['content'])}.\n")
    good = {status: answer for status, answer in operation["responses"].items() if status < "400"}
    refused = ", ".join(status for status in operation["responses"] if status >= "400" and status.isdigit())
    for status, answer in good.items():
        content = _content(answer.get("content", {}))
        lines.append(f"Answers {status}: {content or answer['description'].rstrip('.')}. Refusals: {refused}.\n")
    return lines


def _content(content: Schema) -> str:
    return " or ".join(
        (_type(form["schema"]) if "schema" in form else "a stream") + f" (`{media}`)" for media, form in content.items()
    )


def _value(name: str, schema: Schema) -> list[str]:
    lines = [f"### {name}\n"]
    if text := schema.get("description"):
        # Docstrings write code as reStructuredText does.
        lines.append(text.replace("``", "`") + "\n")
    if properties := schema.get("properties"):
        needed = set(schema.get("required", ()))
        lines += ["| field | value | default |", "|---|---|---|"]
        for field, row in properties.items():
            lines.append(f"| `{field}` | {_type(row)} | {'required' if field in needed else _default(row)} |")
        lines.append("")
    return lines


def _type(schema: Schema) -> str:
    """One cell: the type with its bounds."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    match schema.get("type"):
        case "array":
            most = f", at most {schema['maxItems']}" if "maxItems" in schema else ""
            return f"list of {_type(schema.get('items', {}))}{most}"
        case "object" if isinstance(schema.get("additionalProperties"), dict):
            return f"object of {_type(schema['additionalProperties'])}"
        case "string":
            return "text" + _length(schema)
        case "integer" | "number" as kind:
            return kind + _bounds(schema)
        case None:
            return "any value"
        case kind:
            return str(kind)


def _length(schema: Schema) -> str:
    most = f" of at most {schema['maxLength']} bytes" if "maxLength" in schema else ""
    # A table's cell ends at a bar, in code too.
    pattern = f" like `{schema['pattern']}`".replace("|", "\\|") if "pattern" in schema else ""
    return most + pattern


def _bounds(schema: Schema) -> str:
    least, most = schema.get("minimum"), schema.get("maximum")
    if least is not None and most is not None:
        return f", {least} to {most}"
    return f", at least {least}" if least is not None else ""


def _default(schema: Schema) -> str:
    match schema.get("default"):
        case None:
            return ""
        case str() as text:
            return f"`{text}`" if text else ""
        case bool() as flag:
            return f"`{str(flag).lower()}`"
        case [] | {}:
            return ""
        case value:
            return f"`{value}`"
