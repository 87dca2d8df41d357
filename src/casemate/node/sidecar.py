"""A child process of casemated that works beside it: started, spoken with over one socket pair, started again.

The child gets descriptors and a module's name, nothing of the environment. Messages are whole (SOCK_SEQPACKET); what a
slow child has not read yet is bounded, and one that lets it grow is ended and started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from casemate.host import programs
from casemate.hostd.client import Answered
from casemate.node.core import report
from casemate.spec.errors import CasemateError

#: Where the child finds its end of the socket pair.
CHANNEL = 3
MAX_UNSENT = 20_000
_RECEIVE_BYTES = 256 << 10
_FIRST_DELAY_S, _MAX_DELAY_S = 0.2, 5.0
_SOURCE = str(Path(__file__).resolve().parents[2])


class Sidecar:
    """One life of a child. *on_message* gets each message's bytes, on the loop."""

    def __init__(self, on_message: Callable[[bytes], None]) -> None:
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None
        self._unsent: deque[bytes] = deque()
        self._lost = asyncio.Event()
        self._child: programs.Child | None = None

    def start(self, module: str, arguments: Sequence[str], descriptors: Sequence[int]) -> None:
        """Start *module* with *descriptors* from 4 on; they stay the caller's to close."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            fds = {CHANNEL: theirs.fileno(), 2: 2}
            fds.update({CHANNEL + 1 + place: number for place, number in enumerate(descriptors)})
            argv = [sys.executable, "-P", "-m", module, *arguments]
            environment = {"PYTHONPATH": _SOURCE, "PYTHONDONTWRITEBYTECODE": "1"}
            self._child = programs.Child(programs.spawn(argv, env=environment, fds=fds))
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.join(ours)

    def join(self, ours: socket.socket) -> None:
        """Speak over *ours* with a process that is nobody's child here."""
        ours.setblocking(False)
        self._socket = ours
        self._loop.add_reader(ours.fileno(), self._on_readable)

    @property
    def pid(self) -> int:
        return self._child.pid if self._child is not None else 0

    async def ended(self) -> int | None:
        """Wait until the child is gone or its socket is; its return code, where it is a child."""
        if self._child is None:
            await self._lost.wait()
            return None
        async with asyncio.TaskGroup() as tasks:
            both = [tasks.create_task(self._child.wait()), tasks.create_task(self._lost.wait())]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for task in both:
                task.cancel()
        return self._child.returncode

    async def close(self, grace_s: float = 1.0) -> None:
        """End the child: it sees the end of its socket; what does not end by itself within *grace_s* is ended."""
        self._drop()
        if self._child is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self._child.wait()
                    return
            await self._child.end(1.0)

    def release(self) -> None:
        """Let the child end by itself: it sees the end of its socket, and knows how long it is of use still."""
        self._drop()
        self._child = None

    def send(self, data: bytes) -> bool:
        """Send, or queue behind what waits; False when the child is gone or does not read."""
        if self._socket is None:
            return False
        if self._unsent:
            if len(self._unsent) >= MAX_UNSENT:
                report(f"a child (pid {self.pid}) left {MAX_UNSENT} messages unread")
                self._drop()
                return False
            self._unsent.append(data)
            return True
        try:
            self._socket.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            self._unsent.append(data)
            self._loop.add_writer(self._socket.fileno(), self._on_writable)
        except OSError:
            self._drop()
            return False
        return True

    def _on_writable(self) -> None:
        assert self._socket is not None
        while self._unsent:
            try:
                self._socket.send(self._unsent[0], socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except OSError:
                self._drop()
                return
            self._unsent.popleft()
        self._loop.remove_writer(self._socket.fileno())

    def _on_readable(self) -> None:
        for _ in range(16):
            if self._socket is None:
                return
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._drop()
                return
            try:
                self._on_message(data)
            except Exception:
                # A child reads what strangers send: what it says is no more believed than they are.
                report(f"a child (pid {self.pid}) said what it may not say, and is ended")
                self._drop()
                return

    def _drop(self) -> None:
        gone, self._socket = self._socket, None
        if gone is not None:
            self._loop.remove_reader(gone.fileno())
            self._loop.remove_writer(gone.fileno())
            gone.close()
        self._unsent.clear()
        self._lost.set()


async def started(
    asked: Awaitable[Answered], count: int, module: str, arguments: Sequence[str], on_message: Callable[[bytes], None]
) -> Sidecar:
    """A child with the *count* descriptors that hostd answers with; ours of them are closed.

    Raises :class:`CasemateError` of hostd, and where it gave another number.
    """
    descriptors = (await asked).take()
    try:
        if len(descriptors) != count:
            raise CasemateError(f"casemate-hostd gave {len(descriptors)} descriptors, {count} are needed")
        sidecar = Sidecar(on_message)
        sidecar.start(module, arguments, descriptors)
    finally:
        close_all(descriptors)
    return sidecar


async def keep_alive(what: str, hostd_up: asyncio.Event, one_life: Callable[[], Awaitable[None]]) -> None:
    """Have *one_life* follow the other, further and further apart while they are short; never returns."""
    clock = asyncio.get_running_loop().time
    delay_s = _FIRST_DELAY_S
    while True:
        await hostd_up.wait()
        began = clock()
        try:
            await one_life()
        except (CasemateError, OSError):
            report(f"{what} could not be started; it is tried again")
        if clock() - began > 10 * _MAX_DELAY_S:
            delay_s = _FIRST_DELAY_S
        await asyncio.sleep(delay_s)
        delay_s = min(2 * delay_s, _MAX_DELAY_S)


def close_all(descriptors: Sequence[int]) -> None:
    for number in descriptors:
        with contextlib.suppress(OSError):
            os.close(number)
