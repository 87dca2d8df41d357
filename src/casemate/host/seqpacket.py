"""Messages with descriptors over a unix SOCK_SEQPACKET socket, on the loop.

One send is one message: nothing is framed, nothing can be cut in two. Sizes, descriptors per message and the
messages that wait to be sent are bounded; a peer that does not read is closed, not waited for.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import mmap
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from casemate.host.peer import Peer, peer_of
from casemate.spec.errors import CasemateError, LimitExceeded

#: Larger than any request or answer of ours (a spec with 1,000 mounts is below 200 KiB).
MAX_MESSAGE_BYTES = 256 << 10
#: stdin, stdout, stderr, a console, and as much again. The kernel's own bound is 253.
MAX_DESCRIPTORS = 8
#: Messages that may wait for a slow peer before it is dropped.
MAX_WAITING = 256
#: sun_path has 108 bytes with its null.
_MAX_PATH_BYTES = 107
#: Then the loop's other work gets its turn.
_MESSAGES_A_TURN = 64
#: The host is short of descriptors or memory for a moment, or the peer went away: no reason to stop serving.
_SHORT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED)
_SHORT_PAUSE_S = 0.1


class ConnectionLost(CasemateError):
    code = "host.connection_lost"
    status = 503
    title = "The other process closed the connection"
    remedy = "See that process's journal; the client connects again by itself."
    retryable = True


@dataclass(slots=True)
class Message:
    """What came in one send: the bytes, and the descriptors (the receiver's to close)."""

    data: bytes
    fds: list[int]

    def close(self) -> None:
        """Close the descriptors that nobody took."""
        while self.fds:
            os.close(self.fds.pop())


class Channel:
    """One connected socket. One task may receive; any may send."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        # Asked for by name the kernel doubles it (wmem_max is 212,992): without, 256 KiB do not fit in a message.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MAX_MESSAGE_BYTES)
        self._socket = connection
        self._loop = asyncio.get_running_loop()
        self._outgoing: deque[tuple[bytes, list[int]]] = deque()
        self._writing = False
        self._drained = asyncio.Event()
        self._drained.set()
        self.closed = False
        self._wake: Callable[[], None] = lambda: None
        #: A new one for each message would cost more than reading it. Only what messages have filled takes memory.
        self._buffer = mmap.mmap(-1, MAX_MESSAGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    @property
    def peer(self) -> Peer:
        """Who is at the other end (as it was when it connected)."""
        return peer_of(self._socket)

    async def receive(self) -> Message | None:
        """The next message, or None at the end. Raises :class:`LimitExceeded` for one that is too large."""
        while True:
            if self.closed:
                return None
            try:
                return self._receive_now()
            except (BlockingIOError, InterruptedError):
                await self._readable()
            except OSError:
                return None

    def at_hand(self) -> Iterator[Message]:
        """What has come and was not received yet, without a wait; a turn's worth at most.

        The task that receives goes on with what comes then. Raises :class:`LimitExceeded`.
        """
        for _ in range(_MESSAGES_A_TURN):
            if self.closed:
                return
            try:
                message = self._receive_now()
            except OSError:
                return
            if message is None:
                return  # the end: the task that receives finds it, too
            yield message

    def _receive_now(self) -> Message | None:
        space = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4)
        size, ancillary, flags, _ = self._socket.recvmsg_into([self._buffer], space, socket.MSG_CMSG_CLOEXEC)
        data = bytes(memoryview(self._buffer)[:size])
        fds: list[int] = []
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(payload[: len(payload) - len(payload) % 4])
                fds.extend(numbers)
        message = Message(data, fds)
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            message.close()
            raise LimitExceeded(
                f"a message of more than {MAX_MESSAGE_BYTES} bytes or {MAX_DESCRIPTORS} descriptors came in"
            )
        if not data and not fds:
            return None  # the end: an empty message is not one of ours
        return message

    async def each(self, take: Callable[[Message | LimitExceeded], bool]) -> None:
        """Hand every message to *take* as it comes, on the loop, until the end or until *take* gives False.

        Without a task's turn between the socket and *take*: for those that packets wait for.
        """
        over: asyncio.Future[None] = self._loop.create_future()
        number = self._socket.fileno()
        if number < 0:
            return

        def end() -> None:
            if not over.done():
                over.set_result(None)

        def read() -> None:
            try:
                for _ in range(_MESSAGES_A_TURN):
                    message = self._next()
                    if message is None or not take(message):
                        self._loop.remove_reader(number)
                        end()
                        return
                    if self.closed:
                        return
            except (BlockingIOError, InterruptedError):
                pass
            except Exception as error:
                self._loop.remove_reader(number)
                if not over.done():
                    over.set_exception(error)

        self._wake = end
        self._loop.add_reader(number, read)
        try:
            await over
        finally:
            if self._socket.fileno() >= 0:
                self._loop.remove_reader(number)

    def _next(self) -> Message | LimitExceeded | None:
        try:
            return self._receive_now()
        except LimitExceeded as error:
            return error
        except (BlockingIOError, InterruptedError):
            raise
        except OSError:
            return None

    async def _readable(self) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()
        number = self._socket.fileno()
        if number < 0:
            return

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        self._wake = wake
        self._loop.add_reader(number, wake)
        try:
            await ready
        finally:
            if self._socket.fileno() >= 0:
                self._loop.remove_reader(number)

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send, or queue behind what waits; the descriptors are duplicated, the caller's stay the caller's.

        Raises :class:`LimitExceeded` (too large), :class:`ConnectionLost` (closed, or the peer does not read).
        """
        if self.closed:
            raise ConnectionLost("the connection is closed")
        if len(data) > MAX_MESSAGE_BYTES or len(fds) > MAX_DESCRIPTORS or not data:
            raise LimitExceeded(
                f"a message of {len(data)} bytes and {len(fds)} descriptors; allowed: 1 to {MAX_MESSAGE_BYTES},"
                f" and {MAX_DESCRIPTORS}"
            )
        if not self._writing:
            try:
                self._send_now(data, fds)
                return
            except (BlockingIOError, InterruptedError):
                pass
            except OSError as error:
                self.close()
                raise ConnectionLost(f"sending: {error.strerror}") from error
        if len(self._outgoing) >= MAX_WAITING:
            self.close()
            raise ConnectionLost(f"the peer left {MAX_WAITING} messages unread")
        self._outgoing.append((data, [os.dup(number) for number in fds]))
        if not self._writing:
            self._writing = True
            self._drained.clear()
            self._loop.add_writer(self._socket.fileno(), self._flush)

    async def drain(self) -> None:
        """Wait until nothing waits to be sent."""
        await self._drained.wait()

    def _send_now(self, data: bytes, fds: Sequence[int]) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._socket.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)

    def _flush(self) -> None:
        while self._outgoing:
            data, fds = self._outgoing[0]
            try:
                self._send_now(data, fds)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self.close()
                return
            self._outgoing.popleft()
            for number in fds:
                os.close(number)
        self._loop.remove_writer(self._socket.fileno())
        self._writing = False
        self._drained.set()

    def close(self) -> None:
        """Close; what waits is dropped. A receiver that waits gets None."""
        if self.closed:
            return
        self.closed = True
        number = self._socket.fileno()
        self._loop.remove_writer(number)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._loop.remove_reader(number)
        # Without its reader nothing else would wake a task that waits in receive().
        self._wake()
        self._socket.close()
        for _, fds in self._outgoing:
            for one in fds:
                os.close(one)
        self._outgoing.clear()
        self._drained.set()


