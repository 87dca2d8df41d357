"""Rules for devices: the agent's compiler against a slow evaluator, and what the host leaves out of them."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.isolation.microvm import devicerules
from casemate.isolation.microvm.devicerules import ANY, MAKE, READ, USUAL, WRITE, Rule
from casemate.isolation.microvm.errors import BundleUnsupported
from casemate.isolation.microvm.oci import DeviceRule

ROOT = Path(__file__).parents[4]
_DENY_ALL = DeviceRule(allow=False)

rules = st.builds(
    Rule,
    st.booleans(),
    st.sampled_from("abc"),
    st.integers(1, 7),
    st.sampled_from((ANY, 0, 1, 5, 10, 136, 254)),
    st.sampled_from((ANY, 0, 1, 3, 5, 200)),
)
questions = st.tuples(
    st.sampled_from("bc"),
    st.integers(0, 7),
    st.sampled_from((0, 1, 5, 10, 136, 254)),
    st.sampled_from((0, 1, 3, 5, 200)),
)


def allowed(given_rules: Sequence[Rule], kind: str, access: int, major: int, minor: int) -> bool:
    """The slow evaluator: the last rule that is of a kind of access decides it, and the usual ones come last."""
    for bit in (MAKE, READ, WRITE):
        question = Rule(True, kind, bit, major, minor)
        deciding = [one for one in (*given_rules, *USUAL) if one.covers(question)]
        if access & bit and not (deciding and deciding[-1].allow):
            return False
    return True


class _Program:
    """The agent's compiler (guest/agent/devices.c) as a library."""

    def __init__(self, folder: Path) -> None:
        library = folder / "devices.so"
        words = [
            "gcc",
            "-shared",
            "-fPIC",
            "-O1",
            "-D_GNU_SOURCE",
            "-o",
            str(library),
            str(ROOT / "guest/agent/devices.c"),
        ]
        subprocess.run(words, check=True, timeout=60)
        self._make = ctypes.CDLL(str(library)).devices_program
        self._make.restype = ctypes.c_size_t

    def __call__(self, given_rules: Sequence[Rule]) -> bytes:
        # struct device_rule: u8, char, u8, i32, i32
        wanted = b"".join(
            struct.pack("<BBBxii", one.allow, ord(one.kind), one.access, one.major, one.minor) for one in given_rules
        )
        code = ctypes.create_string_buffer(1500 * 8)
        length = self._make(wanted, ctypes.c_size_t(len(given_rules)), code)
        return code.raw[: 8 * length]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> _Program:
    if shutil.which("gcc") is None:
        pytest.skip("missing: gcc")
    return _Program(tmp_path_factory.mktemp("devices"))


def run(code: bytes, kind: str, access: int, major: int, minor: int) -> int:
    """What the kernel would make of *code*: the instructions that the compiler uses, any other is an error."""
    context = (access << 16 | {"b": 1, "c": 2}[kind], major, minor)
    registers = [0] * 10
    at = 0
    while True:
        operation, both, offset, value = struct.unpack_from("<BBhi", code, at * 8)
        to, of = both & 15, both >> 4
        at += 1
        match operation:
            case 0x61:  # to = *(u32 *)(of + offset)
                assert of == 1
                registers[to] = context[offset // 4]
            case 0xBC:
                registers[to] = registers[of]
            case 0x54:
                registers[to] &= value & 0xFFFF_FFFF
            case 0x74:
                registers[to] >>= value
            case 0x56 | 0x16:  # jump where not equal, where equal
                at += offset if (registers[to] != value & 0xFFFF_FFFF) == (operation == 0x56) else 0
            case 0xB7:
                registers[to] = value
            case 0x95:
                return registers[0]
            case _:
                raise AssertionError(f"an instruction {operation:x}")


@settings(max_examples=300, deadline=None)
@given(st.lists(rules, max_size=12), questions)
def test_the_program_says_what_the_rules_say(
    program: _Program, given_rules: list[Rule], question: tuple[str, int, int, int]
) -> None:
    assert run(program(given_rules), *question) == allowed(given_rules, *question)


@settings(max_examples=300, deadline=None)
@given(st.lists(rules, max_size=12), questions)
def test_what_is_left_out_decided_nothing(given_rules: list[Rule], question: tuple[str, int, int, int]) -> None:
    assert allowed(devicerules.reduced(given_rules), *question) == allowed(given_rules, *question)


def test_as_many_rules_as_are_allowed_fit(program: _Program) -> None:
    most = [Rule(False, "c", READ, number, number) for number in range(1, devicerules.MAX_RULES + 1)]
    assert 0 < len(program(most)) <= 1500 * 8
    assert program([*most, most[0]]) == b""


@pytest.mark.parametrize(
    "usual",
    [
        [],
        [_DENY_ALL],
        # Docker 20.10
        [
            _DENY_ALL,
            *(DeviceRule(True, "c", 1, minor, "rwm") for minor in (5, 3, 9, 8)),
            *(DeviceRule(True, "c", 5, minor, "rwm") for minor in (0, 1)),
            DeviceRule(False, "c", 10, 229, "rwm"),
        ],
        # containerd's CRI plug-in
        [_DENY_ALL, DeviceRule(True, "c", None, None, "m"), DeviceRule(True, "b", -1, -1, "m")],
    ],
)
def test_the_rules_of_every_engine_are_told_to_nobody(usual: list[DeviceRule]) -> None:
    assert devicerules.fields(usual) == []


def test_a_device_that_is_passed_is_told_and_what_is_replaced_is_said() -> None:
    (field,) = devicerules.fields([_DENY_ALL, DeviceRule(True, "c", 10, 229, "rw")])
    assert field.value == struct.pack("<BBBBii", 1, ord("c"), READ | WRITE, 0, 10, 229)
    (everything,) = devicerules.fields([_DENY_ALL, DeviceRule(True)])
    assert everything.value == struct.pack("<BBBBii", 1, ord("a"), 7, 0, ANY, ANY)
    (nothing,) = devicerules.fields([_DENY_ALL], replace=True)
    assert nothing.value == struct.pack("<BBBBii", 0, ord("a"), 7, 0, ANY, ANY)
    assert devicerules.fields([], replace=True) == []


@pytest.mark.parametrize(
    "broken",
    [DeviceRule(True, "p"), DeviceRule(True, "c", 1, 3, "rx"), DeviceRule(True, "c", 1 << 31, 3)],
)
def test_what_is_no_rule_is_refused(broken: DeviceRule) -> None:
    with pytest.raises(BundleUnsupported, match="rule for devices"):
        devicerules.fields([broken])


def test_more_rules_than_fit_are_refused() -> None:
    many = [DeviceRule(True, "c", 300, number, "rw") for number in range(devicerules.MAX_RULES + 1)]
    with pytest.raises(BundleUnsupported, match="129 rules"):
        devicerules.fields(many)
