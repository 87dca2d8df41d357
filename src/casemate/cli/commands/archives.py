"""Images in and out of archives: ``image import export load save build-debian``."""

from __future__ import annotations

import posix

from casemate.cli.context import write_all
from casemate.cli.fail import bad_value, file_trouble, unreadable, usage
from casemate.cli.flags import Arguments, Command, switch, value, values
from casemate.cli.show.human import familiar
from casemate.cli.show.plain import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate.cli.context import Context
    from casemate.cli.wire.client import Pairs

CHUNK_BYTES = 1 << 20
FORMATS = ("docker-archive", "oci-archive")


def read_chunks(path: str | None, flag: str) -> Iterator[bytes]:
    """The file at *path*, or standard input for None, in pieces."""
    fd = 0
    if path is None:
        if posix.isatty(0):
            raise usage(f"{flag}: standard input is a terminal, no archive", "Name a file, or pipe the archive in.")
    else:
        try:
            fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise unreadable(f"{flag}: {path[:200]!r}", error) from None
    try:
        while data := _read(fd, path or "standard input"):
            yield data
    finally:
        if fd:
            posix.close(fd)


def _read(fd: int, shown: str) -> bytes:
    try:
        return posix.read(fd, CHUNK_BYTES)
    except OSError as error:
        raise unreadable(repr(shown[:200]), error) from None


def write_chunks(chunks: Iterator[bytes], path: str | None, what: str) -> None:
    """All of *chunks* to a new file at *path* (in place only when whole), or to standard output for None."""
    if path is None:
        if posix.isatty(1):
            raise usage(f"{what} is not written to a terminal", "Name a file with -o, or pipe it.")
        for chunk in chunks:
            write_all(1, chunk)
        return
    if path == "/dev/stdout":
        write_chunks(chunks, None, what)
        return
    part = f"{path}.part-{posix.getpid()}"
    try:
        fd = posix.open(part, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC, 0o666)
    except (OSError, ValueError) as error:
        raise file_trouble(f"--output: {path[:200]!r} cannot be written: {error}") from None
    try:
        for chunk in chunks:
            write_all(fd, chunk)
        posix.rename(part, path)
    except BaseException:
        posix.unlink(part)
        raise
    finally:
        posix.close(fd)


def _upload(context: Context, pairs: Pairs, path: str | None, quiet: bool) -> dict[str, object]:
    from casemate.cli.progress import follow

    chunks = read_chunks(path, "the archive")
    answer = context.client.upload("POST", "/v1/images/import", pairs, chunks, "application/x-tar")
    return follow(context, answer.json(), quiet, 2)


def import_(arguments: Arguments, context: Context) -> int:
    """Docker's ``import FILE [NAME]`` is for a root file system; ours takes every format, told apart by itself."""
    path, *name = arguments.words
    form = arguments.text("form") or "auto"
    if form not in ("auto", "rootfs", *FORMATS):
        raise bad_value("--form", form, f"auto, rootfs, {', '.join(FORMATS)}")
    pairs: Pairs = [("format", form)]
    if name:
        pairs.append(("tag", name[0]))
    for text in arguments.texts("change"):
        pairs += _change(text)
    command = arguments.text("cmd")
    if command is not None:
        from casemate.cli.wire import json

        pairs.append(("cmd", json.dumps(command.split())))
    pairs += [("env", text) for text in arguments.texts("env")]
    if posix.isatty(1) and path != "-" and _is_folder(path):
        raise usage(
            f"{path[:200]!r} is a folder; an archive is wanted", f"`tar -C {path} -c . | casemate import - NAME`"
        )
    ended = _upload(context, pairs, None if path == "-" else path, arguments.on("quiet"))
    if context.json:
        context.answer(ended)
    else:
        result = ended.get("result")
        if form == "auto" and isinstance(result, dict) and result.get("form") == "rootfs":
            context.note(f"{clean(path)} holds no image (index.json, manifest.json): taken as a root file system\n")
        context.write(f"{clean(_image_of(ended))}\n")
    return 0


def _is_folder(path: str) -> bool:
    try:
        return posix.stat(path).st_mode & 0o170000 == 0o040000
    except OSError:
        return False


def _change(text: str) -> Pairs:
    """``--change 'CMD ["sh"]'`` and ``'ENV A=b'``: the two of Docker's instructions that the API takes."""
    from casemate.cli.wire import json

    word, _, rest = text.strip().partition(" ")
    rest = rest.strip()
    if word.upper() == "CMD" and rest:
        return [("cmd", rest if rest.startswith("[") else json.dumps(["/bin/sh", "-c", rest]))]
    if word.upper() == "ENV" and "=" in rest:
        return [("env", rest)]
    raise bad_value("--change", text, "'CMD [\"program\", \"argument\"]' or 'ENV NAME=value'")


def _image_of(ended: dict[str, object]) -> str:
    found = ended.get("result")
    result = found if isinstance(found, dict) else {}
    names = result.get("names")
    first = names[0] if isinstance(names, list) and names else None
    return str(result.get("id") or result.get("digest") or first or ended.get("target") or "")


