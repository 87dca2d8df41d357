"""A shortened seccomp program answers as the one that it was made of: every number, and programs made at random."""

from __future__ import annotations

import itertools
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.isolation import seccomp
from casemate.isolation.seccomp_compile import Compiler
from casemate.isolation.seccomp_ranges import shorter
from casemate.spec import capabilities

X86_64, I386, X32_BIT = 0xC000_003E, 0x4000_0003, 0x4000_0000
LOAD, AND, RETURN, GO, TESTS = 0x20, 0x54, 0x06, 0x05, (0x15, 0x25, 0x35, 0x45)
FULL = 0xFFFF_FFFF
#: Of both architectures, those whose arguments our own profile looks at.
LOOKED_AT = {X86_64: {"socket": 41, "clone": 56, "personality": 135}, I386: {"socketcall": 102, "clone": 120}}
ARGUMENTS = (
    *(0, 1, 7, 8, 9, 10, 15, 16, 17, 31, 32, 37, 38, 39, 40, 41, 47, 48, 0x20000, 0x20008, 0x7E02_0000, 0x0200_0000),
    *(FULL, 1 << 32, 1 << 32 | 16, 1 << 63 | 40, (1 << 64) - 1),
)


def answer(program: bytes, number: int, architecture: int, arguments: tuple[int, ...] = ()) -> int:
    """What the kernel's filter machine answers (kernel/seccomp.c, net/core/filter.c)."""
    code = list(struct.iter_unpack("<HBBI", program))
    data = struct.pack("<IIQ6Q", number, architecture, 0x1234_5678_9ABC, *(*arguments, *(0,) * 6)[:6])
    loaded = at = 0
    while True:
        operation, yes, no, value = code[at]
        at += 1
        match operation:
            case 0x20:
                loaded = struct.unpack_from("<I", data, value)[0]
            case 0x54:
                loaded &= value
            case 0x05:
                at += value
            case 0x06:
                return int(value)
            case _:
                holds = {0x15: loaded == value, 0x25: loaded > value, 0x35: loaded >= value, 0x45: loaded & value}
                at += yes if holds[operation] else no


def check(program: bytes) -> None:
    """As the kernel does before it takes a program (bpf_check_classic)."""
    code = list(struct.iter_unpack("<HBBI", program))
    assert 0 < len(code) <= 4096
    assert code[-1][0] == RETURN
    for at, (operation, yes, no, value) in enumerate(code):
        far = value if operation == GO else max(yes, no)
        assert at + 1 + far < len(code) or operation in (RETURN, LOAD, AND)


@pytest.mark.parametrize("given_up", [frozenset(), frozenset(capabilities.DEFAULT_SET), frozenset(["CAP_SYS_ADMIN"])])
def test_our_profile_for_every_number(given_up: frozenset[str]) -> None:
    program = Compiler().compile(seccomp.profile(given_up, "x86_64"))
    found = shorter(program)
    check(found)
    # 1,119 and 197 for the default capabilities with libseccomp 2.5.4.
    assert len(found) * 4 < len(program)
    assert shorter(found) == found
    chance = random.Random(0)
    ends = (X32_BIT - 1, X32_BIT, FULL - 1, FULL, 1 << 31)
    for architecture in (X86_64, I386, 0xC000_00B7, 0):
        for number in (*range(1025), *(X32_BIT | low for low in range(0, 600, 7)), *ends):
            arguments = tuple(chance.choice(ARGUMENTS) for _ in range(6))
            wanted = answer(program, number, architecture, arguments)
            assert answer(found, number, architecture, arguments) == wanted, (hex(architecture), number, arguments)
    for architecture, numbers in LOOKED_AT.items():
        for number, first, third in itertools.product(numbers.values(), ARGUMENTS, ARGUMENTS):
            wanted = answer(program, number, architecture, (first, 0, third))
            assert answer(found, number, architecture, (first, 0, third)) == wanted, (number, first, third)


VALUES = st.sampled_from(
    (0, 1, 2, 3, 4, 7, 8, 0xFF, 0x100, X32_BIT, X86_64, I386, 0x7FFF_FFFF, 1 << 31, FULL - 1, FULL)
)
MASKS = st.sampled_from((0, 1, 6, 0xFF, FULL, FULL - 1, FULL - 7, 1 << 31, 0x7E02_0000, 0xFFFF_FF00))
OFFSETS = st.sampled_from((0, 4, 16, 20, 32))


