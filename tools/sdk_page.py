"""The reference page of the Python client: each public method with its signature and what its docstring says first."""

from __future__ import annotations

import inspect
import re

from casemate.sdk import Client
from casemate.sdk.trust import Trust

_PARTS = (
    ("Client", Client, "`from casemate.sdk import Client`: the API of this host, or of one that `Transport` names."),
    ("Client.trust", Trust, "Scans, feeds, the trust policy, signatures, publishers, and why something may run."),
)  # fmt: skip


def sdk_page() -> str:
    lines = [
        "# Python client\n",
        "`casemate.sdk` is typed; its values are those of `casemate.spec.api`, which [the API](api.md) describes by",
        "the same names. A refusal is an `ApiError`: `problem_code` is one of the [error codes](errors.md),",
        "`http_status` the status. A daemon that does not answer is `ApiAway`.\n",
        "```python",
        *_example(),
        "```\n",
    ]
    for name, cls, told in _PARTS:
        lines += [f"## `{name}`\n", told + "\n", "| method | what |", "|---|---|"]
        for method, function in vars(cls).items():
            if not method.startswith("_") and inspect.isfunction(function):
                lines.append(f"| `{method}{_signature(function)}` | {_told(method, function)} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _example() -> list[str]:
    """The example of the module's docstring."""
    from casemate.sdk import trust  # noqa: PLC0415 - its docstring alone

    block = (trust.__doc__ or "").partition("::\n\n")[2].partition("\n\nEvery")[0]
    return inspect.cleandoc(block).split("\n")


def _signature(function: object) -> str:
    text = str(inspect.signature(function))  # type: ignore[arg-type]  # a function, as the caller has seen
    text = re.sub(r"\bself(, )?", "", text)
    text = re.sub(r"(: |-> )(?:'([^']*)'|\"([^\"]*)\")", r"\1\2\3", text)
    return re.sub(r"\b(schema|scans|rules|signatures|following)\.", "", text).replace("|", "\\|")


def _told(method: str, function: object) -> str:
    doc = inspect.getdoc(function)
    if doc is None:
        return method.replace("_", " ").capitalize() + "."
    text = re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", " ".join(doc.split("\n\n")[0].split()))
    return text.replace("``", "`").replace("|", "\\|")
