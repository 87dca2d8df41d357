"""``feed import ls verify update rm``: lists of known vulnerabilities, by which images are judged."""

from __future__ import annotations

import posix

from casemate.cli.commands.archives import read_chunks
from casemate.cli.fail import bad_value, file_trouble, unreadable
from casemate.cli.flags import Arguments, Command, switch, value, values
from casemate.cli.show.human import size
from casemate.cli.show.plain import clean, shortened
from casemate.cli.show.table import aligned
from casemate.cli.wire.client import Pairs, object_of, rows_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate.cli.context import Context

MAX_PEM_BYTES = 16 << 10
KINDS = ("osv", "debian-tracker", "debian-advisories", "alpine-secdb", "csaf-vex", "epss", "kev")


def import_(arguments: Arguments, context: Context) -> int:
    from casemate.cli.progress import follow

    kind, path = arguments.words
    if kind not in KINDS:
        raise bad_value("KIND", kind, f"one of {', '.join(KINDS)}")
    pairs: Pairs = [("kind", kind), ("name", arguments.text("name") or kind)]
    pairs += [(flag, text) for flag in ("date", "digest") if (text := arguments.text(flag))]
    answer = context.client.upload("POST", "/v1/feeds/import", pairs, _chunks(path), "application/octet-stream")
    ended = follow(context, answer.json(), arguments.on("quiet"), 2)
    if context.json:
        context.answer(ended)
        return 0
    feed = object_of(object_of(ended.get("result")).get("feed"))
    doubtful = f", {feed['doubtful']} ranges doubtful (taken as every version)" if feed.get("doubtful") else ""
    context.write(
        f"{clean(str(feed.get('name')))}: {feed.get('rows')} rows of {clean(str(feed.get('date')))}{doubtful}\n"
    )
    return 0


def _chunks(path: str) -> Iterator[bytes]:
    """The file; of a folder, a tar archive that is made while it is sent; ``-``: standard input."""
    if path == "-":
        return read_chunks(None, "FILE")
    try:
        is_folder = posix.stat(path).st_mode & 0o170000 == 0o040000
    except (OSError, ValueError) as error:
        raise unreadable(repr(path[:200]), error) from None
    if not is_folder:
        return read_chunks(path, "FILE")
    from casemate.cli.copying.pack import Packer

    return Packer(owners=False).tree(path, "", follow=True, contents_only=True)


def ls(arguments: Arguments, context: Context) -> int:
    return _show(context, object_of(context.client.get("/v1/feeds")), arguments)


def verify(arguments: Arguments, context: Context) -> int:
    """Exit code 2 when a feed is stale or there is none; a damaged file is an error (125)."""
    answer = object_of(context.client.get("/v1/feeds", [("verify", "true")]))
    code = _show(context, answer, arguments)
    rows = rows_of(answer, "feeds")
    if not rows or any(row.get("stale") for row in rows):
        if not context.json:
            context.note("casemate: there is no feed\n" if not rows else "casemate: a feed is too old\n")
        return 2
    if not context.json:
        context.write("every page and every count is as it should be\n")
    return code


def _show(context: Context, answer: dict[str, object], arguments: Arguments) -> int:
    del arguments
    if context.json:
        context.answer(answer)
        return 0
    lines = [["NAME", "KIND", "OF", "AGE", "ROWS", "ADVISORIES", "SPEAKS OF"]]
    for row in rows_of(answer, "feeds"):
        age = row.get("age_days")
        told = "of the future" if age == -1 else f"{age} days"
        names = row.get("ecosystems")
        spoken = ", ".join(str(name) for name in names) if isinstance(names, list) else ""
        lines.append([
            str(row.get("name", "")), str(row.get("kind", "")), str(row.get("date", "")),
            told + (" (too old)" if row.get("stale") and age != -1 else ""), str(row.get("rows", "")),
            str(row.get("advisories", "")), shortened(spoken, 60),
        ])  # fmt: skip
    count = answer.get("bytes")
    context.write(aligned(lines) + (f"\n{size(count)} in {clean(str(answer.get('path')))}\n" if count else ""))  # type: ignore[arg-type]
    return 0


