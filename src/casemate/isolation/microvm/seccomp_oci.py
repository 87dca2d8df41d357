"""An engine's seccomp profile (OCI config-linux.md, "Seccomp") in the form that our compiler takes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from casemate.isolation.microvm.errors import BundleUnsupported

_EPERM = 1
#: SCMP_ACT_NOTIFY is missing: the descriptor by which the host would answer cannot leave the machine.
ACTIONS = (
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
)
OPERATORS = ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")
#: Guests are x86-64: what a profile says of other machines' system calls never comes to pass.
_NATIVE = "SCMP_ARCH_X86_64"
_ARCHITECTURES = (_NATIVE, "SCMP_ARCH_X86", "SCMP_ARCH_X32")
#: seccomp(2). Of a single thread that executes next, TSYNC says nothing; it is taken all the same.
FLAGS = {"SECCOMP_FILTER_FLAG_TSYNC": 1, "SECCOMP_FILTER_FLAG_LOG": 2, "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4}
#: Bounds on what is compiled: the field's largest profile has 60 rules with 430 names.
MAX_RULES, MAX_NAMES, MAX_ARGS = 1024, 8192, 6
_U32, _U64 = (1 << 32) - 1, (1 << 64) - 1


def normalised(profile: Mapping[str, Any]) -> dict[str, Any]:
    """*profile* with every default filled in. :class:`BundleUnsupported` names what a guest cannot do."""
    default = _action(profile.get("defaultAction"), "the default action")
    rules = _rows(profile.get("syscalls"), "syscalls", MAX_RULES)
    if sum(len(_rows(rule.get("names"), "names", MAX_NAMES, str)) for rule in rules) > MAX_NAMES:
        raise BundleUnsupported(f"seccomp: more than {MAX_NAMES} names of system calls")
    asked = _rows(profile.get("architectures"), "architectures", 64, str)
    return {
        "defaultAction": default,
        "defaultErrnoRet": _errno(profile.get("defaultErrnoRet")),
        "architectures": [_NATIVE, *(name for name in _ARCHITECTURES[1:] if name in asked)],
        "syscalls": [_rule(rule) for rule in rules],
    }


def flags(profile: Mapping[str, Any]) -> int:
    """The profile's flags as seccomp(2) takes them."""
    found = 0
    for name in _rows(profile.get("flags"), "flags", 64, str):
        if name not in FLAGS:
            raise BundleUnsupported(f"seccomp flag {name[:60]!r}; allowed are {', '.join(FLAGS)}")
        found |= FLAGS[name]
    return found


def _rule(rule: Mapping[str, Any]) -> dict[str, Any]:
    names = list(rule.get("names") or ())
    return {
        "names": names,
        "action": _action(rule.get("action"), f"the action for {', '.join(names)[:60]}"),
        "errnoRet": _errno(rule.get("errnoRet")),
        "args": [_argument(one) for one in _rows(rule.get("args"), "args", MAX_ARGS)],
    }


def _argument(one: Mapping[str, Any]) -> dict[str, Any]:
    found = {"index": one.get("index", 0), "value": one.get("value", 0), "valueTwo": one.get("valueTwo", 0)}
    op = str(one.get("op")).removeprefix("SCMP_CMP_")
    numbers = all(type(value) is int and 0 <= value <= _U64 for value in found.values())
    if not numbers or found["index"] > MAX_ARGS - 1 or op not in OPERATORS:
        raise BundleUnsupported(f"seccomp argument {str(one)[:120]}; index is 0 to 5, op one of {', '.join(OPERATORS)}")
    return {**found, "op": f"SCMP_CMP_{op}"}


def _action(name: object, what: str) -> str:
    if name == "SCMP_ACT_NOTIFY":
        raise BundleUnsupported(
            f"seccomp: {what} is SCMP_ACT_NOTIFY, whose listener would be a descriptor out of the virtual machine"
        )
    if not isinstance(name, str) or name not in ACTIONS:
        raise BundleUnsupported(f"seccomp: {what} is {str(name)[:40]!r}; allowed are {', '.join(ACTIONS)}")
    return name


def _errno(value: object) -> int:
    if value is None:
        return _EPERM
    if type(value) is not int or not 0 <= value <= _U32:
        raise BundleUnsupported(f"seccomp: errnoRet is {str(value)[:40]!r}; allowed is a number of 32 bits")
    return value & 0xFFFF


def _rows(value: object, what: str, most: int, kind: type = dict) -> list[Any]:
    """A list of *kind* that may be missing."""
    rows = [] if value is None else value
    if not isinstance(rows, list) or len(rows) > most or not all(isinstance(one, kind) for one in rows):
        raise BundleUnsupported(f"seccomp: {what} must be a list of at most {most}")
    return rows
