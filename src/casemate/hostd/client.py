"""The client of hostd's protocol: the only way from the layers above into the privileged daemon.

:class:`Hostd` is the seam (tests put a fake there); :class:`HostdClient` is the real one. One SOCK_SEQPACKET
connection, numbered requests, answers in any order, events by a callback. A lost connection fails every call that
waits with :class:`HostdAway` and is made anew with back-off, for ever. Nothing here retries an operation: whether it
had its effect is for the reconcile loop to find out.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import itertools
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import msgspec

from casemate.hostd import protocol
from casemate.hostd.protocol import (
    MAX_DESCRIPTORS,
    MAX_MESSAGE_BYTES,
    AnyAnswer,
    AnyEvent,
    AnyOperation,
    Failed,
    Hello,
    Welcome,
)
from casemate.hostd.protocol_base import Answer
from casemate.hostd.protocol_firewall import FirewallAnswer
from casemate.spec.errors import CasemateError, LimitExceeded, RemoteError, TimedOut, Unavailable

FIRST_DELAY_S = 0.05
MAX_DELAY_S = 2.0
#: Calls that wait at a time: more than the API's connections, so that it is never the bound that a user meets first.
MAX_WAITING = 2048
_CREDENTIALS = struct.Struct("=iII")
AnswerT = TypeVar("AnswerT", bound=Answer)


class HostdAway(Unavailable):
    code = "hostd.unavailable"
    title = "casemate-hostd does not answer"
    remedy = "Start it: `systemctl start casemate-hostd`, or `sudo make start` in a checkout; running containers go on."


class HostdMismatch(CasemateError):
    code = "hostd.protocol"
    title = "casemate-hostd and casemated do not speak the same protocol"
    remedy = "Restart both daemons from the same version: `systemctl restart casemate-hostd casemated`."


class Answered:
    """An answer with the descriptors that came beside it. Whoever takes them with :meth:`take` closes them."""

    __slots__ = ("_descriptors", "answer")

    def __init__(self, answer: AnyAnswer, descriptors: Sequence[int] = ()) -> None:
        self.answer = answer
        self._descriptors = list(descriptors)

    def take(self) -> list[int]:
        """The descriptors; from now on they are the caller's to close."""
        taken, self._descriptors = self._descriptors, []
        return taken

    def close(self) -> None:
        """Close the descriptors that nobody took."""
        for number in self.take():
            os.close(number)

    def __del__(self) -> None:
        self.close()


class Hostd(Protocol):
    """What the layers above may ask of hostd."""

    @property
    def welcome(self) -> Welcome | None:
        """What hostd said of itself when the connection was made; None while it is away."""

    async def call(
        self, operation: AnyOperation, *, descriptors: Sequence[int] = (), timeout_s: float = 60.0
    ) -> Answered:
        """Run *operation*; raises :class:`RemoteError`, :class:`HostdAway`, :class:`TimedOut`."""
        ...

    def tell(self, operation: FirewallAnswer) -> None:
        """Send what hostd does at once and does not answer; raises :class:`HostdAway`."""
        ...


