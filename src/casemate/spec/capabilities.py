"""The default capability set with the reason for each, and what ``--cap-add`` and ``--cap-drop`` make of it.

Pure. Every capability here is held inside the pod's own user namespace: it gives power over what that namespace
owns, never over the host. The set is cut all the same: the kernel code that a capability opens is attack surface.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from casemate.spec.errors import InvalidArgument

#: What OCI images need when their programs start as root and give it up, and why.
DEFAULT: dict[str, str] = {
    "CAP_CHOWN": "package managers and entry points give files to the service's user",
    "CAP_DAC_OVERRIDE": "root in an image expects to read what it does not own",
    "CAP_FOWNER": "chmod and utimes on files of other users: tar, dpkg, rpm",
    "CAP_FSETID": "tar and install keep set-id bits on files that they change",
    "CAP_KILL": "a root supervisor signals workers that run as other users",
    "CAP_NET_BIND_SERVICE": "ports below 1024 for servers that do not read the sysctl",
    "CAP_SETFCAP": "package managers set file capabilities",
    "CAP_SETGID": "su, gosu, nginx and postgres change their groups",
    "CAP_SETPCAP": "programs drop capabilities from their own bounding set (setpriv, systemd tools)",
    "CAP_SETUID": "su, gosu, nginx and postgres change their user",
    "CAP_SYS_CHROOT": "sshd, postfix and mmdebstrap enter a chroot",
}

#: What Docker's default holds and ours does not, and what does the work instead.
LEFT_OUT: dict[str, str] = {
    "CAP_AUDIT_WRITE": "the kernel takes audit records from the first user namespace only",
    "CAP_MKNOD": "a user namespace cannot make device nodes; /dev has those that programs need",
    "CAP_NET_RAW": "ping works by net.ipv4.ping_group_range; raw and packet sockets can forge what the firewall sees",
}

#: Every capability up to Linux 6.x (capabilities(7)); those that the running kernel lacks are left out when applied.
ALL: tuple[str, ...] = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)
_NUMBER = {name: index for index, name in enumerate(ALL)}
DEFAULT_SET: tuple[str, ...] = tuple(sorted(DEFAULT, key=_NUMBER.__getitem__))


class CapabilityUnknown(InvalidArgument):
    code = "isolation.capability_unknown"
    title = "There is no such capability"
    remedy = "Use a name of capabilities(7), with or without CAP_, or ALL."


def normalise(name: str) -> str:
    """*name* as ``CAP_X``: any case, with or without the prefix; raises :class:`CapabilityUnknown`."""
    text = name.strip().upper()
    text = text if text.startswith("CAP_") else f"CAP_{text}"
    if text not in _NUMBER:
        raise CapabilityUnknown(f"{name[:60]!r} names no capability", name=name[:60])
    return text


def resolve(add: Iterable[str], drop: Iterable[str]) -> tuple[str, ...]:
    """The set that ``--cap-add`` and ``--cap-drop`` ask for, in the kernel's order.

    As Docker and Podman do: ``ALL`` in *add* starts from everything and takes *drop* away; ``ALL`` in *drop*
    starts from nothing and gives *add*; a name in both is an error.
    """
    added, dropped = _set(add), _set(drop)
    if added[0] and dropped[0]:
        raise InvalidArgument("ALL is both added and dropped")
    both = added[1] & dropped[1]
    if both:
        raise InvalidArgument(f"{', '.join(sorted(both))}: both added and dropped")
    if added[0]:
        found = set(ALL) - dropped[1]
    elif dropped[0]:
        found = added[1]
    else:
        found = (set(DEFAULT) | added[1]) - dropped[1]
    return ordered(found)


def _set(names: Iterable[str]) -> tuple[bool, set[str]]:
    plain = [name for name in names if name.strip().upper() != "ALL"]
    given = list(names) if isinstance(names, Sequence) else plain
    return len(given) != len(plain), {normalise(name) for name in plain}


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """*names* without doubles, in the kernel's order; raises :class:`CapabilityUnknown`."""
    return tuple(sorted({normalise(name) for name in names}, key=_NUMBER.__getitem__))


def beyond_default(names: Iterable[str]) -> tuple[str, ...]:
    """Those of *names* that need the grant ``capabilities``."""
    return tuple(name for name in ordered(names) if name not in DEFAULT)


def available(names: Iterable[str], bounding: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """*names* split into those within the host's bounding set (a bit mask, as /proc/self/status) and the others."""
    wanted = ordered(names)
    have = tuple(name for name in wanted if bounding >> _NUMBER[name] & 1)
    return have, tuple(name for name in wanted if name not in have)
