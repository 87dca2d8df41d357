"""Child of :func:`casemate.host.safe_path.open_as`: becomes the user, opens one path, hands the descriptor over.

Run as a file with ``python -I -S``; imports nothing of casemate's. Arguments: uid, gid, groups (comma-separated),
``read`` or ``write``, path. Descriptor 3 is a SOCK_SEQPACKET socket:
it gets an O_PATH descriptor, or the number of the error as text.
"""

import ctypes
import os
import sys
from _socket import SCM_RIGHTS, SOL_SOCKET, socket

_FACCESSAT2, _AT_EMPTY_PATH = 439, 0x1000
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38


def main() -> int:
    uid, gid = int(sys.argv[1]), int(sys.argv[2])
    groups = [int(part) for part in sys.argv[3].split(",") if part]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return 2
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    # From root to a user: permitted, effective and ambient capabilities all go with this call (capabilities(7)).
    os.setresuid(uid, uid, uid)
    # Not to be traced by that user, who could make it pass on another descriptor.
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        return 2
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid):
        return 2
    channel = socket(fileno=3)
    try:
        number = os.open(sys.argv[5], os.O_PATH | os.O_CLOEXEC)
        wanted = os.R_OK | (os.W_OK if sys.argv[4] == "write" else 0)
        if os.fstat(number).st_mode & 0o170000 == 0o040000:
            wanted |= os.X_OK
        # Asked of the descriptor: the name may mean something else by now.
        if libc.syscall(_FACCESSAT2, number, b"", wanted, _AT_EMPTY_PATH) != 0:
            raise OSError(ctypes.get_errno(), "access")
    except OSError as error:
        channel.send(str(error.errno).encode())
        return 0
    channel.sendmsg([b"0"], [(SOL_SOCKET, SCM_RIGHTS, number.to_bytes(4, sys.byteorder))])
    return 0


if __name__ == "__main__":
    sys.exit(main())
