"""``cp`` and ``export``. The rules for names are those of ``docker cp``, which are those of ``cp -a``."""

from __future__ import annotations

import posix

from casemate.cli.fail import broken_answer, code_of, file_trouble, usage
from casemate.cli.flags import Arguments, Command, switch, value
from casemate.cli.wire.http import segment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.context import Context

_MODE_KIND, _FOLDER = 0o170000, 0o040000
#: As many links as the kernel follows.
MAX_LINKS = 40


class Stat:
    """What the daemon says of a path in a container (header X-Casemate-Path-Stat)."""

    __slots__ = ("is_dir", "link_target", "name")

    def __init__(self, name: str, is_dir: bool, link_target: str) -> None:
        self.name = name
        self.is_dir = is_dir
        self.link_target = link_target


def split_place(text: str) -> tuple[str | None, str]:
    """``CONTAINER:PATH`` or a path here (which begins with / or . where it holds a colon)."""
    if text.startswith(("/", ".")) or text == "-":
        return None, text
    container, colon, path = text.partition(":")
    if not colon or not container or "/" in container:
        return None, text
    return container, path


def copy(arguments: Arguments, context: Context) -> int:
    (source_container, source), (target_container, target) = map(split_place, arguments.words)
    if (source_container is None) == (target_container is None):
        both = "both are" if source_container is not None else "none is"
        raise usage(f"cp wants one of SOURCE and TARGET in a container; {both}", "Write CONTAINER:PATH.", "cp")
    if source_container is not None:
        done = _out(arguments, context, source_container, source or "/", target)
    else:
        assert target_container is not None
        done = _in(arguments, context, source, target_container, target or "/")
    if context.json and target != "-":
        context.answer({"source": arguments.words[0], "target": arguments.words[1], "bytes": done})
    elif target != "-" and not arguments.on("quiet") and posix.isatty(2):
        from casemate.cli.show.human import size

        context.note(f"Successfully copied {size(done)} to {arguments.words[1]}\n")
    return 0


def _archive(container: str) -> str:
    return f"/v1/containers/{segment(container)}/archive"


def stat_of(context: Context, container: str, path: str) -> Stat | None:
    """What is at *path* in the container; None where nothing is."""
    import binascii

    from casemate.cli.wire import json

    try:
        answer = context.client.send("HEAD", _archive(container), [("path", path)])
    except Exception as error:
        if code_of(error).endswith("not_found"):
            # HEAD has no body to tell which of the two is missing: the container's own error says it.
            context.client.get(f"/v1/containers/{segment(container)}")
            return None
        if code_of(error) == "remote":
            # The same in words: an answer to HEAD has no body.
            context.client.send("GET", _archive(container), [("path", path)])
        raise
    try:
        found = json.loads(binascii.a2b_base64(answer.head.fields.get("x-casemate-path-stat", "")))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise broken_answer("the daemon does not say what is at the path in the container")
    return Stat(str(found.get("name", "")), bool(found.get("is_dir")), str(found.get("link_target", "")))


def _resolved(context: Context, container: str, path: str) -> tuple[str, Stat | None]:
    """*path* and what is there, links followed within the container."""
    for _ in range(MAX_LINKS):
        found = stat_of(context, container, path)
        if found is None or not found.link_target or found.is_dir:
            return path, found
        base = "" if found.link_target.startswith("/") else path.rstrip("/").rpartition("/")[0] + "/"
        path = base + found.link_target
    raise usage(f"{path[:200]!r} in the container is a link that never ends", path="cp")


def _base(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2] or "/"


def _parent(path: str) -> str:
    return path.rstrip("/").rpartition("/")[0] or ("/" if path.startswith("/") else ".")


def _here(path: str) -> int | None:
    """The kind of file at *path* on this side, links followed; None where nothing is."""
    try:
        return posix.stat(path).st_mode & _MODE_KIND
    except (FileNotFoundError, NotADirectoryError):
        return None


