"""The one socket: one peer, bounded messages, bounded work, an answer to each request.

Only the uid of casemated's account may connect, and only one connection of it lives at a time. What a message
holds is decoded into the protocol's types before anything looks at it; descriptors that no operation takes are
closed. An operation that has begun goes on to its end when the peer goes away: it is journalled, and half a
container is worse than one that nobody asked for any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import traceback
import uuid
from collections import deque
from collections.abc import Awaitable, Callable

import msgspec

from casemate.host.peer import Peer
from casemate.host.seqpacket import Channel, Message
from casemate.hostd import protocol
from casemate.hostd.errors import Busy, PeerRefused, ProtocolViolated
from casemate.hostd.protocol import AnyAnswer, AnyEvent, AnyOperation, ExecEnded, Failed, Hello, Notice, Reply, Request
from casemate.hostd.protocol_firewall import FirewallAnswer
from casemate.spec.errors import CasemateError, DiskFull, LimitExceeded, TimedOut

log = logging.getLogger("casemate.hostd")

#: Operations at a time. Each holds a few descriptors and one child; casemated itself runs fewer.
#: As many as casemated lets run at a time.
MAX_UNHEARD = 1024
MAX_OPERATIONS = 64
#: How long an operation may take, and those that stream or hash.
DEADLINE_S = 180.0
LONG_DEADLINE_S = 4 * 3600.0
_LONG = (protocol.ContainerArchive, protocol.ContainerExtract, protocol.ContainerDiff, protocol.LayerAdopt)
#: Garbage from a peer that is casemated's own account: after that many it is hung up on.
_MAX_VIOLATIONS = 16

_encoder = msgspec.msgpack.Encoder()
_requests = msgspec.msgpack.Decoder(Request)

#: What casemated only tells: number 0, no answer, done on the loop at once. Packets wait for it.
Told = Callable[[FirewallAnswer], None]
Handler = Callable[[AnyOperation, list[int]], Awaitable[tuple[AnyAnswer, list[int]]]]


def decode(data: bytes) -> Request:
    """The request in a message; raises :class:`ProtocolViolated` for anything that is not exactly one."""
    try:
        return _requests.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError, OverflowError) as error:
        raise ProtocolViolated(f"{len(data)} bytes: {str(error)[:300]}") from error


def request_number(data: bytes) -> int:
    """The number of a message that is no valid request, so that its sender can be told; 0 when there is none."""
    try:
        loose = msgspec.msgpack.decode(data)
        number = loose.get("number", 0)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError, AttributeError):
        return 0
    return number if isinstance(number, int) and 0 < number < 1 << 62 else 0


class Server:
    """Answers one peer at a time. *handle* does the operations, *told* takes what needs no answer."""

    def __init__(
        self,
        handle: Handler,
        allowed_uid: int,
        on_peer: Callable[[Peer | None], None] = lambda _peer: None,
        told: Told = lambda _operation: None,
    ) -> None:
        self._handle = handle
        self._told = told
        self._allowed_uid = allowed_uid
        #: Told of the peer when its connection is made, and with None when that is gone.
        self._on_peer = on_peer
        self._channel: Channel | None = None
        self._running = 0
        self._closing = False
        self._ended = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        #: Ends of execs that nobody heard of: no answer tells them later, so they wait for the next peer.
        self._unheard: deque[ExecEnded] = deque(maxlen=MAX_UNHEARD)

    async def serve(self, listening: socket.socket) -> None:
        """Accept and answer for ever; cancelled, it waits for the operations that run."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            self._group = group
            while True:
                try:
                    connection, _ = await loop.sock_accept(listening)
                except OSError as error:
                    # EMFILE and its kind: nothing is gained by ending.
                    log.error("accepting: %s", error)
                    await asyncio.sleep(0.1)
                    continue
                channel = Channel(connection)
                if self._accepts(channel):
                    self._channel = channel
                    self._on_peer(channel.peer)
                    group.create_task(self._read(channel), name="peer")

    def _accepts(self, channel: Channel) -> bool:
        peer: Peer = channel.peer
        why = ""
        if peer.uid != self._allowed_uid:
            why = f"uid {peer.uid} (pid {peer.pid}) is not casemated's account (uid {self._allowed_uid})"
        elif self._channel is not None and not self._channel.closed:
            why = f"pid {peer.pid}: another connection lives"
        if not why:
            return True
        log.warning("refused a peer: %s", why)
        with contextlib.suppress(CasemateError):
            channel.send(_encoder.encode(Reply(0, Failed(PeerRefused(why).to_problem()))))
        channel.close()
        return False

    async def quiet(self, timeout_s: float) -> None:
        """Take no more requests, and wait until those that run have ended, at most *timeout_s*."""
        self._closing = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._running:
                    self._ended.clear()
                    await self._ended.wait()

    def emit(self, event: AnyEvent) -> None:
        """Send an event; without a peer it is dropped, since who connects asks for the state: but for execs' ends."""
        if self._channel is not None and not self._channel.closed:
            try:
                self._channel.send(_encoder.encode(Notice(event)))
                return
            except CasemateError as error:
                log.warning("the peer was dropped: %s", error.detail)
        if isinstance(event, ExecEnded):
            self._unheard.append(event)

    async def _read(self, channel: Channel) -> None:
        greeted, violations = False, 0

        def take(message: Message | LimitExceeded) -> bool:
            nonlocal greeted, violations
            if isinstance(message, LimitExceeded):
                violations += 1
                self._answer(channel, 0, Failed(message.to_problem()), [])
                return violations < _MAX_VIOLATIONS
            try:
                request = self._admit(message, greeted)
                if request.number == 0:
                    self._tell(request, message)
                    return True
            except CasemateError as error:
                violations += isinstance(error, ProtocolViolated)
                message.close()
                self._answer(channel, request_number(message.data), Failed(error.to_problem()), [])
                return violations < _MAX_VIOLATIONS
            greeted = True
            self._running += 1
            assert self._group is not None
            self._group.create_task(self._run(channel, request, message.fds), name="operation")
            return True

        try:
            await channel.each(take)
            if violations >= _MAX_VIOLATIONS:
                log.warning("hung up on the peer after %d messages that were no requests", violations)
        finally:
            channel.close()
            self._on_peer(None)

    def _tell(self, request: Request, message: Message) -> None:
        """Do what needs no answer. Raises :class:`ProtocolViolated` for an operation that needs one."""
        if not isinstance(request.operation, FirewallAnswer) or message.fds:
            raise ProtocolViolated(f"{_name(request)} bears number 0, or descriptors that it takes none of")
        try:
            self._told(request.operation)
        except Exception as error:
            _unforeseen(request, error)

    def _admit(self, message: Message, greeted: bool) -> Request:
        if len(message.data) > protocol.MAX_MESSAGE_BYTES or len(message.fds) > protocol.MAX_DESCRIPTORS:
            raise LimitExceeded(f"{len(message.data)} bytes and {len(message.fds)} descriptors in one message")
        request = decode(message.data)
        if not greeted and not isinstance(request.operation, Hello):
            raise ProtocolViolated("the first operation is not hello")
        if isinstance(request.operation, Hello) and request.operation.version != protocol.PROTOCOL_VERSION:
            raise ProtocolViolated(
                f"protocol version {request.operation.version}; this hostd speaks {protocol.PROTOCOL_VERSION}"
            )
        if self._closing:
            raise Busy("hostd is ending")
        if self._running >= MAX_OPERATIONS and request.number:
            raise Busy(f"{self._running} operations run", limit=MAX_OPERATIONS)
        return request

    async def _run(self, channel: Channel, request: Request, fds: list[int]) -> None:
        answer: AnyAnswer
        given: list[int] = []
        received = Message(b"", fds)
        deadline_s = LONG_DEADLINE_S if isinstance(request.operation, _LONG) else DEADLINE_S
        try:
            async with asyncio.timeout(deadline_s):
                answer, given = await self._handle(request.operation, received.fds)
        except TimeoutError:
            answer = Failed(TimedOut(f"{_name(request)} did not end within {deadline_s:g} s").to_problem())
        except CasemateError as error:
            answer = Failed(error.to_problem())
        except Exception as error:
            answer = _unforeseen(request, error)
        finally:
            self._running -= 1
            self._ended.set()
            received.close()
        self._answer(channel, request.number, answer, given)
        if isinstance(request.operation, Hello) and not isinstance(answer, Failed):
            unheard = tuple(self._unheard)
            self._unheard.clear()
            for event in unheard:
                self.emit(event)

    def _answer(self, channel: Channel, number: int, answer: AnyAnswer, fds: list[int]) -> None:
        try:
            channel.send(_encoder.encode(Reply(number, answer)), fds)
        except CasemateError as error:
            log.warning("an answer was not sent: %s", error.detail)
        finally:
            Message(b"", fds).close()


def _unforeseen(request: Request, error: Exception) -> Failed:
    """What nobody caught: a full disk, which may be met at any write, by its name; anything else as a trace id."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failed(DiskFull(f"{_name(request)}: {error.strerror}").to_problem())
    # The text stays here: what an unknown failure says may hold anything.
    trace = uuid.uuid4().hex[:16]
    log.error("%s failed, trace %s\n%s", _name(request), trace, "".join(traceback.format_exception(error)))
    return Failed(CasemateError(f"casemate-hostd failed; trace {trace} in its journal").to_problem())


def _name(request: Request) -> str:
    return str(request.operation.__struct_config__.tag)
