"""The one way to run a program: an argument list, no shell, bounded in time and output.

A child is started with ``posix_spawn`` (vfork inside): every descriptor that Python opens is close-on-exec, so
nothing has to be closed one by one and the price does not grow with the daemon's open descriptors (decision 0020
has the figures). The end of a child is seen through its pidfd; no signal handler and no thread is needed, and a
child whose waiter went away is still reaped.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass

from casemate.spec.errors import HostLacks, ProgramFailed, TimedOut

#: Root must not run what stands in a caller's PATH.
SAFE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: All that a program inherits of the environment; the rest is named by the caller.
BASE_ENVIRONMENT: Mapping[str, str] = {"PATH": SAFE_PATH, "LC_ALL": "C.UTF-8", "HOME": "/"}
#: How long a program may take to end after TERM before KILL follows.
TERM_GRACE_S = 2.0
#: How long output is still read after the program ended: a grandchild may hold the pipe open for ever.
DRAIN_S = 1.0
_PIPE_CHUNK = 65536


class ProgramMissing(HostLacks):
    code = "host.program_missing"
    title = "A program that Casemate needs is not installed"
    remedy = "Install it; `casemate system doctor` names the package."


@dataclass(frozen=True, slots=True)
class Completed:
    """How a program ended. *returncode* is the exit status, or minus the signal's number."""

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes
    duration_s: float
    truncated: bool = False


def find_program(name: str) -> str:
    """The path of *name* in :data:`SAFE_PATH`, or :class:`ProgramMissing`."""
    if "/" in name:
        if os.access(name, os.X_OK):
            return name
        raise ProgramMissing(f"{name} is not there or cannot be executed", program=name)
    for folder in SAFE_PATH.split(":"):
        path = f"{folder}/{name}"
        if os.access(path, os.X_OK):
            return path
    raise ProgramMissing(f"{name} is in none of {SAFE_PATH}", program=name)


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    fds: Mapping[int, int] | None = None,
    cwd: str | None = None,
    new_session: bool = False,
) -> int:
    """Start *argv* and return its pid; the caller must reap it.

    *fds* maps descriptor numbers in the child to ours; 0, 1 and 2 are /dev/null where it does not name them.
    *env* is added to :data:`BASE_ENVIRONMENT`. The child leads a process group of its own (or a session).
    """
    path = find_program(argv[0])
    arguments = [os.fspath(part) for part in argv]
    if cwd is not None:
        # posix_spawn cannot change the folder; coreutils' env can, and execs.
        arguments = ["env", f"--chdir={cwd}", path, *arguments[1:]]
        path = find_program("env")
    wanted = dict(fds or {})
    floor = max([64, *(number + 1 for number in wanted)])
    temporary: list[int] = []
    actions: list[tuple[int, int, int] | tuple[int, int, str, int, int]] = []
    try:
        for number, source in wanted.items():
            # A copy above all targets: no dup2 can overwrite the source of a later one.
            copy = fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, floor)
            temporary.append(copy)
            actions.append((os.POSIX_SPAWN_DUP2, copy, number))
        for number in (0, 1, 2):
            if number not in wanted:
                flags = os.O_RDONLY if number == 0 else os.O_WRONLY
                actions.append((os.POSIX_SPAWN_OPEN, number, "/dev/null", flags, 0))
        try:
            return os.posix_spawn(
                path,
                arguments,
                {**BASE_ENVIRONMENT, **(env or {})},
                file_actions=actions,
                setsigmask=[],
                # Python ignores these two; a program must not inherit that.
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
                # Two of posix_spawn's keywords, of which at most one may be given.
                **({"setsid": True} if new_session else {"setpgroup": 0}),  # pyright: ignore[reportArgumentType]
            )
        except (FileNotFoundError, PermissionError) as error:
            raise ProgramMissing(f"{path}: {error.strerror}", program=path) from error
    finally:
        for number in temporary:
            os.close(number)


class Child:
    """A started program whose end is awaited on the loop. Reaps it whether or not anybody waits."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._loop = asyncio.get_running_loop()
        self._pidfd = os.pidfd_open(pid)
        self.returncode: int | None = None
        self._ending = False
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(self._pidfd, self._reap)

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        if self._ending:
            # While its leader is not reaped, the group's number cannot belong to others.
            self.signal_group(signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        self.returncode = os.waitstatus_to_exitcode(status)
        os.close(self._pidfd)
        if not self._ended.done():
            self._ended.set_result(self.returncode)

    async def wait(self) -> int:
        """The return code, once there is one; may be cancelled and called again."""
        return await asyncio.shield(self._ended)

    def signal_group(self, number: int) -> None:
        """Send a signal to the program's process group, unless it is gone."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    async def end(self, grace_s: float = TERM_GRACE_S) -> None:
        """TERM to the group, wait *grace_s*, KILL to what is left of it; survives one cancellation of the caller."""
        self._ending = True
        for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, grace_s)):
            self.signal_group(number)
            if self.returncode is None:
                with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                    async with asyncio.timeout(wait_s):
                        await self.wait()