def _in(arguments: Arguments, context: Context, source: str, container: str, target: str) -> int:
    path, there = _resolved(context, container, target)
    if source == "-":
        from casemate.cli.commands.archives import read_chunks

        if there is None or not there.is_dir:
            raise file_trouble(f"{container}:{target} is no folder; a tar stream is unpacked in one")
        sent = [0]

        def counted() -> object:
            for data in read_chunks(None, "cp -"):
                sent[0] += len(data)
                yield data

        context.client.upload("PUT", _archive(container), [("path", path)], counted(), "application/x-tar").read()  # type: ignore[arg-type]
        return sent[0]
    follow = arguments.on("follow-link")
    kind = _kind_here(source, follow)
    contents = kind == _FOLDER and (source.endswith("/.") or source == ".")
    source_name = _base(posix.getcwd() if source in (".", "./") else source.removesuffix("/."))
    if there is not None and there.is_dir:
        folder, name = path, source_name
    elif there is not None and kind == _FOLDER:
        raise file_trouble(f"{container}:{target} is a file; a folder cannot be copied onto it")
    elif target.endswith("/") and (there is not None or kind != _FOLDER):
        raise file_trouble(f"{container}:{target} is no folder", "Make it first, or leave out the / at the end.")
    else:
        # What is not there yet gets the source itself under the new name: a folder's contents come along anyway.
        folder, name, contents = _parent(path), _base(path), False
    from casemate.cli.copying.pack import Packer

    packer = Packer(arguments.on("archive"))
    chunks = packer.tree(source, name, follow, contents)
    context.client.upload("PUT", _archive(container), [("path", folder)], chunks, "application/x-tar").read()
    for skipped in packer.skipped:
        context.note(f"casemate: {skipped} is a socket or a device and was not copied\n")
    return packer.bytes_sent


def _kind_here(source: str, follow: bool) -> int:
    try:
        trailing = source.endswith(("/", "/."))
        found = posix.stat(source) if follow or trailing else posix.lstat(source)
    except OSError as error:
        raise file_trouble(f"{source[:200]!r} cannot be read: {error.strerror}") from None
    return found.st_mode & _MODE_KIND


def _out(arguments: Arguments, context: Context, container: str, source: str, target: str) -> int:
    contents = source.endswith("/.")
    path = source.removesuffix("/.") or "/" if contents else source
    there = stat_of(context, container, path)
    if there is not None and there.link_target and (arguments.on("follow-link") or source.endswith(("/", "/."))):
        path, there = _resolved(context, container, path)
    if there is None:
        from casemate.cli.fail import remote

        detail = f"{container}:{source} does not exist"
        raise remote(
            {"code": "object.not_found", "detail": detail, "remedy": f"`casemate exec {container} ls` shows what is."}
        )
    if target == "-":
        from casemate.cli.commands.archives import write_chunks

        write_chunks(context.client.send("GET", _archive(container), [("path", path)]).chunks, None, "an archive")
        return 0
    folder, name = _destination(source, target, there, contents)
    from casemate.cli.copying.unpack import Unpacker

    answer = context.client.send("GET", _archive(container), [("path", path)])
    with Unpacker(folder, arguments.on("archive")) as unpacker:
        unpacker.tree(answer.chunks, name, rooted=_base(path) != "/")
        for skipped in unpacker.skipped:
            context.note(f"casemate: {skipped} is a device and was not copied\n")
        return unpacker.bytes_received


def _destination(source: str, target: str, there: Stat, contents: bool) -> tuple[str, str | None]:
    """The folder here to unpack in, and the name that the archive's first component gets (None: it is left out)."""
    kind = _here(target)
    if kind == _FOLDER:
        return target, None if contents or _base(source) == "/" else _base(source)
    if kind is not None and there.is_dir:
        raise file_trouble(f"{target[:200]!r} is a file; a folder cannot be copied onto it")
    if target.endswith("/") and not there.is_dir:
        raise file_trouble(f"{target[:200]!r} is no folder", "Make it first, or leave out the / at the end.")
    parent = _parent(target)
    if _here(parent) != _FOLDER:
        raise file_trouble(f"{parent[:200]!r} is no folder", f"Make it first: `mkdir -p {parent}`.")
    return parent, _base(target)


def export(arguments: Arguments, context: Context) -> int:
    from casemate.cli.commands.archives import write_chunks

    output = arguments.text("output")
    if output is None and posix.isatty(1):
        raise usage("an archive is not written to a terminal", "Name a file with -o, or pipe it.", "export")
    answer = context.client.send("GET", f"/v1/containers/{segment(arguments.words[0])}/export")
    write_chunks(answer.chunks, output, "an archive")
    if context.json and output is not None:
        context.answer([{"name": arguments.words[0], "result": "exported"}])
    return 0


CP = Command(
    "[OPTIONS] CONTAINER:SOURCE TARGET|- | SOURCE|- CONTAINER:TARGET",
    copy,
    (
        switch("archive", "Keep owners and set-uid bits", "a"),
        switch("follow-link", "Follow SOURCE where it is a link", "L"),
        switch("quiet", "Do not say what was copied", "q"),
    ),
    2,
    2,
    ("container", "file"),
    "A folder's contents alone: SOURCE/. ; a tar stream: - in place of the path on this side.",
    ("casemate cp web:/etc/nginx ./nginx", "casemate cp site/. web:/srv", "tar c . | casemate cp - web:/srv"),
)
EXPORT = Command(
    "[OPTIONS] CONTAINER",
    export,
    (value("output", "FILE", "Write to a file instead of standard output", "o", "Options", "file"),),
    1,
    1,
    ("container",),
)
