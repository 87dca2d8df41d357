"""``volume create ls rm prune``."""

from __future__ import annotations

from casemate.cli.commands.images import show_removed
from casemate.cli.commands.listing import FILTER, FORMAT, filters
from casemate.cli.commands.several import each
from casemate.cli.fail import bad_value
from casemate.cli.flags import Arguments, Command, switch, value, values
from casemate.cli.show.rows import VOLUME_COLUMNS, volume
from casemate.cli.show.table import show
from casemate.cli.wire.client import object_of, rows_of, text_of
from casemate.cli.wire.http import segment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.context import Context


def create(arguments: Arguments, context: Context) -> int:
    driver = arguments.text("driver")
    if driver not in (None, "local"):
        raise bad_value("--driver", driver or "", "local; there is no other driver")
    request: dict[str, object] = {}
    if arguments.words:
        request["name"] = arguments.words[0]
    if context.project != "default":
        request["project"] = context.project
    if arguments.texts("label"):
        from casemate.cli.asked.environment import labels

        request["labels"] = labels(arguments.texts("label"), [])
    answer = context.client.post("/v1/volumes", request)
    if context.json:
        context.answer(answer)
    else:
        context.write(f"{text_of(answer, 'name')}\n")
    return 0


def ls(arguments: Arguments, context: Context) -> int:
    answer = object_of(context.client.get("/v1/volumes", filters(arguments)))
    found = rows_of(answer | {"volumes": answer.get("volumes", [])}, "volumes")
    if context.json:
        context.answer(found)
        return 0
    rows = [volume(row) for row in found]
    show(context, VOLUME_COLUMNS, rows, arguments.text("format"), "Name" if arguments.on("quiet") else "")
    return 0


def remove(arguments: Arguments, context: Context) -> int:
    pairs = [("force", "true")] if arguments.on("force") else []
    return each(
        context, arguments.words, lambda name: context.client.delete(f"/v1/volumes/{segment(name)}", pairs), "removed"
    )


def prune(arguments: Arguments, context: Context) -> int:
    pairs = [("all", "true")] if arguments.on("all") else []
    return show_removed(context, context.client.post("/v1/volumes/prune", None, pairs), "Volumes")


CREATE = Command(
    "[OPTIONS] [NAME]",
    create,
    (values("label", "KEY[=VALUE]", "Set a label", "l"), value("driver", "DRIVER", "local", "d")),
    0,
    1,
)
LS = Command("[OPTIONS]", ls, (FILTER, FORMAT, switch("quiet", "Only names", "q")))
RM = Command(
    "[OPTIONS] VOLUME [VOLUME...]",
    remove,
    (switch("force", "No failure where it is not there", "f"),),
    1,
    None,
    ("volume",),
)
PRUNE = Command(
    "[OPTIONS]",
    prune,
    (
        switch("all", "Named ones too, not only anonymous ones", "a"),
        switch("force", "Accepted, as Docker has it: nothing is asked", "f"),
    ),
)
