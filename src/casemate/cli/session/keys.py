"""The keys that detach: a sequence (ctrl-p ctrl-q) found in a stream of bytes. Pure."""

from __future__ import annotations

from casemate.cli.fail import bad_value

DEFAULT = "ctrl-p,ctrl-q"
_NAMED = {"@": 0, "[": 27, "\\": 28, "]": 29, "^": 30, "_": 31}


def parse_keys(text: str) -> bytes:
    """The bytes of ``ctrl-p,ctrl-q`` or ``a,b,ctrl-x``; the empty text switches detaching off."""
    found = bytearray()
    for part in text.split(",") if text else ():
        letter = part.removeprefix("ctrl-")
        if len(letter) != 1 or not letter.isascii() or (not letter.isprintable()):
            raise bad_value("--detach-keys", text, "keys separated by commas, for example ctrl-p,ctrl-q or ctrl-],d")
        if part == letter:
            found += letter.encode()
        elif letter.isalpha():
            found.append(ord(letter.lower()) - 96)
        elif letter in _NAMED:
            found.append(_NAMED[letter])
        else:
            raise bad_value("--detach-keys", text, "ctrl- with a letter or one of @ [ \\ ] ^ _")
    return bytes(found)


class Detacher:
    """Holds back bytes that may begin the sequence: ``feed`` answers what goes on, and whether the sequence came."""

    __slots__ = ("_held", "_keys")

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        keys = self._keys
        if not keys:
            return data, False
        data = self._held + data
        at = data.find(keys)
        if at >= 0:
            self._held = b""
            return data[:at], True
        held = min(len(keys) - 1, len(data))
        while held and not keys.startswith(data[-held:]):
            held -= 1
        self._held = data[len(data) - held :]
        return data[: len(data) - held], False
