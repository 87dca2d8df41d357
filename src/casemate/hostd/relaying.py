"""The process of the relay of kept connections: started, found again, and given what takes privilege to make.

It works for both daemons and outlives both: started by hostd, so that it is of no unit of casemated's, as casemated's
user and without any capability. hostd reads nothing of what it relays; a request of its is a number and a descriptor.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import logging
import os
import pwd
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from casemate.host import pidfd, programs, seqpacket
from casemate.host.peer import peer_of, peer_pidfd
from casemate.hostd.protocol_keeping import GIVEN_CASEMATED, RELAY_ANSWER, RELAY_REQUEST
from casemate.isolation import seccomp_compile
from casemate.spec.errors import ProgramFailed

log = logging.getLogger("casemate.hostd")

#: Started by its name: what it does is nothing of hostd's, and no module of hostd's may load it.
MODULE = "casemate.node.keeping.child"
#: Where it finds the socket at which it is found, and its filter of system calls.
_DOOR, _FILTER = 3, 4
#: All that it may ask of the kernel once it is loaded. It opens no file, makes no socket, starts and signals nobody.
CALLS: Mapping[str, tuple[str, ...]] = {
    "waiting": ("epoll_wait", "epoll_pwait", "epoll_ctl", "restart_syscall", "clock_gettime", "clock_nanosleep"),
    "connections": ("accept4", "recvfrom", "sendto", "shutdown", "close", "ioctl", "fcntl"),
    # A connection is reset by dissolving its association.
    "resets": ("connect",),
    "what a socket is": ("getsockname", "getpeername", "getsockopt", "setsockopt"),
    "descriptors from and to both daemons": ("sendmsg", "recvmsg", "listen"),
    "memory": ("mmap", "munmap", "mremap", "brk", "madvise"),
    "the interpreter": ("futex", "rt_sigreturn", "rt_sigaction", "rt_sigprocmask", "getpid", "getrandom"),
    "the journal, the end": ("write", "exit_group"),
}
#: The interpreter starts within a second; on a busy machine it takes several.
ATTACH_S = 15.0
_REQUESTS_A_TURN = 32
_MAX_REQUEST_DESCRIPTORS = 4
_SOURCE = str(Path(__file__).resolve().parents[2])

Connect = Callable[[list[int]], tuple[socket.socket | None, int]]


def _refuse(_fds: list[int]) -> tuple[None, int]:
    raise NotImplementedError


class RelayProcess:
    """The relay that is found at *path* and runs as *uid*.

    *on_request* answers what it asks with descriptors (and takes those that it uses); *on_reached* is told of each new
    connection to it.
    """

    #: How long a relay may take to answer before it is ended.
    patience_s = ATTACH_S

    def __init__(self, path: Path, uid: int) -> None:
        self._path, self._uid = path, uid
        self.on_request: Connect = _refuse
        self.on_reached: Callable[[], None] = lambda: None
        self.counted: Counter[str] = Counter()
        self._channel: socket.socket | None = None
        self._process: int | None = None
        self._attaching = asyncio.Lock()
        self._taken: asyncio.Future[bool] | None = None

    @property
    def is_connected(self) -> bool:
        return self._channel is not None

    # --- found, started, ended ------------------------------------------------------------------------------------

    def reach(self) -> bool:
        """Connect to the relay that runs; False where none does."""
        connection = seqpacket.connected(self._path)
        if connection is None:
            return False
        peer = peer_of(connection)
        process = peer_pidfd(connection) or pidfd.open_pidfd(peer.pid)
        if peer.uid != self._uid or process is None:
            # It was started by a hostd that died in that moment, and ends by itself.
            connection.close()
            if process is not None:
                os.close(process)
            return False
        self._hold(connection, process)
        return True

    def _start(self) -> None:
        """Raises ProgramMissing, OSError."""
        self._path.unlink(missing_ok=True)
        with seqpacket.listen(self._path) as door:
            gid = pwd.getpwuid(self._uid).pw_gid
            bare = ["--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]
            python = [sys.executable, "-P", "-m", MODULE, str(self._path)]
            argv = ["setpriv", f"--reuid={self._uid}", f"--regid={gid}", *bare, "--", *python]
            environment = {"PYTHONPATH": _SOURCE, "PYTHONDONTWRITEBYTECODE": "1"}
            calls = os.memfd_create("relay", os.MFD_CLOEXEC)
            try:
                os.write(calls, _filter())
                fds = {_DOOR: door.fileno(), _FILTER: calls, 2: 2}
                child = programs.Child(programs.spawn(argv, env=environment, fds=fds))
            finally:
                os.close(calls)
            connection = seqpacket.connected(self._path)
        log.info("started the relay of kept connections (pid %d)", child.pid)
        process = pidfd.open_pidfd(child.pid)
        if connection is None or process is None:
            raise ProgramFailed("the relay of kept connections ended at once", program=MODULE)
        self._hold(connection, process)

    def _hold(self, connection: socket.socket, process: int) -> None:
        self.hang_up()
        self._channel, self._process = connection, process
        asyncio.get_running_loop().add_reader(connection.fileno(), self._on_readable)
        self.on_reached()

    def hang_up(self) -> None:
        """Let go of it: with nobody left to work for it ends by itself."""
        gone, self._channel = self._channel, None
        if gone is not None:
            asyncio.get_running_loop().remove_reader(gone.fileno())
            gone.close()
        if self._process is not None:
            os.close(self._process)
            self._process = None
        if self._taken is not None and not self._taken.done():
            self._taken.set_result(False)

    def _end(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, signal.SIGKILL)
        # It takes a moment to die, and must not be found meanwhile.
        self._path.unlink(missing_ok=True)
        self.hang_up()

    async def attach(self, *, anew: bool = False) -> int:
        """A descriptor for casemated that leads to the relay, which is started where none runs or answers.

        Raises :class:`ProgramFailed`, ProgramMissing.
        """
        async with self._attaching:
            if anew and (self.is_connected or self.reach()):
                log.info("the relay of kept connections is of another version, and is ended")
                self._end()
            for _ in range(2):
                if not self.is_connected and not self.reach():
                    self._start()
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
                with ours, theirs:
                    if await self._attach(theirs):
                        return ours.detach()
                log.warning("the relay of kept connections does not answer, and is ended")
                self._end()
        raise ProgramFailed(
            f"the relay of kept connections does not answer within {self.patience_s:g} s", program=MODULE
        )

    async def _attach(self, theirs: socket.socket) -> bool:
        self._taken = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self.patience_s):
                return self.give(GIVEN_CASEMATED, theirs) and await self._taken
        except TimeoutError:
            return False
        finally:
            self._taken = None

    def give(self, kind: int, one: socket.socket) -> bool:
        """Hand a socket over; False where the relay is gone, or does not read."""
        if self._channel is None:
            return False
        beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [one.fileno()]))]
        try:
            self._channel.sendmsg([RELAY_ANSWER.pack(0, kind)], beside, socket.MSG_NOSIGNAL)
        except OSError:
            return False
        return True

    # --- what it asks ---------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        for _ in range(_REQUESTS_A_TURN):
            channel = self._channel
            if channel is None:
                return
            room = socket.CMSG_SPACE(_MAX_REQUEST_DESCRIPTORS * 4)
            try:
                data, beside, flags, _ = channel.recvmsg(64, room, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError:
                data, beside, flags = b"", [], 0
            fds = _descriptors(beside)
            try:
                if len(data) != RELAY_REQUEST.size or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                    # The end, or what no relay of ours says.
                    self.hang_up()
                    return
                self._on_request(channel, RELAY_REQUEST.unpack(data)[0], fds)
            finally:
                for number in fds:
                    os.close(number)

    def _on_request(self, channel: socket.socket, number: int, fds: list[int]) -> None:
        if number and len(fds) == 1:
            self._answer(channel, number, fds)
        elif not number and not fds and self._taken is not None and not self._taken.done():
            self._taken.set_result(True)
        else:
            self.hang_up()

    def _answer(self, channel: socket.socket, number: int, fds: list[int]) -> None:
        made, why = self.on_request(fds)
        beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [made.fileno()]))] if made else []
        try:
            channel.sendmsg([RELAY_ANSWER.pack(number, why)], beside, socket.MSG_NOSIGNAL)
        except OSError:
            # A relay that does not read, or is gone: it bounds its own waiting.
            self.counted["unanswered"] += 1
        finally:
            if made:
                made.close()


def _filter() -> bytes:
    """:data:`CALLS` as the kernel's program; nothing without libseccomp, which the relay says."""
    compiler = seccomp_compile.compiler()
    if compiler is None:
        return b""
    names = [name for part in CALLS.values() for name in part]
    rule = {"names": names, "action": "SCMP_ACT_ALLOW"}
    refuse = {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": errno.EPERM}
    return compiler.compile({**refuse, "architectures": [], "syscalls": [rule]})


def _descriptors(beside: list[tuple[int, int, bytes]]) -> list[int]:
    numbers = array.array("i")
    for level, kind, content in beside:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers.frombytes(content[: len(content) - len(content) % 4])
    return list(numbers)