def load(arguments: Arguments, context: Context) -> int:
    ended = _upload(context, [("format", "auto")], arguments.text("input"), arguments.on("quiet"))
    if context.json:
        context.answer(ended)
        return 0
    found = ended.get("result")
    names = found.get("names") if isinstance(found, dict) else None
    for name in names if isinstance(names, list) and names else [_image_of(ended)]:
        context.write(f"Loaded image: {clean(familiar(str(name)))}\n")
    return 0


def export(arguments: Arguments, context: Context) -> int:
    form = arguments.text("form") or "docker-archive"
    if form not in FORMATS:
        raise bad_value("--form", form, " or ".join(FORMATS))
    if arguments.text("output") is None and posix.isatty(1):
        raise usage("an archive is not written to a terminal", "Name a file with -o, or pipe it.")
    pairs = [("ref", name) for name in arguments.words] + [("format", form)]
    answer = context.client.send("GET", "/v1/images/export", pairs)
    write_chunks(answer.chunks, arguments.text("output"), "an archive")
    if context.json and arguments.text("output") is not None:
        context.answer([{"name": name, "result": "exported"} for name in arguments.words])
    return 0


def build_debian(arguments: Arguments, context: Context) -> int:
    from casemate.cli.progress import follow

    suite, *packages = arguments.words
    tag = arguments.text("tag")
    if tag is None:
        raise usage("`casemate image build-debian` wants --tag NAME[:TAG]", path="image build-debian")
    packages += [part for text in arguments.texts("package") for part in text.split(",") if part]
    request: dict[str, object] = {"suite": suite, "tag": tag}
    if packages:
        request["packages"] = packages
    for name in ("variant", "mirror"):
        text = arguments.text(name)
        if text is not None:
            request[name] = text
    command = arguments.text("cmd")
    if command is not None:
        request["command"] = command.split()
    if arguments.texts("env"):
        from casemate.cli.asked.environment import variables

        request["env"] = variables(arguments.texts("env"), [])
    if arguments.texts("label"):
        from casemate.cli.asked.environment import labels

        request["labels"] = labels(arguments.texts("label"), [])
    ended = follow(context, context.client.post("/v1/images/build-debian", request), arguments.on("quiet"), 2)
    if context.json:
        context.answer(ended)
    else:
        context.write(f"{clean(_image_of(ended))}\n")
    return 0


_QUIET = switch("quiet", "Do not show the progress", "q")
_FORM = value("form", "FORMAT", "docker-archive (default) or oci-archive", "", "Options", ",".join(FORMATS), "format")
_OUTPUT = value("output", "FILE", "Write to a file instead of standard output", "o", "Options", "file")
_CMD = value("cmd", "COMMAND", "Default command of the image, its words separated by spaces")
_ENV = values("env", "NAME=VALUE", "Environment variable of the image", "e")

IMPORT = Command(
    "[OPTIONS] FILE|- [NAME[:TAG]]",
    import_,
    (
        value(
            "form",
            "FORMAT",
            "What FILE is: auto (default), docker-archive, oci-archive, rootfs",
            "",
            "Options",
            "auto,docker-archive,oci-archive,rootfs",
            "format",
        ),
        values("change", "INSTRUCTION", "CMD [...] or ENV NAME=value, for a root file system", "c"),
        _CMD,
        _ENV,
        _QUIET,
    ),
    1,
    2,
    ("file",),
    "The archive may be what `docker save`, an OCI tool or `tar` of a root file system made; auto takes what holds no\n"
    "image as a root file system, for which NAME is needed.",
    ("casemate image import app.tar", "tar -C rootfs -c . | casemate image import - app:1"),
)
EXPORT = Command(
    "[OPTIONS] IMAGE [IMAGE...]",
    export,
    (_FORM, _OUTPUT),
    1,
    None,
    ("image",),
    "",
    ("casemate image export -o app.tar app:1",),
)
LOAD = Command(
    "[OPTIONS]",
    load,
    (value("input", "FILE", "Read a file instead of standard input", "i", "Options", "file"), _QUIET),
    0,
    0,
    (),
    "",
    ("casemate load -i app.tar", "docker save app:1 | casemate load"),
)
SAVE = Command(
    "[OPTIONS] IMAGE [IMAGE...]",
    export,
    (_FORM, _OUTPUT),
    1,
    None,
    ("image",),
    "",
    ("casemate save app:1 | docker load",),
)
BUILD_DEBIAN = Command(
    "[OPTIONS] SUITE [PACKAGE...]",
    build_debian,
    (
        value("tag", "NAME[:TAG]", "Name of the image", "t"),
        values("package", "PACKAGE,...", "Packages; the words after SUITE do the same", "p"),
        value(
            "variant",
            "VARIANT",
            "Which base: essential (default), minbase, apt, custom, extract",
            "",
            "Options",
            "essential,minbase,apt,custom,extract",
        ),
        value("mirror", "URL", "Debian mirror"),
        _CMD,
        _ENV,
        values("label", "KEY=VALUE", "Label of the image", "l"),
        _QUIET,
    ),
    1,
    None,
    (),
    "",
    ("casemate image build-debian --tag debian:12 bookworm", "casemate image build-debian -t tools:1 bookworm curl jq"),
)
