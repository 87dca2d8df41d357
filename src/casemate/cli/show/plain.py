"""Text that is safe on a terminal: what a container, an image or a daemon wrote may not steer it."""

from __future__ import annotations

import posix


def clean(text: str, newlines: bool = False) -> str:
    """*text* with control and other unprintable characters escaped (``\\x1b``); line breaks stay if *newlines*."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or (newlines and letter == "\n") else _escaped(letter) for letter in text
    )


def _escaped(letter: str) -> str:
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(letter) or letter.encode("unicode_escape").decode("ascii")


def quoted(text: str) -> str:
    """*text* in double quotes, escaped, as ``ps`` shows a command."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{clean(escaped)}"'


def shortened(text: str, length: int) -> str:
    """At most *length* characters, the last an ellipsis where something was cut."""
    return text if len(text) <= length else text[: length - 1] + "…"


def coloured(text: str, code: str, fd: int) -> str:
    """*text* in the SGR colour *code* where *fd* is a terminal and NO_COLOR (no-color.org) is not set."""
    if posix.environ.get(b"NO_COLOR") or posix.environ.get(b"TERM") == b"dumb" or not posix.isatty(fd):
        return text
    return f"\x1b[{code}m{text}\x1b[0m"
