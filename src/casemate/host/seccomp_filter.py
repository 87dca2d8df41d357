"""The seccomp filters that are upon a process of somebody else's, as the kernel has them (ptrace(2), seccomp(2)).

For a thread of its own: the tracer is the thread that asked. The kernel wants CAP_SYS_ADMIN of the host for it and a
tracer that is under no filter itself; elsewhere :class:`OSError`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import time

from casemate.host import syscalls

_SEIZE, _INTERRUPT, _DETACH, _GET_FILTER = 0x4206, 0x4207, 17, 0x420C
_WALL, _WNOHANG = 0x40000000, 1
#: A process may have 32 of them by its own doing; runsc and QEMU have one or two.
_MAX_FILTERS, _INSTRUCTION_BYTES = 32, 8
_STOP_S, _LOOK_S = 1.0, 0.001


def installed(pid: int) -> list[bytes]:
    """The programs of the filters upon *pid*, the last first; the process is stopped for less than a millisecond.

    Raises :class:`OSError`; ``TimeoutError`` where it does not stop within a second.
    """
    _ptrace(_SEIZE, pid)
    try:
        _ptrace(_INTERRUPT, pid)
        deadline = time.monotonic() + _STOP_S
        while os.waitpid(pid, _WALL | _WNOHANG)[0] != pid:
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {pid} did not stop")
            time.sleep(_LOOK_S)
        return _programs(pid)
    finally:
        with contextlib.suppress(OSError):
            _ptrace(_DETACH, pid)


def _programs(pid: int) -> list[bytes]:
    found = []
    for index in range(_MAX_FILTERS):
        try:
            length = _ptrace(_GET_FILTER, pid, index)
        except OSError as error:
            if error.errno == errno.ENOENT:
                break
            raise
        room = ctypes.create_string_buffer(length * _INSTRUCTION_BYTES)
        _ptrace(_GET_FILTER, pid, index, ctypes.addressof(room))
        found.append(room.raw)
    return found


def _ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> int:
    call = syscalls.libc_function("ptrace")
    result = int(call(ctypes.c_long(request), ctypes.c_long(pid), ctypes.c_void_p(address), ctypes.c_void_p(data)))
    if result < 0:
        raise syscalls.last_error(f"ptrace {request:#x} of process {pid}")
    return result
