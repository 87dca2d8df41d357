"""hostd's end of one micro-VM: its monitor process (``casemate-vm monitor``), spoken to over one socket.

The monitor survives hostd: a new hostd connects to the same socket. Requests are numbered, bounded in time, and
each ends in an answer or a typed error that holds the tail of the guest's console.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from casemate.host import programs, seqpacket
from casemate.isolation.microvm import argv, frames
from casemate.isolation.microvm.errors import AgentFailed, MonitorFailed
from casemate.isolation.microvm.frames import Field, GuestBroken, Kind, Message, Tag
from casemate.isolation.microvm.records import Ids
from casemate.spec.errors import CasemateError

#: The guest's own work for one request, under emulation on a loaded host.
CALL_TIMEOUT_S = 30.0
#: A machine starts and ends fewer than 100 processes of ours in a second, on any host.
MAX_UNASKED_PER_S = 1000
_TAIL_TIMEOUT_S, _TAIL_BYTES = 1.0, 2000


@dataclass(frozen=True, slots=True)
class Launch:
    """What a monitor is started with. *fds*: number in QEMU to ours; *jail*: an empty folder, the later root; *ids*:
    QEMU's user namespace, without which it can be given no folder."""

    shim: str
    qemu: str
    switches: tuple[argv.Switch, ...]
    fds: Mapping[int, int]
    socket: Path
    uid: int
    gid: int
    jail: Path | None
    qmp: str = ""
    writes: bool = False
    cgroups: tuple[str, ...] = ()
    ids: Ids | None = None
    #: The jail holds /dev/kvm.
    kvm: bool = False
    #: A file for the monitor's last word (:mod:`casemate.isolation.microvm.ending`).
    end_fd: int | None = None

    def arguments(self) -> list[str]:
        found = [self.shim, "monitor", "--uid", str(self.uid), "--gid", str(self.gid)]
        found += ["--root", str(self.jail)] if self.jail is not None else []
        found += ["--writes"] if self.writes else []
        found += ["--kvm"] if self.kvm else []
        for folder in self.cgroups:
            found += ["--cgroup", folder]
        found += ["--qmp", self.qmp] if self.qmp else []
        if self.ids is not None:
            for name, rows in (("--uid-map", self.ids.uids), ("--gid-map", self.ids.gids)):
                for row in rows:
                    found += [name, ":".join(str(one) for one in row)]
        return [*found, "--", *argv.argv(self.qemu, self.switches)]


