"""``pull push images rmi tag history``, ``image prune``."""

from __future__ import annotations

import time

from casemate.cli.commands.listing import FILTER, FORMAT, NO_TRUNC, filters
from casemate.cli.commands.several import each
from casemate.cli.flags import Arguments, Command, switch, value
from casemate.cli.show.human import ago, familiar, short_id, size
from casemate.cli.show.plain import clean, shortened
from casemate.cli.show.table import show
from casemate.cli.wire.client import object_of, rows_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.context import Context


def fetch(
    context: Context, image: str, platform: str | None = None, plain: bool = False, quiet: bool = False, fd: int = 1
) -> dict[str, object]:
    """Pull *image* and follow it to its end, showing it on *fd*; the ended Operation."""
    request: dict[str, object] = {"reference": image}
    if platform is not None:
        request["platform"] = platform
    if plain:
        request["plain_http"] = True
    auth = credentials(image)
    if auth is not None:
        request["auth"] = auth
    from casemate.cli.progress import follow

    return follow(context, context.client.post("/v1/images/pull", request), quiet, fd)


def credentials(image: str) -> dict[str, object] | None:
    """What Docker's config.json, or a helper that it names, holds for the registry of *image*; for this request."""
    from casemate.cli.registry import credentials_for

    return credentials_for(image)


def pull(arguments: Arguments, context: Context) -> int:
    image, quiet = arguments.words[0], arguments.on("quiet")
    ended = fetch(context, image, arguments.text("platform"), arguments.on("plain-http"), quiet)
    if context.json:
        context.answer(ended)
        return 0
    found = ended.get("result")
    result = found if isinstance(found, dict) else {}
    if result.get("digest") and not quiet:
        context.write(f"Digest: {clean(str(result['digest']))}\n")
    context.write(f"{clean(str(result.get('name') or ended.get('target') or image))}\n")
    return 0


def push(arguments: Arguments, context: Context) -> int:
    from casemate.cli.progress import follow

    *source, target = arguments.words
    request: dict[str, object] = {"reference": target}
    if source:
        request["source"] = source[0]
    if arguments.on("plain-http"):
        request["plain_http"] = True
    auth = credentials(target)
    if auth is not None:
        request["auth"] = auth
    ended = follow(context, context.client.post("/v1/images/push", request), arguments.on("quiet"), 1)
    if context.json:
        context.answer(ended)
        return 0
    found = ended.get("result")
    if isinstance(found, dict) and found.get("digest"):
        context.write(f"{clean(target)}: digest: {clean(str(found['digest']))}\n")
    return 0


_DIGESTS = (
    ("Repository", "REPOSITORY"), ("Tag", "TAG"), ("Digest", "DIGEST"), ("ID", "IMAGE ID"),
    ("CreatedSince", "CREATED"), ("Size", "SIZE"),
)  # fmt: skip


def ls(arguments: Arguments, context: Context) -> int:
    from casemate.cli.show.rows import IMAGE_COLUMNS, images

    pairs = filters(arguments)
    answer = object_of(context.client.get("/v1/images", pairs))
    found = rows_of(answer | {"images": answer.get("images", [])}, "images")
    if context.json and not arguments.words:
        context.answer(found)
        return 0
    now, whole = time.time(), arguments.on("no-trunc")
    rows = []
    kept = []
    for image in found:
        made = [row for row in images(image, now, whole) if not arguments.words or _fits(row, arguments.words[0])]
        rows += made
        kept += [image] if made else []
    if context.json:
        context.answer(kept)
        return 0
    quiet = "ID" if arguments.on("quiet") else ""
    if quiet and arguments.text("format") is None:
        rows = list({str(row["ID"]): row for row in rows}.values())
    show(context, _DIGESTS if arguments.on("digests") else IMAGE_COLUMNS, rows, arguments.text("format"), quiet)
    return 0


def _fits(row: dict[str, object], wanted: str) -> bool:
    """``REPOSITORY[:TAG]`` as ``docker images`` takes it."""
    from casemate.cli.show.rows import split_name

    repository, tag = split_name(wanted)
    return row["Repository"] == repository and tag in ("<none>", row["Tag"])


def remove(arguments: Arguments, context: Context) -> int:
    force = [("force", "true")] if arguments.on("force") else []

    def told(answer: object) -> str:
        row = object_of(answer)
        lines = [f"Untagged: {clean(familiar(str(name)))}" for name in _texts(row, "untagged")]
        return "\n".join(lines + [f"Deleted: {clean(str(name))}" for name in _texts(row, "removed")])

    return each(
        context,
        arguments.words,
        lambda name: context.client.delete("/v1/images", [("ref", name), *force]),
        "removed",
        told,
    )


def _texts(row: dict[str, object], name: str) -> list[object]:
    found = row.get(name)
    return found if isinstance(found, list) else []


