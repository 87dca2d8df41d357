"""Signals as a runtime's command line takes them: by number, by name, with or without SIG. Pure."""

from __future__ import annotations

from casemate.isolation.microvm.errors import BundleUnsupported

#: x86-64 (signal(7)), in the order of their numbers.
_NAMES = (
    *("HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM"),
    *("TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF"),
    *("WINCH", "IO", "PWR", "SYS"),
)
_NUMBERS = {name: number for number, name in enumerate(_NAMES, 1)}


def number_of(text: str) -> int:
    """A number from 1 to 64; :class:`BundleUnsupported` for anything else."""
    word = text.upper().removeprefix("SIG")
    number = int(word) if word.isascii() and word.isdigit() and len(word) <= 2 else _NUMBERS.get(word, 0)
    if not 1 <= number <= 64:
        raise BundleUnsupported(f"signal {text[:40]!r} is not known")
    return number