class _Collector:
    """Reads one pipe to its end, keeping at most *limit* bytes."""

    def __init__(self, limit: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0
        self.truncated = False
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._read, self.write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._read, False)
        self._loop.add_reader(self._read, self._on_readable)

    def _on_readable(self) -> None:
        try:
            data = os.read(self._read, _PIPE_CHUNK)
        except BlockingIOError:
            return
        if not data:
            self.close()
            return
        room = self._limit - self._size
        if len(data) > room:
            self.truncated = True
            data = data[:room]
        self._parts.append(data)
        self._size += len(data)

    def close_write(self) -> None:
        if self.write >= 0:
            os.close(self.write)
            self.write = -1

    def close(self) -> None:
        self.close_write()
        if self._read >= 0:
            self._loop.remove_reader(self._read)
            os.close(self._read)
            self._read = -1
        if not self.ended.done():
            self.ended.set_result(None)

    def value(self) -> bytes:
        return b"".join(self._parts)


def bytes_descriptor(data: bytes) -> int:
    """A descriptor (memfd) that holds *data*, read from its start; the caller closes it."""
    number = os.memfd_create("stdin", os.MFD_CLOEXEC)
    view = memoryview(data)
    while view:
        view = view[os.write(number, view) :]
    os.lseek(number, 0, os.SEEK_SET)
    return number


@contextlib.contextmanager
def _input(stdin: bytes | int | None) -> Generator[dict[int, int]]:
    """What stands for the child's descriptor 0, if anything does; bytes get a descriptor of ours for as long."""
    if isinstance(stdin, bytes):
        number = bytes_descriptor(stdin)
        try:
            yield {0: number}
        finally:
            os.close(number)
    else:
        yield {} if stdin is None else {0: stdin}


async def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    stdin: bytes | int | None = None,
    stdout: int | None = None,
    max_output_bytes: int = 1 << 20,
    env: Mapping[str, str] | None = None,
    pass_fds: Iterable[int] | Mapping[int, int] = (),
    cwd: str | None = None,
    check: bool = True,
    ok: Sequence[int] = (0,),
    new_session: bool = False,
    grace_s: float = TERM_GRACE_S,
) -> Completed:
    """Run *argv* to its end.

    *stdin*: bytes, a descriptor, or nothing (null). *stdout*: a descriptor that takes the output instead of us.
    *pass_fds*: descriptors that keep their numbers, or a mapping from numbers in the child to ours.
    Output beyond *max_output_bytes* (each stream) is read and dropped, with ``truncated`` set.
    Raises :class:`ProgramMissing`, :class:`TimedOut`, and :class:`ProgramFailed` when *check* and the return
    code is not in *ok*. On a timeout or when cancelled the group gets TERM, then KILL, and is reaped.
    """
    fds = dict(pass_fds) if isinstance(pass_fds, Mapping) else {number: number for number in pass_fds}
    started = time.monotonic()
    with _input(stdin) as given:
        out, err = _Collector(max_output_bytes), _Collector(max_output_bytes)
        fds |= {**given, 1: out.write if stdout is None else stdout, 2: err.write}
        try:
            child = Child(spawn(argv, env=env, fds=fds, cwd=cwd, new_session=new_session))
            out.close_write()
            err.close_write()
            returncode = await _wait(child, argv, timeout_s, grace_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_S):
                    await out.ended
                    await err.ended
        finally:
            out.close()
            err.close()
    done = Completed(
        tuple(argv), returncode, out.value(), err.value(), time.monotonic() - started, out.truncated or err.truncated
    )
    if check and returncode not in ok:
        raise failure(done)
    return done


async def _wait(child: Child, argv: Sequence[str], timeout_s: float, grace_s: float) -> int:
    try:
        async with asyncio.timeout(timeout_s):
            return await child.wait()
    except TimeoutError as error:
        await child.end(grace_s)
        raise TimedOut(f"{argv[0]} did not end within {timeout_s:g} s and was killed", program=argv[0]) from error
    except asyncio.CancelledError:
        await child.end(grace_s)
        raise


def failure(done: Completed) -> ProgramFailed:
    """The error that says how *done* failed, with the last of its own words."""
    words = (done.stderr or done.stdout)[-2000:].decode("utf-8", "replace").strip()
    how = f"ended with {done.returncode}" if done.returncode >= 0 else f"was killed by signal {-done.returncode}"
    return ProgramFailed(
        f"{done.argv[0]} {how}: {words or 'it said nothing'}", program=done.argv[0], returncode=done.returncode
    )