def tag(arguments: Arguments, context: Context) -> int:
    source, target = arguments.words
    context.client.post("/v1/images/tag", {"source": source, "target": target})
    if context.json:
        context.answer([{"name": target, "result": "tagged", "source": source}])
    return 0


_HISTORY = (
    ("ID", "IMAGE"), ("CreatedSince", "CREATED"), ("CreatedBy", "CREATED BY"), ("Size", "SIZE"), ("Comment", "COMMENT"),
)  # fmt: skip


def history(arguments: Arguments, context: Context) -> int:
    answer = object_of(context.client.get("/v1/images/history", [("ref", arguments.words[0])]))
    found = rows_of(answer | {"history": answer.get("history", [])}, "history")
    if context.json:
        context.answer(found)
        return 0
    detail = object_of(context.client.get("/v1/images/inspect", [("ref", arguments.words[0])]))
    id_ = str(object_of(detail.get("summary")).get("id", ""))
    now, whole = time.time(), arguments.on("no-trunc")
    rows: list[dict[str, object]] = []
    for index, step in enumerate(found):
        by, count = str(step.get("created_by", "")), step.get("size_bytes")
        rows.append(
            {
                "ID": (id_ if whole else short_id(id_)) if index == 0 else "<missing>",
                "CreatedSince": ago(str(step.get("created_at", "")), now) or "N/A",
                "CreatedAt": step.get("created_at", ""),
                "CreatedBy": by if whole else shortened(" ".join(by.split()), 45),
                "Size": size(count if isinstance(count, int) else 0),
                "Comment": step.get("comment", ""),
            }
        )
    show(context, _HISTORY, rows, arguments.text("format"), "ID" if arguments.on("quiet") else "")
    return 0


def prune(arguments: Arguments, context: Context) -> int:
    pairs = [("all", "true")] if arguments.on("all") else []
    answer = context.client.post("/v1/images/prune", None, pairs)
    return show_removed(context, answer, "Images")


def show_removed(context: Context, answer: object, kind: str) -> int:
    """The API's Removed: what went, and how much space it freed."""
    if context.json:
        context.answer(answer)
        return 0
    row = object_of(answer)
    removed, untagged = _texts(row, "removed"), _texts(row, "untagged")
    if removed or untagged:
        context.write(f"Deleted {kind}:\n")
        context.write("".join(f"untagged: {clean(familiar(str(name)))}\n" for name in untagged))
        context.write("".join(f"{clean(str(name))}\n" for name in removed) + "\n")
    freed = row.get("freed_bytes")
    context.write(f"Total reclaimed space: {size(freed if isinstance(freed, int) else 0)}\n")
    return 0


_PLAIN = switch("plain-http", "Speak plain HTTP to the registry")
_QUIET = switch("quiet", "Do not show the progress", "q")
_ONLY_IDS = switch("quiet", "Only ids", "q")

PULL = Command(
    "[OPTIONS] NAME[:TAG|@DIGEST]", pull,
    (value("platform", "OS/ARCH", "Platform of the image"), _PLAIN, _QUIET), 1, 1, ("image",),
    "Credentials are those of Docker's config.json. Ctrl-C cancels; layers that are complete are kept.",
    ("casemate pull debian:12", "casemate pull --plain-http localhost:5000/app:1"),
)  # fmt: skip
PUSH = Command(
    "[OPTIONS] [SOURCE] NAME[:TAG]", push, (_PLAIN, _QUIET), 1, 2, ("image",),
    "With SOURCE, that image is pushed under NAME.", ("casemate push registry.example/app:1",),
)  # fmt: skip
LS = Command(
    "[OPTIONS] [REPOSITORY[:TAG]]", ls,
    (switch("all", "Accepted, as Docker has it", "a"), switch("digests", "Show digests"), FILTER, FORMAT, NO_TRUNC,
     _ONLY_IDS), 0, 1, ("image",),
    "Fields: .ID .Repository .Tag .Digest .CreatedSince .CreatedAt .Size .SharedSize .Containers .Platform .Labels",
    ("casemate images", "casemate images --format '{{.Repository}}:{{.Tag}} {{.Size}}'"),
)  # fmt: skip
RM = Command(
    "[OPTIONS] IMAGE [IMAGE...]", remove, (switch("force", "Also where several names are on it", "f"),), 1, None,
    ("image",), "", ("casemate rmi app:1",),
)  # fmt: skip
TAG = Command("SOURCE TARGET", tag, (), 2, 2, ("image",), "", ("casemate tag app:1 registry.example/app:1",))
HISTORY = Command("[OPTIONS] IMAGE", history, (FORMAT, NO_TRUNC, _ONLY_IDS), 1, 1, ("image",))
PRUNE = Command(
    "[OPTIONS]", prune, (switch("all", "All that no container uses, not only untagged ones", "a"),
                         switch("force", "Accepted, as Docker has it: nothing is asked", "f")),
)  # fmt: skip
