"""Mount options of the OCI specification as the flags of mount(2) and the rest as data. Pure."""

from __future__ import annotations

from collections.abc import Iterable

BIND = 4096
_SET = {
    "ro": 1,
    "nosuid": 2,
    "nodev": 4,
    "noexec": 8,
    "sync": 16,
    "remount": 32,
    "dirsync": 128,
    "nosymfollow": 256,
    "noatime": 1024,
    "nodiratime": 2048,
    "bind": 4096,
    "rbind": 4096 | 16384,
    "relatime": 1 << 21,
    "strictatime": 1 << 24,
    "lazytime": 1 << 25,
    "tmpcopyup": 1 << 40,  # ours: wire.h, MOUNT_COPY_UP
}
_CLEAR = {
    **{"rw": 1, "suid": 2, "dev": 4, "exec": 8, "async": 16, "atime": 1024, "diratime": 2048, "norelatime": 1 << 21},
    **{"symfollow": 256, "nostrictatime": 1 << 24, "nolazytime": 1 << 25},
}
#: For what is mounted below, too (mount_setattr(2), AT_RECURSIVE). In a guest a shared folder is one mount with all
#: that is below it, and what it makes itself has nothing below it yet.
_RECURSIVE = frozenset(
    (
        *("rro", "rrw", "rnosuid", "rsuid", "rnodev", "rdev", "rnoexec", "rexec", "rnodiratime", "rdiratime"),
        *("rnoatime", "ratime", "rrelatime", "rnorelatime", "rstrictatime", "rnostrictatime", "rnosymfollow"),
        "rsymfollow",
    )
)
#: A bind's owners are those of the mount's own map.
IDMAPS = frozenset(("idmap", "ridmap"))
#: What a bind mount and a root get; private and slave are what every mount of a guest is that shares none with anybody.
_BELOW = 1 << 41  # ours: wire.h, MOUNT_PROPAGATION_BELOW
PROPAGATION = {
    "shared": 1 << 20,
    "rshared": 1 << 20 | _BELOW,
    "unbindable": 1 << 17,
    "runbindable": 1 << 17 | _BELOW,
    **dict.fromkeys(("private", "rprivate", "slave", "rslave"), 0),
}
_ANY_PROPAGATION = 1 << 20 | 1 << 17 | _BELOW
_NOTHING = frozenset(("defaults", "notmpcopyup", *IDMAPS))
#: All that is known, which ``casemate-vm features`` tells engines: shim/report.c.
KNOWN = frozenset((*_SET, *_CLEAR, *PROPAGATION, *_RECURSIVE, *_NOTHING))


def plain(option: str) -> str:
    """The option that says of one mount what *option* says of all below it."""
    return option[1:] if option in _RECURSIVE else option


def parse(options: Iterable[str]) -> tuple[int, str]:
    """The flags, and what is left for the file system, joined by commas."""
    flags = 0
    data: list[str] = []
    for option in map(plain, options):
        if option in _SET:
            flags |= _SET[option]
        elif option in _CLEAR:
            flags &= ~_CLEAR[option]
        elif option in PROPAGATION:
            flags = flags & ~_ANY_PROPAGATION | PROPAGATION[option]
        elif option not in _NOTHING:
            data.append(option)
    return flags, ",".join(data)
