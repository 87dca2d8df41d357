"""A seccomp profile as the kernel's own program, compiled once by libseccomp and kept.

crun and runc compile the profile anew for each container: 11 ms of a start here, 40 % of what crun takes. crun also
takes the finished program (annotation ``run.oci.seccomp_bpf_data``); whether it obeys is probed, never assumed.
Compiled here it is a binary tree: log n steps for a system call, where the runtimes' is a list.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import os
from collections.abc import Iterable, Mapping
from typing import Any

from casemate.spec.errors import CasemateError

ANNOTATION = "run.oci.seccomp_bpf_data"
#: SECCOMP_RET_* of linux/seccomp.h; those of errno and trace carry a number in their low half.
_ACTIONS: Mapping[str, int] = {
    "SCMP_ACT_KILL_PROCESS": 0x8000_0000,
    "SCMP_ACT_KILL": 0,
    "SCMP_ACT_KILL_THREAD": 0,
    "SCMP_ACT_TRAP": 0x0003_0000,
    "SCMP_ACT_ERRNO": 0x0005_0000,
    "SCMP_ACT_TRACE": 0x7FF0_0000,
    "SCMP_ACT_LOG": 0x7FFC_0000,
    "SCMP_ACT_ALLOW": 0x7FFF_0000,
}
_NUMBERED = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
_OPTIMIZE, _TREE = 8, 2
_ARCH: Mapping[str, int] = {
    "SCMP_ARCH_X86": 0x4000_0003,
    "SCMP_ARCH_X86_64": 0xC000_003E,
    "SCMP_ARCH_X32": 0x4000_003E,
    "SCMP_ARCH_ARM": 0x4000_0028,
    "SCMP_ARCH_AARCH64": 0xC000_00B7,
}
_COMPARE: Mapping[str, int] = {"NE": 1, "LT": 2, "LE": 3, "EQ": 4, "GE": 5, "GT": 6, "MASKED_EQ": 7}
_UNKNOWN = -1
#: The kernel's bound (BPF_MAXINSNS) times the size of an instruction.
_MAX_BYTES = 4096 * 8


class SeccompFailed(CasemateError):
    code = "isolation.seccomp_failed"
    title = "The seccomp profile could not be compiled"
    remedy = "Install libseccomp2; `casemate system doctor` shows whether the profile is compiled once or each time."


class _Compare(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        raise SeccompFailed(f"libseccomp.so.2: {error}") from error
    library.seccomp_init.restype = ctypes.c_void_p
    return library


def call_names(numbers: Iterable[int], architecture: int) -> tuple[str, ...]:
    """The sorted names of system calls by their *numbers* on *architecture* (AUDIT_ARCH); unknown ones are left out.

    Raises :class:`SeccompFailed` where there is no libseccomp.
    """
    library = _library()
    resolve = library.seccomp_syscall_resolve_num_arch
    # The library's caller frees the text.
    resolve.restype = ctypes.c_void_p
    free = ctypes.CDLL(None).free
    found = []
    for number in numbers:
        place = resolve(ctypes.c_uint32(architecture), ctypes.c_int(number))
        if place:
            found.append(ctypes.string_at(place).decode("ascii", "replace"))
            free(ctypes.c_void_p(place))
    return tuple(sorted(found))


class Compiler:
    """Compiles profiles; each once, as the annotation's text."""

    def __init__(self) -> None:
        self._lib = _library()
        self._default = 0
        self._kept: dict[int, tuple[dict[str, Any], str]] = {}

    def annotation(self, profile: dict[str, Any]) -> str:
        """The program of *profile* in base64. *profile* is one that :func:`casemate.isolation.seccomp.profile` keeps:
        it is known by its identity, and held, so that no other can have that."""
        known = self._kept.get(id(profile))
        if known is None:
            known = profile, base64.b64encode(self.compile(profile)).decode()
            if len(self._kept) >= 64:
                self._kept.clear()
            self._kept[id(profile)] = known
        return known[1]

    def compile(self, profile: dict[str, Any]) -> bytes:
        """The BPF program; raises :class:`SeccompFailed`."""
        self._default = _action(profile["defaultAction"], profile["defaultErrnoRet"])
        context = self._lib.seccomp_init(ctypes.c_uint32(self._default))
        if not context:
            raise SeccompFailed("libseccomp has no memory")
        handle = ctypes.c_void_p(context)
        try:
            for name in profile["architectures"][1:]:
                self._check(self._lib.seccomp_arch_add(handle, ctypes.c_uint32(_ARCH[name])), f"architecture {name}")
            # From libseccomp 2.5; without it the program is a list, and as right.
            self._lib.seccomp_attr_set(handle, _OPTIMIZE, ctypes.c_uint32(_TREE))
            for rule in profile["syscalls"]:
                self._add(handle, rule)
            return self._export(handle)
        finally:
            self._lib.seccomp_release(handle)

    def largest(self, profile: dict[str, Any]) -> dict[int, int]:
        """For each architecture of *profile* (AUDIT_ARCH) the largest number of a system call that it names."""
        names = {name.encode() for rule in profile["syscalls"] for name in rule["names"]}
        found = {}
        for architecture in (_ARCH[name] for name in profile["architectures"] if name != "SCMP_ARCH_X32"):
            resolve = self._lib.seccomp_syscall_resolve_name_arch
            found[architecture] = max((resolve(ctypes.c_uint32(architecture), name) for name in names), default=0)
        # Names that an architecture lacks have negative numbers there.
        return {architecture: number for architecture, number in found.items() if number > 0}

    def _add(self, handle: ctypes.c_void_p, rule: dict[str, Any]) -> None:
        number = _action(rule["action"], rule.get("errnoRet", 0))
        if number == self._default:
            return  # libseccomp refuses a rule that says what the default says
        compares = [
            _Compare(one["index"], _COMPARE[one["op"].removeprefix("SCMP_CMP_")], one["value"], one["valueTwo"])
            for one in rule.get("args", ())
        ]
        # libseccomp takes one condition for each argument; the runtimes of the field read several as one or the other.
        once = len({one.arg for one in compares}) == len(compares)
        for group in [compares] if once else [[one] for one in compares]:
            self._add_one(handle, ctypes.c_uint32(number), rule, group)

    def _add_one(
        self, handle: ctypes.c_void_p, action: ctypes.c_uint32, rule: dict[str, Any], compares: list[_Compare]
    ) -> None:
        array = (_Compare * len(compares))(*compares)
        for name in rule["names"]:
            number = self._lib.seccomp_syscall_resolve_name(name.encode())
            if number == _UNKNOWN:
                continue  # newer than this libseccomp: meets the default action, ENOSYS
            result = self._lib.seccomp_rule_add_array(handle, action, number, len(compares), array)
            self._check(result, f"rule for {name}")

    def _export(self, handle: ctypes.c_void_p) -> bytes:
        number = os.memfd_create("seccomp", os.MFD_CLOEXEC)
        try:
            self._check(self._lib.seccomp_export_bpf(handle, number), "export")
            data = os.pread(number, _MAX_BYTES + 1, 0)
        finally:
            os.close(number)
        if not data or len(data) > _MAX_BYTES:
            raise SeccompFailed(f"the program has {len(data)} bytes; allowed are 1 to {_MAX_BYTES}")
        return data

    @staticmethod
    def _check(result: int, what: str) -> None:
        if result < 0:
            raise SeccompFailed(f"{what}: {os.strerror(-result)}")


def _action(name: str, number: int) -> int:
    return _ACTIONS[name] | (number if name in _NUMBERED else 0)


def compiler() -> Compiler | None:
    """A compiler, or None where there is no libseccomp: the runtime then compiles, with its own."""
    with contextlib.suppress(SeccompFailed):
        return Compiler()
    return None
