"""A pod's own namespaces, pinned as files: user, network, ipc and uts, the last three owned by the first.

Made by one clone(2) of a child that runs nothing but libc's ``usleep``: no program is executed and no Python runs
in it (decision 0031 has the figures). A network namespace must be *born* inside the pod's user namespace: only
its owner may mount the sysfs that shows it, set its sysctls, and use a CAP_NET_ADMIN that was granted. Should the
daemon be killed in between, the child ends by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from casemate.host import mounts, syscalls
from casemate.host.netns import in_own_thread
from casemate.spec.errors import CasemateError

#: Type of the OCI specification -> name below /proc/<pid>/ns, and the flag of clone(2).
KINDS: Mapping[str, tuple[str, int]] = {
    "user": ("user", 0x1000_0000),
    "network": ("net", 0x4000_0000),
    "ipc": ("ipc", 0x0800_0000),
    "uts": ("uts", 0x0400_0000),
}
_CLONE_VM, _SIGCHLD = 0x100, 17
#: Far longer than the few hundred microseconds of work; short enough for a leftover of a crash to be gone.
_CHILD_LIFE_US = 5_000_000
_STACK_BYTES = 32_768


class SandboxFailed(CasemateError):
    code = "isolation.sandbox_failed"
    title = "The namespaces of a pod could not be made"
    remedy = "Check `sysctl user.max_user_namespaces user.max_net_namespaces`; `casemate system doctor` looks too."


async def create(pins: Mapping[str, Path], first_id: int, count: int, hostname: str) -> None:
    """Make a namespace of each kind of *pins* and pin it at that path; ids 0..*count*-1 are *first_id*.. outside.

    ``user`` must be among them. Nothing stays on failure. Raises :class:`SandboxFailed`.
    """
    # A thread of its own: the child shares the caller's stack guard and thread-local storage until it is gone.
    try:
        await in_own_thread(lambda: _create(pins, first_id, count, hostname))
    except OSError as error:
        raise SandboxFailed(f"namespaces {', '.join(pins)} for ids {first_id}..: {error}") from error


def _create(pins: Mapping[str, Path], first_id: int, count: int, hostname: str) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    stack = ctypes.create_string_buffer(_STACK_BYTES)
    flags = _CLONE_VM | _SIGCHLD
    for kind in pins:
        flags |= KINDS[kind][1]
    pid = _clone_sleeper(stack, flags)
    done: list[Path] = []
    try:
        line = f"0 {first_id} {count}\n"
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{name}").write_text(line)
        for kind, pin in pins.items():
            _pin(f"/proc/{pid}/ns/{KINDS[kind][0]}", pin)
            done.append(pin)
        if "uts" in pins:
            _set_hostname(pid, hostname)
    except BaseException:
        for pin in done:
            remove_pin(pin)
        raise
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    del stack


def _clone_sleeper(stack: ctypes.Array[ctypes.c_char], flags: int) -> int:
    # The stack grows down; its top must be aligned to 16 bytes.
    top = (ctypes.addressof(stack) + len(stack) - 64) & ~15
    sleep = ctypes.cast(syscalls.libc_function("usleep"), ctypes.c_void_p)  # type: ignore[arg-type]
    clone = syscalls.libc_function("clone")
    pid = clone(sleep, ctypes.c_void_p(top), ctypes.c_int(flags), ctypes.c_void_p(_CHILD_LIFE_US))
    if pid < 0:
        raise syscalls.last_error(f"clone {flags:#x}")
    return pid


def _pin(source: str, pin: Path) -> None:
    # O_EXCL: a pin that is there belongs to somebody.
    os.close(os.open(pin, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    try:
        syscalls.mount(source, pin, None, syscalls.MS_BIND)
    except BaseException:
        pin.unlink()
        raise


def _set_hostname(pid: int, hostname: str) -> None:
    number = os.open(f"/proc/{pid}/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # This thread ends with the work, so nothing else of the daemon ever sees the name.
        syscalls.setns(number, KINDS["uts"][1])
    finally:
        os.close(number)
    name = hostname.encode()
    if syscalls.libc_function("sethostname")(name, len(name)) < 0:
        raise syscalls.last_error("sethostname")


def remove_pin(pin: Path) -> None:
    """Take a pin away; the namespace goes with its last process. May be repeated."""
    mounts.unmount(pin, detach=True)
    with contextlib.suppress(FileNotFoundError):
        pin.unlink()


def is_pinned(pin: Path) -> bool:
    """Whether a namespace is at *pin* (not after a reboot)."""
    try:
        return pin.lstat().st_dev == Path("/proc/self/ns/user").stat().st_dev
    except OSError:
        return False
