"""``system kernel install ls use rm``: the kernels that micro-VMs run."""

from __future__ import annotations

from casemate.cli.commands.listing import FORMAT
from casemate.cli.flags import Arguments, Command, switch
from casemate.cli.show.human import size
from casemate.cli.show.plain import clean
from casemate.cli.show.table import show
from casemate.cli.wire.client import object_of, rows_of
from casemate.cli.wire.http import segment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.context import Context

_KIND = "application/vnd.debian.binary-package"
_COLUMNS = (("Version", "VERSION"), ("Chosen", "CHOSEN"), ("Size", "SIZE"), ("Lacks", "LACKS"))


def install(arguments: Arguments, context: Context) -> int:
    from casemate.cli.commands.archives import read_chunks
    from casemate.cli.progress import follow

    if arguments.words:
        chunks = read_chunks(arguments.words[0], "the package")
        answer = context.client.upload("POST", "/v1/kernels", [("source", "body")], chunks, _KIND).json()
    else:
        answer = context.client.post("/v1/kernels")
    ended = follow(context, answer, arguments.on("quiet"), 2)
    if context.json:
        context.answer(ended)
        return 0
    result = object_of(ended.get("result"))
    context.write(f"{clean(str(result.get('version')))}\n")
    return 0


def ls(arguments: Arguments, context: Context) -> int:
    answer = context.client.get("/v1/kernels")
    if context.json:
        context.answer(answer)
        return 0
    rows: list[dict[str, object]] = []
    for row in rows_of(answer, "kernels"):
        held, lacks = row.get("size_bytes"), row.get("lacks")
        rows.append(
            {
                "Version": row.get("version", ""),
                "Chosen": "yes" if row.get("chosen") else "",
                "Size": size(held if isinstance(held, int) else 0),
                "Lacks": ", ".join(map(str, lacks)) if isinstance(lacks, list) else "",
            }
        )
    show(context, _COLUMNS, rows, arguments.text("format"))
    return 0


def use(arguments: Arguments, context: Context) -> int:
    answer = context.client.post("/v1/kernels/use", {"version": arguments.words[0]})
    return _told(context, answer, arguments.words[0])


def rm(arguments: Arguments, context: Context) -> int:
    for word in arguments.words:
        _told(context, context.client.delete(f"/v1/kernels/{segment(word)}"), word)
    return 0


def _told(context: Context, answer: object, version: str) -> int:
    if context.json:
        context.answer(answer)
    else:
        context.write(f"{clean(version)}\n")
    return 0


INSTALL = Command(
    "[OPTIONS] [PACKAGE.deb]", install, (switch("quiet", "Show no progress", "q"),), 0, 1, (),
    "Without a file, Debian's generic kernel is fetched by apt. It is taken apart, never installed on the host.",
    ("casemate system kernel install", "casemate system kernel install linux-image-6.1.0-1-amd64.deb"),
)  # fmt: skip
LS = Command("[OPTIONS]", ls, (FORMAT,))
USE = Command("VERSION", use, (), 1, 1, (), "Machines that run keep theirs.")
RM = Command("VERSION...", rm, (), 1, 64)
