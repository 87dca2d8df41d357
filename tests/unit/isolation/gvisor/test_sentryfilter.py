"""What a seccomp program lets through: programs written by hand, libseccomp's, and no programs at all."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.isolation import seccomp_compile
from casemate.isolation.gvisor.sentryfilter import X86_64, FilterStrange, allowed

ALLOW, REFUSE = 0x7FFF0000, 0x00050001
LOAD_NUMBER, LOAD_ARGUMENT = (0x20, 0, 0, 0), (0x20, 0, 0, 16)


def program(*instructions: tuple[int, int, int, int]) -> bytes:
    return b"".join(struct.pack("=HBBI", *one) for one in instructions)


def test_a_number_that_is_named_is_allowed_and_no_other() -> None:
    one = program(LOAD_NUMBER, (0x15, 0, 1, 39), (0x06, 0, 0, ALLOW), (0x06, 0, 0, REFUSE))
    assert allowed([one]) == (39,)


def test_a_condition_on_an_argument_counts_as_allowed() -> None:
    one = program(
        *(LOAD_NUMBER, (0x15, 0, 3, 39), LOAD_ARGUMENT, (0x54, 0, 0, 0xFF), (0x15, 0, 1, 7)),
        *((0x06, 0, 0, REFUSE), (0x06, 0, 0, ALLOW)),
    )
    # Number 39 with other arguments falls to ALLOW, and so does each other number: both ends are reached.
    assert 39 in allowed([one])


def test_every_filter_must_allow() -> None:
    some = [program(LOAD_NUMBER, (0x15, 0, 1, n), (0x06, 0, 0, ALLOW), (0x06, 0, 0, REFUSE)) for n in (1, 2)]
    assert allowed(some) == ()
    assert allowed([]) == (), "no filter is no list"


def test_another_architecture_is_not_this_one() -> None:
    one = program((0x20, 0, 0, 4), (0x15, 1, 0, X86_64), (0x06, 0, 0, REFUSE), (0x06, 0, 0, ALLOW))
    assert len(allowed([one])) == 512
    assert allowed([one], 5) == ()


def test_what_libseccomp_wrote_is_read_as_it_was_meant() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {"names": ["read", "getpid"], "action": "SCMP_ACT_ALLOW"},
            {
                "names": ["personality"],
                "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": 8, "valueTwo": 0, "op": "SCMP_CMP_EQ"}],
            },
        ],
    }
    compiler = seccomp_compile.compiler()
    if compiler is None:
        pytest.skip("missing: libseccomp")
    numbers = allowed([compiler.compile(profile)])
    assert seccomp_compile.call_names(numbers, X86_64) == ("getpid", "personality", "read")


@pytest.mark.parametrize("data", [b"", b"x" * 7, b"\0" * 8 * 4097, program((0x20, 0, 0, 0)), program((0x99, 0, 0, 0))])
def test_what_is_no_program_is_refused(data: bytes) -> None:
    with pytest.raises(FilterStrange):
        allowed([data])


@given(st.lists(st.tuples(st.sampled_from((0x20, 0x06, 0x05, 0x15, 0x25, 0x35, 0x45, 0x54)), st.integers(0, 255),
                          st.integers(0, 255), st.integers(0, (1 << 32) - 1)), max_size=6))  # fmt: skip
def test_any_program_is_read_or_refused_and_ends(instructions: list[tuple[int, int, int, int]]) -> None:
    with contextlib.suppress(FilterStrange):
        assert len(allowed([program(*instructions)])) <= 512
