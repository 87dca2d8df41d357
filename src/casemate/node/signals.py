"""Signals by name or number, as people and images write them. Pure."""

from __future__ import annotations

from casemate.spec.errors import InvalidArgument

#: Linux, x86 and arm (signal(7)); a table of our own, since the host's may be another architecture's.
_NAME_WORDS = """
HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU URG
XCPU XFSZ VTALRM PROF WINCH IO PWR SYS
"""
_NAMES = _NAME_WORDS.split()
NUMBERS: dict[str, int] = {
    **{name: number for number, name in enumerate(_NAMES, 1)},
    **{"IOT": 6, "POLL": 29, "CLD": 17, "RTMIN": 34, "RTMAX": 64},
}
KILL, TERM = 9, 15
_LAST = 64


def signal_number(text: str) -> int:
    """``TERM``, ``SIGTERM``, ``15``, ``SIGRTMIN+3`` as a number from 1 to 64."""
    word = text.strip().upper()
    if word.isascii() and word.isdigit() and len(word) <= 2 and 1 <= int(word) <= _LAST:
        return int(word)
    word = word.removeprefix("SIG")
    if word in NUMBERS:
        return NUMBERS[word]
    for base, sign in (("RTMIN+", 1), ("RTMAX-", -1)):
        offset = word.removeprefix(base)
        if offset != word and offset.isascii() and offset.isdigit() and len(offset) <= 2:
            number = NUMBERS[base[:-1]] + sign * int(offset)
            if NUMBERS["RTMIN"] <= number <= _LAST:
                return number
    raise InvalidArgument(f"{text[:40]!r} is no signal", remedy="Write a name as TERM or SIGTERM, or a number 1 to 64.")


def exit_reason(exit_code: int) -> str:
    """What an exit code above 128 says, as a word; empty otherwise."""
    number = exit_code - 128
    for name, value in NUMBERS.items():
        if value == number:
            return f"killed by SIG{name}"
    return ""
