"""Writes the generated pages of the reference, or tells which are stale.

    python3 tools/reference.py            writes what differs
    python3 tools/reference.py --check    changes nothing; status 1 and the names when something differs

A page is one row of :data:`PAGES`: its path below docs/ and the function that gives its text. Text depends on the code
alone (no date, no machine), so that the same code gives the same page.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

import casemate  # noqa: E402
from api_page import api_page  # noqa: E402
from casemate.api.routes import openapi_bytes  # noqa: E402
from casemate.cli.reference import cli_page  # noqa: E402
from casemate.spec.errors import CasemateError, error_classes  # noqa: E402
from casemate.spec.settings import SETTINGS, Setting  # noqa: E402
from sdk_page import sdk_page  # noqa: E402

GENERATED = "<!-- Written by tools/reference.py out of the code; do not edit. -->\n"


def import_everything() -> None:
    """Every module of the package, so that every error class exists."""
    for module in pkgutil.walk_packages(casemate.__path__, "casemate."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def errors_page() -> str:
    import_everything()
    classes = sorted(set(error_classes()), key=lambda cls: cls.code)
    lines = [
        GENERATED,
        "# Error codes\n",
        "Every error that Casemate raises on purpose has a code, which is part of the API and is never renamed.",
        "The API answers it as `application/problem+json` (RFC 9457) with `type` `urn:casemate:error:CODE`; the",
        "command line prints the detail and the remedy and ends with the exit code given here.\n",
    ]
    lines += [line for cls in classes for line in _error(cls)]
    return "\n".join(lines).rstrip() + "\n"


def _error(cls: type[CasemateError]) -> list[str]:
    retry = "a retry can help" if cls.retryable else "a retry does not help"
    facts = f"HTTP {cls.status} · exit code {cls.exit_code} · {retry}"
    doc = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
    return [
        f"## `{cls.code}`\n",
        f"**{cls.title}.** {facts}\n",
        *([doc.split("\n\n")[0] + "\n"] if doc else []),
        f"Remedy: {cls.remedy}\n",
    ]


def settings_page() -> str:
    lines = [
        GENERATED,
        "# Settings\n",
        "Both daemons read `/etc/casemate/casemate.toml` when they start. A setting `section.key` stands there as",
        "`key` under `[section]`, and in the environment as `CASEMATE_SECTION_KEY` (lists separated by commas). The",
        "environment goes before the file, the file before the default. An unknown name or a value out of range stops",
        "the daemon with `settings.invalid`.\n",
    ]
    section = ""
    for row in sorted(SETTINGS, key=lambda row: row.name.partition(".")[0]):
        if row.name.partition(".")[0] != section:
            section = row.name.partition(".")[0]
            lines += [f"\n## `[{section}]`\n", "| name | default | range | why |", "|---|---|---|---|"]
        lines.append(_setting(row))
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"


def _setting(row: Setting) -> str:
    match row.default:
        case bool() as flag:
            default, allowed = f"`{str(flag).lower()}`", "true, false"
        case int() as number:
            default = f"`{number}`"
            allowed = "" if row.minimum is None else f"{row.minimum} to {row.maximum}"
        case tuple() as texts:
            default, allowed = f"`{list(texts)}`", "list of texts"
        case text:
            default, allowed = f'`"{text}"`', "text"
    unit = f" {row.unit}" if row.unit else ""
    return f"| `{row.name}` | {default}{unit if allowed and unit else ''} | {allowed} | {row.why} |"


def openapi_text() -> str:
    return msgspec.json.format(openapi_bytes(), indent=1).decode() + "\n"


#: Path below docs/, and what gives the page's text. Add yours here.
PAGES: list[tuple[str, Callable[[], str]]] = [
    ("reference/cli.md", cli_page),
    ("reference/api.md", lambda: GENERATED + "\n" + api_page()),
    ("reference/openapi.json", openapi_text),
    ("reference/errors.md", errors_page),
    ("reference/settings.md", settings_page),
    ("reference/sdk.md", lambda: GENERATED + "\n" + sdk_page()),
]


def stale(docs: Path) -> list[tuple[Path, str]]:
    """The pages below *docs* that differ from what the code gives, each with its right text."""
    wanted = [(docs / name, function()) for name, function in PAGES]
    return [(path, text) for path, text in wanted if not path.exists() or path.read_text(encoding="utf-8") != text]


def main(arguments: list[str]) -> int:
    found = stale(ROOT / "docs")
    for path, text in found:
        if arguments != ["--check"]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        print(f"{'stale' if arguments == ['--check'] else 'wrote'}: {path.relative_to(ROOT)}")
    return 1 if found and arguments == ["--check"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