@contextlib.contextmanager
def _address(path: Path) -> Generator[str]:
    """*path* as the kernel takes it: at most 107 bytes (unix(7)), so a longer one through its folder's descriptor."""
    text = str(path)
    if len(os.fsencode(text)) <= _MAX_PATH_BYTES:
        yield text
        return
    number = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{number}/{path.name}"
    finally:
        os.close(number)


def listen(path: Path, *, mode: int = 0o600, owner: tuple[int, int] | None = None, backlog: int = 64) -> socket.socket:
    """A listening socket at *path*; a dead one that lies there is replaced, a live one is an error.

    Raises ``FileExistsError`` when another process listens there.
    """
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as probe:
            probe.setblocking(False)
            try:
                with _address(path) as address:
                    probe.connect(address)
            except (FileNotFoundError, ConnectionRefusedError):
                pass
            else:
                raise FileExistsError(17, "another process listens there", str(path))
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        with _address(temporary) as address:
            server.bind(address)
        # Mode and owner are right before the name exists.
        temporary.chmod(mode)
        if owner is not None:
            os.chown(temporary, *owner)
        server.listen(backlog)
        temporary.rename(path)
    except BaseException:
        server.close()
        raise
    return server


def connected(path: Path) -> socket.socket | None:
    """A non-blocking connection to the socket at *path*; None when nobody listens there, or its backlog is full."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        with _address(path) as address:
            connection.connect(address)
    except OSError:
        connection.close()
        return None
    return connection


async def connect(path: Path) -> Channel:
    """A channel to the socket at *path*; raises :class:`ConnectionLost` when nobody answers."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    connection.setblocking(False)
    try:
        # A unix connect completes at once or fails; EAGAIN means a full backlog.
        with _address(path) as address:
            await asyncio.get_running_loop().sock_connect(connection, address)
    except OSError as error:
        connection.close()
        raise ConnectionLost(f"{path}: {error.strerror or error}", path=str(path)) from error
    return Channel(connection)


async def serve(
    server: socket.socket,
    handle: Callable[[Channel], Awaitable[None]],
    *,
    accepts: Callable[[Peer], bool],
    max_connections: int = 16,
) -> None:
    """Accept peers for ever; *handle* each in a task of its own. One that *accepts* refuses is closed unheard.

    What *handle* raises ends the whole server: it answers its own errors.
    """
    loop = asyncio.get_running_loop()
    places = asyncio.Semaphore(max_connections)

    async def one(channel: Channel) -> None:
        try:
            await handle(channel)
        finally:
            channel.close()
            places.release()

    async with asyncio.TaskGroup() as group:
        while True:
            await places.acquire()
            try:
                connection, _ = await loop.sock_accept(server)
            except OSError as error:
                places.release()
                if error.errno not in _SHORT_OF:
                    raise
                await asyncio.sleep(_SHORT_PAUSE_S)
                continue
            if accepts(peer_of(connection)):
                group.create_task(one(Channel(connection)))
            else:
                connection.close()
                places.release()
