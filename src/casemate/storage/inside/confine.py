"""Giving everything up before the first look at the tree."""

import ctypes
import os
import resource
from typing import Any

_MS_REC, _MS_PRIVATE, _MS_BIND, _MNT_DETACH = 16384, 1 << 18, 4096, 2
#: Descriptors that the parent hands over.
_USERNS, _MOUNT_NAMESPACE, _NAMESPACE_ROOT = 3, 6, 7
_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
#: CAP_CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETFCAP: what files need; no MKNOD, no SYS_ADMIN, no SYS_CHROOT.
_KEPT_CAPABILITIES = (0, 1, 3, 4, 31)
#: One for each level of the deepest tree that is walked, and as much again.
_MAX_OPEN_FILES = 4096

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: Any) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def confine(task: dict[str, Any]) -> None:
    """Give everything up (see the module's text). Descriptor 3 is the user namespace; the tree is
    ``task["root"]``, or what the mount namespace of descriptor 6 shows, below descriptor 7 where there is one."""
    for kind, value in ((resource.RLIMIT_CPU, task["cpu_s"]), (resource.RLIMIT_AS, task["memory_bytes"])):
        resource.setrlimit(kind, (value, value))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = min(_MAX_OPEN_FILES, hard) if hard != resource.RLIM_INFINITY else _MAX_OPEN_FILES
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if task.get("cgroup_procs"):
        for path in task["cgroup_procs"]:
            number = os.open(path, os.O_WRONLY)
            os.write(number, b"0")
            os.close(number)
    _enter_tree(task)
    if task["userns"]:
        os.setgroups([])
        _call("setns", _USERNS, _CLONE_NEWUSER)
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    os.close(_USERNS)
    _drop_capabilities()
    os.umask(0)


def _enter_tree(task: dict[str, Any]) -> None:
    """Make the tree the root of a mount namespace of our own. Still as root, and without looking into the tree."""
    if task["mount_namespace"]:
        # A running container's own view, with its volumes. Its root is our root from here on.
        _call("setns", _MOUNT_NAMESPACE, _CLONE_NEWNS)
        os.close(_MOUNT_NAMESPACE)
        if task["namespace_root"]:
            # Before the namespace is copied: the copy takes the working folder along, and no descriptor.
            os.fchdir(_NAMESPACE_ROOT)
            os.close(_NAMESPACE_ROOT)
        _call("unshare", _CLONE_NEWNS | _CLONE_NEWNET)
        _call("mount", None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None)
        if task["namespace_root"]:
            # Not pivot_root: in a copy of a namespace of another user's, every mount but the root is locked. What
            # chroot leaves behind is a tmpfs with this folder and a proc, and CAP_SYS_CHROOT goes below.
            os.chroot(".")
        os.chdir("/")
        return
    _call("unshare", _CLONE_NEWNS | _CLONE_NEWNET)
    _call("mount", None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None)
    # A mount of its own, so that it can become the root and everything else can go.
    root = os.fsencode(task["root"])
    _call("mount", root, root, None, ctypes.c_ulong(_MS_BIND), None)
    os.chdir(root)
    _call("pivot_root", b".", b".")
    _call("umount2", b".", _MNT_DETACH)
    os.chdir("/")


def _drop_capabilities() -> None:
    _call("prctl", _PR_SET_NO_NEW_PRIVS, *(ctypes.c_ulong(one) for one in (1, 0, 0, 0)))
    _call("prctl", _PR_SET_DUMPABLE, *(ctypes.c_ulong(0),) * 4)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    low = sum(1 << number for number in _KEPT_CAPABILITIES if number < 32)
    data = (ctypes.c_uint32 * 6)(low, low, 0, 0, 0, 0)
    _call("capset", header, data)
