"""bpf(2): small programs put together here, loaded, and attached to an interface's ingress (tcx, Linux 6.6).

No compiler at run time, and no library: instructions are eight bytes each (linux/bpf.h, and the kernel's
Documentation/bpf/standardization). What is attached this way holds without the descriptor it was attached by, and goes
with the interface. Each failure is an :class:`OSError`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Iterable
from typing import NamedTuple

from casemate.host import syscalls

#: __NR_bpf: by machine for the few old tables of system calls, and what all others have.
_CALLS, _CALL = {"x86_64": 321, "s390x": 351, "ppc64le": 361}, 280
_PROG_LOAD, _PROG_ATTACH, _PROG_DETACH, _PROG_QUERY = 5, 8, 9, 16
_PROG_GET_FD_BY_ID, _OBJ_GET_INFO_BY_FD = 13, 15
_SCHED_CLS, _TCX_INGRESS = 3, 46
_F_REPLACE = 1 << 2
#: Number of lo in every network namespace.
_LOOPBACK = 1
#: What the kernel is asked for at most; it allows 64 programs at one place.
_MAX_ATTACHED = 64
_NAME_BYTES = 15
#: Of struct bpf_prog_info: as much as ends with the name, which has 16 bytes.
_INFO_BYTES, _INFO_NAME = 80, 64
#: Of union bpf_attr, for attaching: interface, program, place, flags, program to replace, its neighbour, revision.
_ATTACH = struct.Struct("=IIIIIIQ")

#: Fields of struct __sk_buff by offset, and what a program says that lets the next one at the same place go on.
PACKET_TYPE, PROTOCOL, VLAN_PRESENT, PRIORITY, DATA, DATA_END = 4, 16, 20, 32, 76, 80
NEXT = -1
_LOADS = {1: 0x71, 2: 0x69, 4: 0x61}
_JUMPS = {"!=": 0x56, ">=": 0x36, "&": 0x46}


class Jump(NamedTuple):
    """Leave for the program's end where the register's lower half compares so with *value*."""

    code: int
    register: int
    value: int
    other: int = 0


def instruction(code: int, into: int, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    """One instruction; registers 0 to 10."""
    assert max(into, source) <= 10
    registers = into | source << 4 if sys.byteorder == "little" else into << 4 | source
    return struct.pack("=BBhI", code, registers, offset, value & 0xFFFFFFFF)


def load(into: int, source: int, offset: int, size: int) -> bytes:
    """*size* (1, 2, 4) bytes from where the register *source* points, *offset* further."""
    return instruction(_LOADS[size], into, source, offset)


def store(into: int, offset: int, source: int) -> bytes:
    """Four bytes of the register *source* to where *into* points, *offset* further."""
    return instruction(0x63, into, source, offset)


def put(into: int, value: int) -> bytes:
    """*value* into the lower half of a register."""
    return instruction(0xB4, into, value=value)


def leave_if(register: int, comparison: str, value: int) -> Jump:
    """To the end where the register is ``!=`` or ``>=`` *value*, or shares a bit with it (``&``)."""
    return Jump(_JUMPS[comparison], register, value)


def leave_if_short(data: int, end: int, size: int, scratch: int) -> tuple[bytes | Jump, ...]:
    """To the end where fewer than *size* bytes lie between two registers' places."""
    return instruction(0xBF, scratch, data), instruction(0x07, scratch, value=size), Jump(0x2D, scratch, 0, end)


def program(parts: Iterable[bytes | Jump], answer: int) -> bytes:
    """The parts one after another, then the end, which every :class:`Jump` leads to: *answer*."""
    found = list(parts)
    whole = []
    for at, part in enumerate(found):
        if isinstance(part, Jump):
            whole.append(instruction(part.code, part.register, part.other, len(found) - at - 1, part.value))
        else:
            whole.append(part)
    return b"".join([*whole, put(0, answer), instruction(0x95, 0)])