@st.composite
def programs(draw: st.DrawFn) -> bytes:
    """Any program of the instructions that filters are made of: jumps forward, a return at the end."""
    length = draw(st.integers(1, 30))
    found = []
    for at in range(length):
        left = length - at - 1  # up to the last return, which is instruction number `length`
        match draw(st.integers(0, 9)):
            case 0 | 1:
                found.append((LOAD, 0, 0, draw(OFFSETS)))
            case 2:
                found.append((AND, 0, 0, draw(MASKS)))
            case 3:
                found.append((RETURN, 0, 0, draw(st.sampled_from((0, 0x7FFF_0000, 0x5_0001)))))
            case 4:
                found.append((GO, 0, 0, draw(st.integers(0, left))))
            case _:
                far = st.integers(0, left)
                found.append((draw(st.sampled_from(TESTS)), draw(far), draw(far), draw(VALUES)))
    found.append((RETURN, 0, 0, 0x7FFF_0000))
    return b"".join(struct.pack("<HBBI", *one) for one in found)


@settings(max_examples=300, deadline=None)
@given(programs(), st.lists(st.tuples(*(VALUES,) * 5), min_size=20, max_size=20))
def test_any_program(program: bytes, inputs: list[tuple[int, ...]]) -> None:
    found = shorter(program)
    check(found)
    assert len(found) <= len(program)
    for number, architecture, low, high, other in inputs:
        arguments = (high << 32 | low, 0, other)
        assert answer(found, number, architecture, arguments) == answer(program, number, architecture, arguments)


def test_jumps_that_are_too_far_for_a_comparison() -> None:
    """Every second number has an answer of its own: nothing joins, and the program is longer than a jump."""
    rows = [(LOAD, 0, 0, 0)]
    for number in range(0, 2000, 2):
        rows += [(0x15, 0, 1, number), (RETURN, 0, 0, 0x5_0000 | number)]
    program = b"".join(struct.pack("<HBBI", *one) for one in [*rows, (RETURN, 0, 0, 0)])
    found = shorter(program)
    check(found)
    for number in (*range(2002), FULL):
        assert answer(found, number, X86_64) == answer(program, number, X86_64)


@pytest.mark.parametrize(
    "code",
    [
        [(0x00, 0, 0, 5), (RETURN, 0, 0, 0)],  # an immediate load, which no filter of libseccomp's has
        [(LOAD, 0, 0, 0), (0x15, 9, 0, 5), (RETURN, 0, 0, 0)],  # a jump behind the end
        [(LOAD, 0, 0, 0)],
    ],
)
def test_what_is_not_understood_is_left(code: list[tuple[int, int, int, int]]) -> None:
    program = b"".join(struct.pack("<HBBI", *one) for one in code)
    assert shorter(program) == program


def test_what_would_take_too_long_is_left() -> None:
    """Conditions of many words that depend on each other: as many ranges as there are combinations."""
    rows: list[tuple[int, int, int, int]] = []
    for rule in range(200):
        for word in range(10):
            rows += [(LOAD, 0, 0, 16 + 4 * word), (0x15, 0, 2 * (10 - word) - 1, rule * 11 + word)]
        rows.append((RETURN, 0, 0, rule))
    program = b"".join(struct.pack("<HBBI", *one) for one in [*rows, (RETURN, 0, 0, 0)])
    found = shorter(program)
    for rule in (0, 7, 199):
        words = [rule * 11 + word for word in range(10)]
        arguments = tuple(words[at] | words[at + 1] << 32 for at in range(0, 10, 2))
        assert answer(found, 0, X86_64, arguments) == answer(program, 0, X86_64, arguments) == rule


def test_tests_of_bits_in_a_long_row_are_left() -> None:
    rows: list[tuple[int, int, int, int]] = []
    for bit in range(1300):
        rows += [(LOAD, 0, 0, 16), (AND, 0, 0, 0x7E02_0001 + bit), (0x15, 0, 1, 0), (RETURN, 0, 0, bit)]
    program = b"".join(struct.pack("<HBBI", *one) for one in [*rows[:4000], (RETURN, 0, 0, 0)])
    assert shorter(program) == program
