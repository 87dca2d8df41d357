"""``project create ls label rm``."""

from __future__ import annotations

from casemate.cli.commands.listing import FORMAT
from casemate.cli.commands.several import each
from casemate.cli.flags import Arguments, Command, switch, values
from casemate.cli.show.table import show
from casemate.cli.wire.client import object_of, rows_of, text_of
from casemate.cli.wire.http import segment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.context import Context

_COLUMNS = (("Name", "PROJECT"), ("Containers", "CONTAINERS"), ("Pods", "PODS"), ("Volumes", "VOLUMES"),
            ("Documents", "POLICY DOCUMENTS"), ("Labels", "LABELS"), ("CreatedAt", "CREATED"))  # fmt: skip


def create(arguments: Arguments, context: Context) -> int:
    request: dict[str, object] = {"name": arguments.words[0]}
    if arguments.texts("label"):
        from casemate.cli.asked.environment import labels

        request["labels"] = labels(arguments.texts("label"), [])
    answer = context.client.post("/v1/projects", request)
    if context.json:
        context.answer(answer)
    else:
        context.write(f"{text_of(answer, 'name')}\n")
    return 0


def ls(arguments: Arguments, context: Context) -> int:
    found = rows_of(object_of(context.client.get("/v1/projects")), "projects")
    if context.json:
        context.answer(found)
        return 0
    rows: list[dict[str, object]] = []
    for row in found:
        held = row.get("labels")
        pairs = ",".join(f"{key}={text}" for key, text in sorted(held.items())) if isinstance(held, dict) else ""
        rows.append({"Name": row.get("name"), "Containers": row.get("containers", 0), "Pods": row.get("pods", 0),
                     "Volumes": row.get("volumes", 0), "Documents": row.get("documents", 0), "Labels": pairs,
                     "CreatedAt": row.get("created_at"), "CreatedBy": row.get("created_by", "")})  # fmt: skip
    show(context, _COLUMNS, rows, arguments.text("format"), "Name" if arguments.on("quiet") else "")
    return 0


def label(arguments: Arguments, context: Context) -> int:
    """``KEY=VALUE`` sets, ``KEY-`` takes away."""
    from casemate.cli.asked.environment import labels

    name, *given = arguments.words
    gone = [text[:-1] for text in given if text.endswith("-") and "=" not in text]
    put = labels([text for text in given if not (text.endswith("-") and "=" not in text)], [])
    answer = context.client.post(f"/v1/projects/{segment(name)}/labels", {"put": put, "remove": gone})
    if context.json:
        context.answer(answer)
    else:
        held = object_of(object_of(answer).get("labels", {}))
        context.write(",".join(f"{key}={text}" for key, text in sorted(held.items())) + "\n")
    return 0


def remove(arguments: Arguments, context: Context) -> int:
    return each(
        context, arguments.words, lambda name: context.client.delete(f"/v1/projects/{segment(name)}"), "removed"
    )


CREATE = Command(
    "[OPTIONS] NAME", create, (values("label", "KEY[=VALUE]", "Set a label, for selectors of projects", "l"),), 1, 1,
    (), "", ("casemate project create shop -l tier=prod", "casemate run --project shop -d --name web IMAGE"),
)  # fmt: skip
LS = Command("[OPTIONS]", ls, (FORMAT, switch("quiet", "Only names", "q")))
LABEL = Command(
    "NAME KEY=VALUE|KEY-...", label, (), 2, None, (), "Every workload of the project is under other rules at once.",
    ("casemate project label shop tier=test owner-",),
)  # fmt: skip
RM = Command("NAME [NAME...]", remove, (), 1, None, (), "Only what is empty goes.", ("casemate project rm shop",))
