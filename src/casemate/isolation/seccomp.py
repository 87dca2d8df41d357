"""The seccomp profile of a container: pure, from its capabilities and the machine.

Default action: ENOSYS. A call that is newer than this list must look like one that the kernel does not have, so
that programs take their older way (with EPERM, glibc 2.39's ``fchmodat`` and ``clone3`` fail for good); calls that
we know and refuse answer EPERM. Docker has the same effect by a stub that runc puts before its filter.
"""

from __future__ import annotations

import functools
from typing import Any

from casemate.isolation import seccomp_groups as groups

EPERM, EINVAL, ENOSYS = 1, 22, 38

#: x32 is left out: the same calls by other numbers, used by nothing, and the source of filter by-passes.
ARCHITECTURES: dict[str, tuple[str, ...]] = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86"),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
}
_LOW_32 = 0xFFFF_FFFF
#: CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET: a new namespace takes CAP_SYS_ADMIN (as mount does).
NAMESPACE_FLAGS = 0x7E02_0000
#: Linux, SVR4 compatibility bits that emulators and old 32-bit programs set, and the query.
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFF_FFFF)
_AF_NETLINK, _AF_ALG, _AF_VSOCK, _AF_END = 16, 38, 40, 48
_NETLINK_AUDIT, _NETLINK_END = 9, 32

Rule = dict[str, Any]


def _argument(index: int, operator: str, value: int, second: int = 0) -> dict[str, Any]:
    return {"index": index, "value": value, "valueTwo": second, "op": f"SCMP_CMP_{operator}"}


def _allow(names: tuple[str, ...], *arguments: dict[str, Any]) -> Rule:
    rule: Rule = {"names": list(names), "action": "SCMP_ACT_ALLOW"}
    if arguments:
        rule["args"] = list(arguments)
    return rule


def _refuse(names: tuple[str, ...], errno: int, *arguments: dict[str, Any]) -> Rule:
    rule: Rule = {"names": list(names), "action": "SCMP_ACT_ERRNO", "errnoRet": errno}
    if arguments:
        rule["args"] = list(arguments)
    return rule


def allowed_names(capabilities: frozenset[str], machine: str) -> frozenset[str]:
    """The calls allowed whatever their arguments."""
    found: set[str] = set()
    for _, text in groups.ALWAYS.values():
        found.update(groups.names(text))
    if machine in groups.BY_MACHINE:
        found.update(groups.names(groups.BY_MACHINE[machine][1]))
    for capability, (_, text) in groups.BY_CAPABILITY.items():
        if capability in capabilities:
            found.update(groups.names(text))
    if "CAP_SYS_ADMIN" in capabilities:
        found.update(("clone", "clone3"))
    return frozenset(found)


def refused_names(allowed: frozenset[str]) -> frozenset[str]:
    """The calls that answer EPERM: known, and not in *allowed*."""
    found: set[str] = set()
    for _, text in (*groups.BY_CAPABILITY.values(), *groups.NEVER.values()):
        found.update(groups.names(text))
    return frozenset(found) - allowed


def _blocks(values: range) -> list[tuple[int, int]]:
    """*values* as (mask, datum) pairs over the low 32 bits: the only part of an int argument that the kernel reads.

    A plain comparison is of 64 bits: ``GT 40`` would let pass ``0x1_0000_0028``, which the kernel takes for 40.
    """
    found = []
    low = values.start
    while low < values.stop:
        size = low & -low or 1 << 31
        while low + size > values.stop:
            size >>= 1
        found.append((_LOW_32 & ~(size - 1), low))
        low += size
    return found


def _socket_rules() -> list[Rule]:
    """``socket`` by family, and never NETLINK_AUDIT.

    AF_VSOCK reaches the host of a virtual machine past every network namespace; AF_ALG is kernel crypto that few
    use and many exploits began with. Both meet the default action: a rule of their own would be one too many for
    libseccomp, which gives 32-bit x86's ``socketcall`` a rule beside each of these. That call hides its arguments
    from every filter, so 32-bit programs do reach the two families (decision 0032). An audit socket answers
    EINVAL: programs then go on without audit (sudo, login).
    """
    rules: list[Rule] = []
    for families in (range(_AF_NETLINK), range(17, _AF_ALG), range(39, _AF_VSOCK), range(41, _AF_END)):
        for mask, datum in _blocks(families):
            rules.append(_allow(("socket",), _argument(0, "MASKED_EQ", mask, datum)))
    netlink = _argument(0, "MASKED_EQ", _LOW_32, _AF_NETLINK)
    for protocols in (range(_NETLINK_AUDIT), range(_NETLINK_AUDIT + 1, _NETLINK_END)):
        for mask, datum in _blocks(protocols):
            rules.append(_allow(("socket",), netlink, _argument(2, "MASKED_EQ", mask, datum)))
    rules.append(_refuse(("socket",), EINVAL, netlink, _argument(2, "MASKED_EQ", _LOW_32, _NETLINK_AUDIT)))
    return rules


@functools.lru_cache(maxsize=32)
def profile(capabilities: frozenset[str], machine: str) -> dict[str, Any]:
    """``linux.seccomp`` of the OCI runtime specification for *capabilities* on *machine* (``uname -m``).

    The caller must not change it: it is kept for the next container.
    """
    allowed = allowed_names(capabilities, machine)
    rules = [
        _allow(tuple(sorted(allowed))),
        _refuse(tuple(sorted(refused_names(allowed))), EPERM),
        *(_allow(("personality",), _argument(0, "EQ", value)) for value in PERSONALITIES),
        *_socket_rules(),
    ]
    if "clone" not in allowed:
        # clone3 keeps its flags in memory, where no filter can see them: ENOSYS makes glibc fall back to clone.
        rules.append(_allow(("clone",), _argument(0, "MASKED_EQ", NAMESPACE_FLAGS, 0)))
        rules.append(_refuse(("clone3",), ENOSYS))
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": ENOSYS,
        "architectures": list(ARCHITECTURES.get(machine, ())),
        "syscalls": rules,
    }
