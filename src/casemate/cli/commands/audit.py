"""``audit ls`` and ``audit verify``: the hash-chained log, and a check of the chain on this side too."""

from __future__ import annotations

from casemate.cli.commands.listing import FORMAT
from casemate.cli.fail import usage
from casemate.cli.flags import Arguments, Command, value
from casemate.cli.show.table import show
from casemate.cli.wire.client import object_of, rows_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.context import Context

PAGE = 1000
_COLUMNS = (
    ("Number", "NUMBER"), ("At", "AT"), ("Who", "WHO"), ("Action", "ACTION"), ("Subject", "SUBJECT"),
    ("Answer", "ANSWER"), ("Facts", "FACTS"),
)  # fmt: skip


def _page(context: Context, after: int, limit: int) -> tuple[list[dict[str, object]], bool]:
    return _rows(context, [("after", str(after)), ("limit", str(limit))])


def _rows(context: Context, pairs: list[tuple[str, str]]) -> tuple[list[dict[str, object]], bool]:
    answer = object_of(context.client.get("/v1/audit", pairs))
    return rows_of(answer | {"rows": answer.get("rows", [])}, "rows"), bool(answer.get("intact"))


def ls(arguments: Arguments, context: Context) -> int:
    from casemate.cli.asked.quantities import whole

    if arguments.text("after") or arguments.text("limit"):
        if arguments.text("tail"):
            raise usage("--tail cannot be used with --after or --limit")
        after = whole("--after", arguments.text("after") or "0", 0, 1 << 53)
        limit = whole("--limit", arguments.text("limit") or "100", 1, PAGE)
        found, _ = _page(context, after, limit)
    else:
        tail = whole("--tail", arguments.text("tail") or "100", 1, PAGE)
        found, _ = _rows(context, [("tail", str(tail))])
    if context.json:
        context.answer(found)
        return 0
    rows: list[dict[str, object]] = []
    for row in found:
        facts = row.get("facts")
        told = " ".join(f"{key}={held}" for key, held in sorted(facts.items())) if isinstance(facts, dict) else ""
        rows.append({key.capitalize(): held for key, held in row.items()} | {"Facts": told})
    show(context, _COLUMNS, rows, arguments.text("format"))
    return 0


def verify(_: Arguments, context: Context) -> int:
    after, count, intact = 0, 0, True
    while True:
        rows, page_intact = _page(context, after, PAGE)
        intact = intact and page_intact
        count += len(rows)
        if len(rows) < PAGE:
            break
        number = rows[-1].get("number")
        if not isinstance(number, int) or number <= after:
            break
        after = number
    if context.json:
        context.answer({"rows": count, "intact": intact})
    else:
        context.write(f"{count} rows, the chain is {'intact' if intact else 'BROKEN: rows were changed or removed'}\n")
    return 0 if intact else 1


LS = Command(
    "[OPTIONS]", ls,
    (value("tail", "N", "The last N rows, the oldest of them first (100)", "n"),
     value("after", "NUMBER", "Rows after this number instead, the oldest first"),
     value("limit", "N", "At most so many of those (100)"), FORMAT),
)  # fmt: skip
VERIFY = Command("", verify, (), 0, 0, (), "The exit code is 1 where the chain is broken.")