@dataclass(slots=True)
class Monitor:
    """A connected monitor. :meth:`serve` must run in a task while the other methods are used."""

    channel: seqpacket.Channel
    socket: Path
    child: programs.Child | None = None
    on_event: Callable[[Message], None] = lambda _message: None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    qmp: asyncio.Queue[bytes] = field(default_factory=lambda: asyncio.Queue(256))
    _number: int = 0
    _waiting: dict[int, asyncio.Future[Message]] = field(default_factory=dict)
    _tail: asyncio.Future[None] | None = None
    #: What came last of the console, asked for or not: a monitor sends it before it says that its QEMU has ended.
    _last_tail: bytes = b""
    _pid: asyncio.Future[bytes] | None = None
    broken: GuestBroken | None = None
    _since: float = 0.0
    _unasked: int = 0

    @classmethod
    async def start(cls, launch: Launch) -> Monitor:
        """Start the monitor, and QEMU below it; nothing is awaited but the process's start."""
        server = seqpacket.listen(launch.socket)
        try:
            fds = {3: server.fileno(), **launch.fds}
            if launch.end_fd is not None:
                fds[argv.END_FD] = launch.end_fd
            # Standard error is QEMU's and the monitor's last word before it has a socket; nobody reads it later.
            child = programs.Child(programs.spawn(launch.arguments(), fds=fds, new_session=True))
        finally:
            server.close()
        return cls(await seqpacket.connect(launch.socket), launch.socket, child)

    @classmethod
    async def find(cls, socket: Path) -> Monitor:
        """The monitor that an earlier hostd left. Raises ``ConnectionLost``."""
        return cls(await seqpacket.connect(socket), socket)

    async def serve(self) -> None:
        """Take what the monitor sends until it ends; then everything that waits fails."""
        try:
            while self.broken is None and (message := await self.channel.receive()) is not None:
                self._hear(message)
                # A socket that always has something to read would keep the loop from everybody else.
                await asyncio.sleep(0)
        except CasemateError:
            pass
        finally:
            self.channel.close()
            self.ended.set()
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(self.broken or MonitorFailed("the monitor of the micro-VM ended"))

    def catch_up(self) -> None:
        """Take what the monitor has sent by now.

        For who learns of an end elsewhere: the monitor told of it here first, but the loop has not come to that yet.
        """
        try:
            for message in self.channel.at_hand():
                self._hear(message)
                if self.broken is not None:
                    self.channel.close()  # and :meth:`serve` ends
        except CasemateError:
            self.channel.close()

    def _hear(self, message: seqpacket.Message) -> None:
        try:
            self._take(message.data)
        except GuestBroken as error:
            # Nothing that this guest says counts any more.
            self.broken = error
            self.quit()
        finally:
            message.close()

    def _take(self, data: bytes) -> None:
        kind, body = data[:1], data[1:]
        match kind:
            case b"C":
                self._control(frames.decode(body))
            case b"M":
                if not self.qmp.full():
                    self.qmp.put_nowait(body)
            case b"T":
                self._last_tail = body
                if self._tail is not None and not self._tail.done():
                    self._tail.set_result(None)
            case b"P":
                if self._pid is not None and not self._pid.done():
                    self._pid.set_result(body)
            case b"X":
                self.ended.set()
            case _:
                pass  # a newer monitor may say more than this one knows

    def _control(self, message: Message) -> None:
        if message.kind is Kind.READY:
            self.ready.set()
            self._count_unasked()
        elif message.kind is Kind.REPLY:
            waiting = self._waiting.pop(message.number, None)
            if waiting is None:
                self._count_unasked()
            elif not waiting.done():
                waiting.set_result(message)
        else:
            self._count_unasked()
            self.on_event(message)

    def _count_unasked(self) -> None:
        """Raises :class:`GuestBroken` for a guest that talks more than ended processes could explain."""
        now = asyncio.get_running_loop().time()
        if now - self._since > 1.0:
            self._since, self._unasked = now, 0
        self._unasked += 1
        if self._unasked > MAX_UNASKED_PER_S:
            raise GuestBroken(f"more than {MAX_UNASKED_PER_S} messages in a second that nobody asked for")

    async def call(self, kind: Kind, fields: Sequence[Field], *, timeout_s: float = CALL_TIMEOUT_S) -> Message:
        """Ask the agent; the reply, whatever its errno. Raises :class:`AgentFailed`, :class:`MonitorFailed`."""
        self._number += 1
        number = self._number
        waiting: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        try:
            if self.ended.is_set():
                raise MonitorFailed("the monitor of the micro-VM ended")
            self.channel.send(b"C" + frames.encode(kind, number, fields))
            async with asyncio.timeout(timeout_s):
                return await waiting
        except TimeoutError as error:
            tail = await self.tail()
            raise AgentFailed(f"{kind.name}: no answer within {timeout_s:g} s; console: {tail}") from error
        except MonitorFailed:
            raise
        finally:
            self._waiting.pop(number, None)

    async def ask(
        self,
        kind: Kind,
        fields: Sequence[Field],
        *,
        error: type[CasemateError] = AgentFailed,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> Message:
        """As :meth:`call`; an errno other than 0 is raised as *error*, with the guest's words."""
        reply = await self.call(kind, fields, timeout_s=timeout_s)
        if number := reply.number_of(Tag.ERRNO):
            words = reply.text(Tag.TEXT)
            why = os.strerror(number) if 0 < number <= frames.MAX_ERRNO else f"error {number}"
            raise error(f"{kind.name.lower()}: {words}: {why}", errno=number, step=words)
        return reply

    def attach(self, channel: int, fds: Sequence[int]) -> None:
        """Give a process's descriptors (standard files, exit socket) to the monitor, for *channel*."""
        self.channel.send(b"A" + struct.pack("<H", channel), fds)

    def send_qmp(self, command: bytes, fds: Iterable[int] = ()) -> None:
        self.channel.send(b"M" + command, list(fds))

    async def tail(self) -> str:
        """The end of the guest's console and of QEMU's own words, printable; also of a machine that has ended."""
        if not self.ended.is_set():
            await self._ask_for_tail()
        words = self._last_tail[-_TAIL_BYTES:].decode("utf-8", "replace")
        return "".join(c if c.isprintable() or c == "\n" else "?" for c in words).strip() or "(nothing)"

    async def _ask_for_tail(self) -> None:
        self._tail = asyncio.get_running_loop().create_future()
        try:
            self.channel.send(b"T")
            async with asyncio.timeout(_TAIL_TIMEOUT_S):
                await self._tail
        except (TimeoutError, CasemateError):
            return  # what it said before, if anything, is what there is

    async def qemu_pid(self) -> int:
        """QEMU's pid. Ask before anything of the user's runs in the guest: later the answer proves nothing."""
        self._pid = asyncio.get_running_loop().create_future()
        try:
            self.channel.send(b"P")
            async with asyncio.timeout(_TAIL_TIMEOUT_S):
                body = await self._pid
        except TimeoutError as error:
            raise MonitorFailed("the monitor does not say which process is QEMU") from error
        return int.from_bytes(body[:4], "little")

    def quit(self) -> None:
        """End the machine; waits for nothing."""
        try:
            self.channel.send(b"Q")
        except CasemateError:
            return

    def leave(self) -> None:
        """Close the connection and let the machine run: hostd stops."""
        self.channel.close()

    async def wait(self, timeout_s: float) -> None:
        """Until the monitor is gone, by force when it takes longer than *timeout_s*."""
        if self.child is None:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self.child.wait()
        except TimeoutError:
            await self.child.end(0.1)
