"""``hold ls``: kept ports, their connections through the relay, and what is held."""

from __future__ import annotations

from casemate.cli.commands.listing import FORMAT
from casemate.cli.flags import Arguments, Command
from casemate.cli.show.human import size
from casemate.cli.show.table import show
from casemate.cli.wire.client import object_of, rows_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.context import Context

_COLUMNS = (
    ("Workload", "WORKLOAD"), ("Port", "PORT"), ("Replay", "REPLAY"), ("Open", "OPEN"), ("Held", "HELD"),
    ("Asked", "ASKED"), ("Left", "LEFT"),
)  # fmt: skip


def ls(arguments: Arguments, context: Context) -> int:
    answer = object_of(context.client.get("/v1/holds"))
    if context.json:
        context.answer(answer)
        return 0
    rows: list[dict[str, object]] = []
    for row in rows_of(answer | {"ports": answer.get("ports", [])}, "ports"):
        asked, left_s = row.get("kept_bytes", 0), row.get("left_s", 0.0)
        rows.append({
            "Workload": row.get("workload"), "Port": row.get("port"), "Replay": "yes" if row.get("replay") else "no",
            "Open": row.get("open", 0), "Held": row.get("held", 0),
            "Asked": size(asked) if isinstance(asked, int) and asked else "-", "Left": f"{left_s} s" if left_s else "-",
        })  # fmt: skip
    show(context, _COLUMNS, rows, arguments.text("format"))
    if rows and not answer.get("relaying"):
        context.note("casemate: the relay does not run: new connections go straight to their pods, and are not kept\n")
    return 0


LS = Command(
    "[OPTIONS]", ls, (FORMAT,), 0, 0, (),
    "ASKED is what connections asked and was not answered yet, kept to be asked again.", ("casemate hold ls",),
)  # fmt: skip
