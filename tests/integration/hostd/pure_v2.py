"""hostd as on a host of pure cgroup v2: in a mount namespace of its own, with cgroup2 alone at /sys/fs/cgroup.

Which controllers it has is what no v1 hierarchy of this machine holds: often none. Placement, listing, freezing and
killing need none.
"""

from __future__ import annotations

import contextlib
import sys

from casemate.host import syscalls
from casemate.hostd import daemon

ROOT = "/sys/fs/cgroup"

if __name__ == "__main__":
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, "/", None, syscalls.MS_PRIVATE | syscalls.MS_REC)
    with contextlib.suppress(OSError):
        while True:
            syscalls.umount2(ROOT, syscalls.MNT_DETACH)
    syscalls.mount("cgroup2", ROOT, "cgroup2", 0)
    sys.exit(daemon.main(sys.argv[1:]))