async def ask(
    hostd: Hostd,
    operation: AnyOperation,
    kind: type[AnswerT],
    *,
    descriptors: Sequence[int] = (),
    timeout_s: float = 60.0,
) -> AnswerT:
    """The answer to *operation*, which must be a *kind*; descriptors that come with it are closed."""
    answered = await hostd.call(operation, descriptors=descriptors, timeout_s=timeout_s)
    answered.close()
    if not isinstance(answered.answer, kind):
        raise HostdMismatch(f"{type(operation).__name__} was answered by {type(answered.answer).__name__}")
    return answered.answer


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Reply and Notice in one, so that a message is decoded once."""

    number: int = 0
    answer: AnyAnswer | None = None
    event: AnyEvent | None = None


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_Message)


class HostdClient:
    """The connection to hostd at *path*; :meth:`run` keeps it up until cancelled.

    *on_event* is called on the loop for each event, *on_state* with True or False when the connection came or went.
    """

    def __init__(
        self,
        path: str,
        *,
        on_event: Callable[[AnyEvent], None],
        on_state: Callable[[bool], None] = lambda _up: None,
        hostd_uid: int = 0,
    ) -> None:
        self._path = path
        self._on_event = on_event
        self._on_state = on_state
        self._hostd_uid = hostd_uid
        self._socket: socket.socket | None = None
        self._numbers: Iterator[int] = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Answered]] = {}
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._lost = asyncio.Event()
        self._buffer = bytearray(MAX_MESSAGE_BYTES + 1)
        self._welcome: Welcome | None = None

    @property
    def welcome(self) -> Welcome | None:
        return self._welcome

    async def run(self) -> None:
        """Connect, and connect again when the connection is lost; never returns."""
        delay = FIRST_DELAY_S
        try:
            while True:
                try:
                    await self._connect()
                except (OSError, CasemateError):
                    self._drop()
                    await asyncio.sleep(delay)
                    delay = min(delay * 2, MAX_DELAY_S)
                    continue
                delay = FIRST_DELAY_S
                self._on_state(True)
                await self._lost.wait()
                self._on_state(False)
        finally:
            self._drop()

    async def call(
        self, operation: AnyOperation, *, descriptors: Sequence[int] = (), timeout_s: float = 60.0
    ) -> Answered:
        if self._welcome is None:
            raise HostdAway(f"no connection to {self._path}")
        return await self._call(operation, descriptors, timeout_s)

    def tell(self, operation: FirewallAnswer) -> None:
        if self._welcome is None:
            raise HostdAway(f"no connection to {self._path}")
        self._send(_ENCODER.encode(protocol.Request(0, operation)), ())

    async def _call(self, operation: AnyOperation, descriptors: Sequence[int], timeout_s: float) -> Answered:
        if len(self._waiting) >= MAX_WAITING:
            raise HostdAway(f"{MAX_WAITING} operations wait for casemate-hostd already")
        number = next(self._numbers)
        name = type(operation).__name__
        data = _ENCODER.encode(protocol.Request(number, operation))
        if len(data) > MAX_MESSAGE_BYTES:
            raise LimitExceeded(
                f"{name} takes {len(data)} bytes, {MAX_MESSAGE_BYTES} are allowed",
                remedy="Make command, environment, labels and mounts of the container smaller.",
            )
        future: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self._send(data, descriptors)
            async with asyncio.timeout(timeout_s):
                answered = await future
        except TimeoutError as error:
            raise TimedOut(f"casemate-hostd did not end {name} within {timeout_s:g} s", operation=name) from error
        finally:
            self._waiting.pop(number, None)
        if isinstance(answered.answer, Failed):
            raise RemoteError(answered.answer.problem)
        return answered

    async def _connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            connection.connect(self._path)
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            uid = _CREDENTIALS.unpack(credentials)[1]
            if uid != self._hostd_uid:
                raise HostdMismatch(f"{self._path} is served by uid {uid}, not by uid {self._hostd_uid}")
        except BaseException:
            connection.close()
            raise
        self._lost.clear()
        self._socket = connection
        asyncio.get_running_loop().add_reader(connection.fileno(), self._on_readable)
        answered = await self._call(Hello(), (), 10.0)
        if not isinstance(answered.answer, Welcome) or answered.answer.version != protocol.PROTOCOL_VERSION:
            raise HostdMismatch(f"casemate-hostd greets with {answered.answer!r}")
        self._welcome = answered.answer

    def _send(self, data: bytes, descriptors: Sequence[int]) -> None:
        if self._socket is None:
            raise HostdAway(f"no connection to {self._path}")
        if self._unsent:
            # Copies: by the time that there is room the caller may have closed its own.
            self._unsent.append((data, [os.dup(number) for number in descriptors]))
            return
        try:
            self._send_now(data, descriptors)
        except BlockingIOError:
            self._unsent.append((data, [os.dup(number) for number in descriptors]))
            asyncio.get_running_loop().add_writer(self._socket.fileno(), self._on_writable)
        except OSError as error:
            self._drop()
            raise HostdAway(f"{self._path}: {error.strerror}") from error

    def _send_now(self, data: bytes, descriptors: Sequence[int]) -> None:
        assert self._socket is not None
        beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self._socket.sendmsg([data], beside, socket.MSG_NOSIGNAL)

    def _on_writable(self) -> None:
        assert self._socket is not None
        while self._unsent:
            data, descriptors = self._unsent[0]
            try:
                self._send_now(data, descriptors)
            except BlockingIOError:
                return
            except OSError:
                self._drop()
                return
            self._unsent.popleft()
            for number in descriptors:
                os.close(number)
        asyncio.get_running_loop().remove_writer(self._socket.fileno())

    def _on_readable(self) -> None:
        for _ in range(64):  # then the loop's other work gets its turn
            if self._socket is None:
                return
            room = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4)
            try:
                size, beside, flags, _ = self._socket.recvmsg_into([self._buffer], room, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError:
                self._drop()
                return
            descriptors = array.array("i")
            for level, kind, content in beside:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    descriptors.frombytes(content[: len(content) - len(content) % 4])
            if not size or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or not self._take(size, descriptors):
                for number in descriptors:
                    with contextlib.suppress(OSError):
                        os.close(number)
                self._drop()
                return

    def _take(self, size: int, descriptors: array.array[int]) -> bool:
        """Hand one message on; False when it is none."""
        try:
            message = _DECODER.decode(memoryview(self._buffer)[:size])
        except msgspec.MsgspecError:
            return False
        if message.event is not None:
            if descriptors:
                return False
            self._on_event(message.event)
            return True
        if message.answer is None:
            return False
        answered = Answered(message.answer, descriptors)
        future = self._waiting.pop(message.number, None)
        if future is None or future.done():
            answered.close()  # whoever asked has gone away
        else:
            future.set_result(answered)
        return True

    def _drop(self) -> None:
        connection, self._socket, self._welcome = self._socket, None, None
        if connection is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(connection.fileno())
            loop.remove_writer(connection.fileno())
            connection.close()
        for _, descriptors in self._unsent:
            for number in descriptors:
                os.close(number)
        self._unsent.clear()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(HostdAway("casemate-hostd went away during the operation"))
        self._waiting.clear()
        self._lost.set()
