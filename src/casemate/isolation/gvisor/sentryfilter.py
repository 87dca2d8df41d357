"""What a seccomp program lets through: pure. It is run for each number, with all that a caller may choose left open.

seccomp(2): classic BPF over ``struct seccomp_data`` (number, architecture, instruction pointer, six arguments). A
number counts as allowed where some path leads to ALLOW, whatever the arguments must be for it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

from casemate.spec.errors import Corrupt

X86_64, AARCH64 = 0xC000003E, 0xC00000B7
_ALLOW, _ACTION = 0x7FFF0000, 0xFFFF0000
_NUMBER, _ARCHITECTURE = 0, 4

_EQUAL, _GREATER, _NOT_LESS, _ANY_BIT = 0x15, 0x25, 0x35, 0x45
#: BPF_MAXINSNS, and beyond all numbers of x86-64 and the numbers since Linux 5.1.
_MAX_INSTRUCTIONS, MAX_NUMBER = 4096, 512
_COMPARE: dict[int, Callable[[int, int], bool]] = {
    _EQUAL: lambda value, k: value == k,
    _GREATER: lambda value, k: value > k,
    _NOT_LESS: lambda value, k: value >= k,
    _ANY_BIT: lambda value, k: bool(value & k),
}

Instruction = tuple[int, int, int, int]


class FilterStrange(Corrupt):
    code = "isolation.filter_strange"
    title = "A seccomp filter has an instruction that nobody writes"
    remedy = "The list of system calls is left out; report the version of runsc."


def allowed(programs: Iterable[bytes], architecture: int = X86_64) -> tuple[int, ...]:
    """The numbers that every one of *programs* lets through for some arguments.

    Raises :class:`FilterStrange` for what is no program, or has instructions that runtimes do not use.
    """
    read = [_read(program) for program in programs]
    return tuple(
        number
        for number in range(MAX_NUMBER)
        if read and all(_lets_through(program, number, architecture) for program in read)
    )


def _read(program: bytes) -> list[Instruction]:
    if not program or len(program) % 8 or len(program) // 8 > _MAX_INSTRUCTIONS:
        raise FilterStrange(f"a program of {len(program)} bytes")
    return list(struct.iter_unpack("=HBBI", program))


def _lets_through(program: list[Instruction], number: int, architecture: int) -> bool:
    """Whether a path leads to ALLOW. The state is the place and the accumulator, None where the caller chooses it."""
    seen: set[tuple[int, int | None]] = set()
    todo: list[tuple[int, int | None]] = [(0, None)]
    while todo:
        state = todo.pop()
        if state in seen:
            continue
        seen.add(state)
        at, value = state
        if at >= len(program):
            raise FilterStrange("a jump beyond the end")
        operation, yes, no, k = program[at]
        match operation:
            case 0x06:  # return k
                if k & _ACTION == _ALLOW:
                    return True
            case 0x20:  # load a word
                todo.append((at + 1, {_NUMBER: number, _ARCHITECTURE: architecture}.get(k)))
            case 0x54:  # and k
                todo.append((at + 1, None if value is None else value & k))
            case 0x05:  # jump
                todo.append((at + 1 + k, value))
            case _ if operation in _COMPARE:
                if value is None or _COMPARE[operation](value, k):
                    todo.append((at + 1 + yes, value))
                if value is None or not _COMPARE[operation](value, k):
                    todo.append((at + 1 + no, value))
            case _:
                raise FilterStrange(f"operation {operation:#x} at {at}")
    return False