def _pem(path: str) -> str:
    data = b"".join(read_chunks(path, "--trusted-key"))
    if len(data) > MAX_PEM_BYTES:
        raise file_trouble(f"{path[:200]!r} has {len(data)} bytes; {MAX_PEM_BYTES} are allowed")
    return data.decode("utf-8", "replace")


def update(arguments: Arguments, context: Context) -> int:
    from casemate.cli.asked.quantities import whole
    from casemate.cli.progress import follow

    request: dict[str, object] = {"names": arguments.words}
    for flag in ("url", "digest"):
        if text := arguments.text(flag):
            request[flag] = text
    if arguments.texts("trusted-key"):
        request["keys"] = [_pem(path) for path in arguments.texts("trusted-key")]
        if (text := arguments.text("threshold")) is not None:
            request["threshold"] = whole("--threshold", text, 1, len(arguments.texts("trusted-key")))
    ended = follow(context, context.client.post("/v1/feeds/update", request), arguments.on("quiet"), 2)
    if context.json:
        context.answer(ended)
        return 0
    for row in rows_of(object_of(ended.get("result")), "changes"):
        rows = f" {row.get('rows')} rows of {clean(str(row.get('date')))}" if row.get("outcome") == "imported" else ""
        context.write(f"{clean(str(row.get('name')))}: {clean(str(row.get('outcome')))}{rows}\n")
    return 0


def remove(arguments: Arguments, context: Context) -> int:
    from casemate.cli.commands.several import each

    return each(
        context, arguments.words, lambda name: context.client.delete("/v1/feeds", [("name", name)]), "removed",
        lambda _: "",
    )  # fmt: skip


_QUIET = switch("quiet", "Do not show the progress", "q")

IMPORT = Command(
    "[OPTIONS] KIND FILE|FOLDER|-", import_,
    (
        value("name", "NAME", "What to call the feed (its kind); one of the same name is replaced"),
        value("date", "YYYY-MM-DD", "The day of its content: debian-*, alpine-secdb and epss do not say it"),
        value("digest", "sha256:HEX", "What the file must hash to, as its maker says"),
        _QUIET,
    ),
    2, 2, (",".join(KINDS), "file"),
    "Kinds: osv (a zip, tar or folder of records), debian-tracker (the tracker's JSON), debian-advisories\n"
    "(tab-separated), alpine-secdb, csaf-vex (Red Hat), epss, kev. gzip and xz are unpacked. The feed is replaced\n"
    "as a whole or not at all.",
    ("casemate feed import debian-tracker --date 2026-11-21 debian.json",
     "casemate feed import osv --name osv-pypi PyPI-all.zip",
     "casemate feed import epss --date 2026-11-21 epss_scores.csv.gz"),
)  # fmt: skip
LS = Command("", ls)
VERIFY = Command(
    "", verify, more="Exit codes: 0 sound and young enough (feed.max_age_days), 2 too old or none, 125 damaged."
)
UPDATE = Command(
    "[OPTIONS] [NAME...]", update,
    (
        value("url", "ADDRESS", "The mirror (setting feed.mirror): an address of a manifest.json"),
        value("digest", "sha256:HEX", "What the manifest must hash to"),
        values("trusted-key", "FILE", "A public key that has to have signed the manifest (feed.keys); again for each",
               completes="file"),
        value("threshold", "N", "So many of the trusted keys have to have signed (1)"),
        _QUIET,
    ),
    0, None, ("name",),
    "Only files whose digest is new are fetched; one that was cut off goes on where it stopped. A signed manifest\n"
    "that is older than the one before, or whose last day has passed, is refused.",
    ("casemate feed update", "casemate feed update --url https://mirror.example/feeds debian"),
)  # fmt: skip
RM = Command("NAME [NAME...]", remove, (), 1, None, ("name",))
