"""Starting conmon and the runtime: in the mount namespace that the runtime needs, bounded in time and output.

crun 1.8 (Debian 12) gives up on hybrid hosts: v1 controllers with an empty cgroup2 at /sys/fs/cgroup/unified. It
looks for that one mount. So there, programs are started by a thread that has a mount namespace of its own, without
that mount; a vfork'ed child inherits its thread's namespace. No wrapper program runs (``unshare`` and a shell
would cost 5 ms for each call). New mounts reach that namespace because hostd's run folder is shared, ours a slave.

On every host there is one more reason. A process that is given no input has the host's /dev/null, and crun and runsc
give a process its standard files: the container's user would own that inode, and could take it from everybody. In that
namespace /dev/null is mounted over itself, read-only: it can be read and written to, and its owner cannot be changed
(fchown(2) answers EROFS, which both pass over), nor its mode by the container.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from casemate.host import programs, syscalls
from casemate.isolation import conmon
from casemate.spec.errors import ProgramFailed, TimedOut

_NULL = Path(os.devnull)
UNIFIED = "/sys/fs/cgroup/unified"
#: Creating takes 30 ms; a host in trouble takes seconds. Beyond, the runtime hangs.
CREATE_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 30.0
_MAX_WORDS_BYTES = 16 << 10


class Launcher:
    """Starts programs; with *hide_unified* from a mount namespace without the empty cgroup2 of a hybrid host, with
    *covered* from one in which these folders are empty, with *keep_null* from one whose /dev/null nobody can change."""

    def __init__(self, *, hide_unified: bool, covered: Sequence[str] = (), keep_null: bool = True) -> None:
        self._pool: ThreadPoolExecutor | None = None
        if hide_unified or covered or keep_null:
            self._pool = ThreadPoolExecutor(1, "casemate-launch", lambda: _leave(hide_unified, covered, keep_null))

    async def spawn(self, argv: Sequence[str], *, env: Mapping[str, str], fds: Mapping[int, int]) -> programs.Child:
        """Start *argv* as :func:`casemate.host.programs.spawn` does; its end is awaited on the loop."""
        if self._pool is None:
            return programs.Child(programs.spawn(argv, env=env, fds=fds, new_session=True))
        loop = asyncio.get_running_loop()
        job = loop.run_in_executor(self._pool, lambda: programs.spawn(argv, env=env, fds=fds, new_session=True))
        try:
            return programs.Child(await asyncio.shield(job))
        except asyncio.CancelledError:
            # The program starts all the same: nobody would know of it.
            with contextlib.suppress(Exception):
                await programs.Child(await job).end(0.0)
            raise

    async def run(self, argv: Sequence[str], *, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        """Run a runtime's command to its end; raises what its words mean, or :class:`TimedOut`.

        Its words go to a memory file: nothing has to be read while it runs, and a pipe that a container inherits
        cannot hold us.
        """
        words = os.memfd_create("words", os.MFD_CLOEXEC)
        try:
            child = await self.spawn(argv, env={}, fds={1: words, 2: words})
            try:
                async with asyncio.timeout(timeout_s):
                    code = await child.wait()
            except BaseException as error:
                await child.end(0.5)
                if isinstance(error, TimeoutError):
                    raise TimedOut(f"{argv[0]} {argv[-2]} did not end within {timeout_s:g} s") from error
                raise
            if code != 0:
                text = os.pread(words, _MAX_WORDS_BYTES, max(0, os.fstat(words).st_size - _MAX_WORDS_BYTES))
                raise conmon.runtime_error(text.decode("utf-8", "replace") or f"{argv[0]} ended with {code}")
        finally:
            os.close(words)

    async def supervise(self, plan: conmon.ConmonPlan) -> Supervised:
        """Start conmon for *plan*; what it says is read by the caller, who also ends it when that goes wrong."""
        with contextlib.ExitStack() as ours:
            sync_read, sync_write = _pipe(ours)
            env = {"_OCI_SYNCPIPE": str(conmon.SYNC_FD)}
            fds = {conmon.SYNC_FD: sync_write}
            attach_read = start_write = -1
            if plan.exec_attach:
                start_read, start_write = _pipe(ours)
                attach_read, attach_write = _pipe(ours)
                env |= {"_OCI_STARTPIPE": str(conmon.START_FD), "_OCI_ATTACHPIPE": str(conmon.ATTACH_FD)}
                fds |= {conmon.START_FD: start_read, conmon.ATTACH_FD: attach_write}
            child = await self.spawn(plan.argv(), env=env, fds=fds)
            kept = {number: os.dup(number) for number in (sync_read, attach_read, start_write) if number >= 0}
        return Supervised(child, kept[sync_read], kept.get(attach_read, -1), kept.get(start_write, -1))

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False)


class Supervised:
    """A conmon that was started, and the pipes to it."""

    def __init__(self, child: programs.Child, sync_fd: int, attach_fd: int, start_fd: int) -> None:
        self.child = child
        self._sync, self._attach, self._start = sync_fd, attach_fd, start_fd

    async def attach_ready(self) -> None:
        """Wait until conmon listens for the attaching client of an exec."""
        await self._line(self._attach)

    def go(self) -> None:
        """Let an attached exec go on: conmon waits once before it listens, and once for the client."""
        os.write(self._start, b"\0")

    async def pid(self) -> int:
        """The container's first process; raises what the runtime's failure means, :class:`TimedOut`."""
        try:
            line = await self._line(self._sync)
        except BaseException:
            await self.end()
            raise
        if not line:
            await self.end()
            raise ProgramFailed("conmon ended without an answer", program="conmon")
        return conmon.parse_pid(line)

    async def _line(self, number: int) -> bytes:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        data = bytearray()

        def readable() -> None:
            got = os.read(number, 4096)
            data.extend(got)
            if (not got or b"\n" in got or len(data) > conmon.MAX_ANSWER_BYTES) and not ended.done():
                ended.set_result(None)

        loop.add_reader(number, readable)
        try:
            async with asyncio.timeout(CREATE_TIMEOUT_S):
                await ended
        except TimeoutError as error:
            raise TimedOut(f"conmon or the runtime did not answer within {CREATE_TIMEOUT_S:g} s") from error
        finally:
            loop.remove_reader(number)
        return bytes(data)

    async def end(self) -> None:
        """KILL conmon and the runtime below it, and reap it."""
        # conmon leads a session of its own (spawn made it); a runtime that hangs is in its group.
        if self.child.returncode is None:
            for kill in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    kill(self.child.pid, signal.SIGKILL)
            await self.child.wait()

    def close(self) -> None:
        """Close the pipes; conmon goes on by itself."""
        for number in (self._sync, self._attach, self._start):
            if number >= 0:
                os.close(number)
        self._sync = self._attach = self._start = -1


def _pipe(stack: contextlib.ExitStack) -> tuple[int, int]:
    ends = os.pipe2(os.O_CLOEXEC)
    for number in ends:
        stack.callback(os.close, number)
    return ends


def restore_null(path: Path = _NULL) -> int | None:
    """Give /dev/null back to root where a runtime gave it away (of an earlier version of ours, or of another engine),
    with its usual mode, which that owner may have changed. The owner that it had, or None for root."""
    status = path.stat()
    if not stat.S_ISCHR(status.st_mode) or not (status.st_uid or status.st_gid):
        return None
    with contextlib.suppress(OSError):
        os.chown(path, 0, 0)
        path.chmod(0o666)
    return status.st_uid


def _leave(hide_unified: bool, covered: Sequence[str], keep_null: bool) -> None:
    """Give this thread a mount namespace that follows ours, and take out of it what a runtime must not see."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, "/", None, syscalls.MS_SLAVE | syscalls.MS_REC)
    if hide_unified:
        syscalls.umount2(UNIFIED, syscalls.MNT_DETACH)
    if keep_null:
        flags = syscalls.MS_BIND | syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NOEXEC
        syscalls.mount(_NULL, _NULL, "", syscalls.MS_BIND)
        syscalls.mount(None, _NULL, "", flags | syscalls.MS_REMOUNT)
    for folder in covered:
        flags = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
        syscalls.mount("casemate", folder, "tmpfs", flags, "size=4k,mode=755")
