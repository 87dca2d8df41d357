"""Environment variables and labels: from flags and from files."""

from __future__ import annotations

import posix

from casemate.cli.fail import bad_value, file_trouble, unreadable
from casemate.cli.variables import environment

#: An env-file above this is a mistake (ARG_MAX is 2 MiB for arguments and environment together).
MAX_FILE_BYTES = 4 << 20
_BOM = b"\xef\xbb\xbf"


def read_file(flag: str, path: str, limit: int = MAX_FILE_BYTES) -> bytes:
    """The file at *path*, at most *limit* bytes."""
    try:
        fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise unreadable(f"{flag}: {path[:200]!r}", error) from None
    try:
        parts: list[bytes] = []
        size = 0
        while data := posix.read(fd, 1 << 20):
            parts.append(data)
            size += len(data)
            if size > limit:
                raise file_trouble(f"{flag}: {path[:200]!r} is longer than {limit} bytes")
        return b"".join(parts)
    except OSError as error:
        raise unreadable(f"{flag}: {path[:200]!r}", error) from None
    finally:
        posix.close(fd)


def variables(texts: list[str], files: list[str]) -> list[str]:
    """``NAME=value`` of ``--env-file`` and then of ``--env``; a bare NAME takes the value that it has here, if any."""
    found: dict[str, str] = {}
    for path in files:
        for number, line in _lines("--env-file", path):
            name = line.partition("=")[0]
            if not name or " " in name or "\t" in name:
                raise bad_value(f"--env-file {path} line {number}", line, "lines NAME=value, the name without spaces")
            _add(found, line)
    for text in texts:
        if not text or text.startswith("=") or "\0" in text:
            raise bad_value("--env", text, "NAME=value, or NAME to pass on the value that it has here")
        _add(found, text)
    return [f"{name}={text}" for name, text in found.items()]


def _add(found: dict[str, str], text: str) -> None:
    name, equals, held = text.partition("=")
    if equals:
        found[name] = held
        return
    here = environment(name)
    if here is not None:
        found[name] = here


def labels(texts: list[str], files: list[str]) -> dict[str, str]:
    """``key=value`` of ``--label-file`` and then of ``--label``; a bare key has the empty value."""
    found: dict[str, str] = {}
    for path in files:
        for number, line in _lines("--label-file", path):
            _label(f"--label-file {path} line {number}", found, line)
    for text in texts:
        _label("--label", found, text)
    return found


def _label(flag: str, found: dict[str, str], text: str) -> None:
    key, _, held = text.partition("=")
    if not key.strip():
        raise bad_value(flag, text, "KEY=value")
    found[key.strip()] = held


def _lines(flag: str, path: str) -> list[tuple[int, str]]:
    data = read_file(flag, path).removeprefix(_BOM)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise file_trouble(f"{flag}: {path[:200]!r} is not UTF-8 at byte {error.start}") from None
    if "\0" in text:
        raise file_trouble(
            f"{flag}: {path[:200]!r} holds a zero byte in line {text[: text.index(chr(0))].count(chr(10)) + 1}"
        )
    found: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.removesuffix("\r").lstrip()
        if stripped and not stripped.startswith("#"):
            found.append((number, stripped))
    return found
