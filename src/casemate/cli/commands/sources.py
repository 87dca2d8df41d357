"""``trust source``: publishers of signed metadata that the daemon follows."""

from __future__ import annotations

from casemate.cli.fail import usage
from casemate.cli.flags import Arguments, Command, value, values
from casemate.cli.show.plain import clean
from casemate.cli.show.table import table
from casemate.cli.wire.client import object_of, rows_of
from casemate.cli.wire.http import segment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.context import Context

MAX_ROOT_BYTES = 512_000
_COLUMNS = (
    ("N", "NAME"), ("L", "LOCATION"), ("R", "REPOSITORIES"), ("F", "REFRESHED"), ("E", "EXPIRES"), ("X", "FAULT"),
)  # fmt: skip


def add(arguments: Arguments, context: Context) -> int:
    from casemate.cli.signing import read_file

    name, location = arguments.words
    root = arguments.text("root")
    if root is None or not arguments.texts("repository"):
        raise usage("--root FILE and --repository PREFIX are wanted", path="trust source add")
    request = {
        "name": name, "location": location, "repositories": arguments.texts("repository"),
        "root": read_file(root, MAX_ROOT_BYTES).decode("utf-8", "replace"),
    }  # fmt: skip
    _show(context, [object_of(context.client.post("/v1/trust/sources", request))])
    return 0


def ls(_: Arguments, context: Context) -> int:
    answer = object_of(context.client.get("/v1/trust/sources"))
    _show(context, rows_of(answer | {"publishers": answer.get("publishers", [])}, "publishers"))
    return 0


def refresh(arguments: Arguments, context: Context) -> int:
    made = [object_of(context.client.post(f"/v1/trust/sources/{segment(name)}/refresh")) for name in arguments.words]
    _show(context, made)
    return 0


def rm(arguments: Arguments, context: Context) -> int:
    for name in arguments.words:
        context.client.delete(f"/v1/trust/sources/{segment(name)}")
        if not context.json:
            context.write(f"{clean(name)}\n")
    if context.json:
        context.answer([{"name": name, "result": "removed"} for name in arguments.words])
    return 0


def tag(arguments: Arguments, context: Context) -> int:
    answer = object_of(context.client.get("/v1/trust/tag", [("ref", arguments.words[0])]))
    if context.json:
        context.answer(answer)
    elif not answer.get("publisher"):
        context.write(f"{clean(arguments.words[0])}: no publisher is followed for it\n")
    else:
        told = (f"{answer.get('digest')}  by {answer.get('publisher')}/{answer.get('role')}, "
                f"until {answer.get('expires')}")  # fmt: skip
        context.write(clean(told) + "\n")
    return 0


def _show(context: Context, rows: list[dict[str, object]]) -> None:
    if context.json:
        context.answer(rows)
        return
    lines: list[dict[str, object]] = []
    for row in rows:
        prefixes = row.get("repositories")
        lines.append({
            "N": row.get("name", ""), "L": row.get("location", ""), "F": str(row.get("refreshed_at", ""))[:19],
            "R": " ".join(map(str, prefixes)) if isinstance(prefixes, list) else "",
            "E": str(row.get("expires", ""))[:19], "X": row.get("error", ""),
        })  # fmt: skip
    context.write(table(_COLUMNS, lines))


ADD = Command(
    "[OPTIONS] NAME LOCATION", add,
    (value("root", "FILE", "The publisher's root.json, which came by another way", completes="file"),
     values("repository", "PREFIX", "Repositories that it answers for; again for each")), 2, 2, (),
    "LOCATION is a URL or a folder that the daemon can read. From then on a tag below PREFIX means what the\npublisher "
    "signed: another digest, an unknown tag, and metadata that ended or went back are refused.",
    ("casemate trust source add web https://keys.example/web --root root.json --repository registry.example/web",),
)  # fmt: skip
LS = Command("", ls, (), 0, 0, (), "")
REFRESH = Command("NAME [NAME...]", refresh, (), 1, None, (), "The daemon does that by itself each hour.")
RM = Command("NAME [NAME...]", rm, (), 1, None)
TAG = Command("IMAGE", tag, (), 1, 1, ("image",), "By what was fetched last; asks no network.")