def _call(command: int, attributes: bytes, what: str) -> tuple[int, bytes]:
    """bpf(2): what it gave, and the attributes as the kernel left them."""
    if sys.maxsize < 1 << 32:
        raise OSError(errno.ENOSYS, f"{what}: 32-bit machines are not served")
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    number = _CALLS.get(platform.machine(), _CALL)
    result = syscalls.libc_function("syscall")(
        ctypes.c_long(number), ctypes.c_long(command), buffer, ctypes.c_long(len(attributes))
    )
    if result < 0:
        raise syscalls.last_error(what)
    return result, buffer.raw


def load_ingress(name: str, code: bytes) -> int:
    """A descriptor (close-on-exec) of *code*, checked and translated by the kernel, for interfaces' ingress."""
    body, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"Apache-2.0")
    attributes = struct.pack(
        "=IIQQIIQII16s", _SCHED_CLS, len(code) // 8, ctypes.addressof(body), ctypes.addressof(licence), 0, 0, 0, 0, 0,
        name.encode()[:_NAME_BYTES],
    )  # fmt: skip
    number, _ = _call(_PROG_LOAD, attributes + struct.pack("=II", 0, _TCX_INGRESS), f"BPF program {name}")
    return number


def attach_ingress(index: int, descriptor: int, *, replace: int = 0) -> None:
    """Have the program look at all that comes in by the interface *index* of this network namespace: after those that
    there are, or in the place of the program *replace* (a descriptor).

    Another one's place is taken in 0.1 ms. For a new one the kernel waits until no processor looks at the old list, 10
    to 20 ms, and holds its one lock for links as long.
    """
    flags = _F_REPLACE if replace else 0
    attributes = _ATTACH.pack(index, descriptor, _TCX_INGRESS, flags, replace, 0, 0)
    _call(_PROG_ATTACH, attributes, f"BPF program at interface {index}")


def detach_ingress(index: int, descriptor: int) -> None:
    """Take the program away; the kernel waits as it does for a new one."""
    attributes = _ATTACH.pack(index, descriptor, _TCX_INGRESS, 0, 0, 0, 0)
    _call(_PROG_DETACH, attributes, f"BPF program off interface {index}")


def attached_ingress(index: int) -> list[tuple[int, str]]:
    """Number and name of each program at the interface *index*, in their order. Raises :class:`OSError`; of EINVAL
    where the kernel is older than Linux 6.6."""
    numbers = (ctypes.c_uint32 * _MAX_ATTACHED)()
    attributes = struct.pack("=IIIIQIIQQQQ", index, _TCX_INGRESS, 0, 0, ctypes.addressof(numbers), _MAX_ATTACHED,
                             0, 0, 0, 0, 0)  # fmt: skip
    try:
        _, answer = _call(_PROG_QUERY, attributes, f"BPF programs at interface {index}")
    except OSError as error:
        if error.errno == errno.ENOENT:
            return []
        raise
    count = min(int(struct.unpack_from("=I", answer, 24)[0]), _MAX_ATTACHED)
    found = []
    for number in numbers[:count]:
        descriptor = by_number(number)
        try:
            found.append((number, _name(descriptor)))
        finally:
            os.close(descriptor)
    return found


def by_number(number: int) -> int:
    """A descriptor of the loaded program with this number."""
    descriptor, _ = _call(_PROG_GET_FD_BY_ID, struct.pack("=III", number, 0, 0), f"BPF program {number}")
    return descriptor


def _name(descriptor: int) -> str:
    info = ctypes.create_string_buffer(_INFO_BYTES)
    attributes = struct.pack("=IIQ", descriptor, _INFO_BYTES, ctypes.addressof(info))
    _call(_OBJ_GET_INFO_BY_FD, attributes, "BPF program's description")
    return info.raw[_INFO_NAME:].partition(b"\0")[0].decode("ascii", "replace")


def serves_ingress(name: str, code: bytes) -> bool:
    """Whether this kernel takes *code*, and has the place for it (Linux 6.6). Changes nothing."""
    try:
        attached_ingress(_LOOPBACK)
        os.close(load_ingress(name, code))
    except OSError:
        return False
    return True
