"""Messages with descriptors: bounds, ends, refused peers, peers that do not read."""

from __future__ import annotations

import array
import asyncio
import os
import socket
from pathlib import Path

import pytest

from casemate.host import seqpacket
from casemate.host.peer import peer_of, peer_pidfd
from casemate.host.seqpacket import MAX_DESCRIPTORS, MAX_MESSAGE_BYTES, Channel, ConnectionLost
from casemate.spec.errors import LimitExceeded


def pair() -> tuple[Channel, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(ours), theirs


def _flood(channel: Channel) -> None:
    for _ in range(100_000):
        channel.send(b"x" * 10_000, [0])


def test_bytes_and_descriptors_travel_whole() -> None:
    async def body() -> None:
        channel, other = pair()
        peer = Channel(other)
        reader, writer = os.pipe()
        channel.send(b"x" * MAX_MESSAGE_BYTES, [writer])
        os.close(writer)
        message = await peer.receive()
        assert message is not None
        assert len(message.data) == MAX_MESSAGE_BYTES
        os.write(message.fds[0], b"through")
        assert not os.get_inheritable(message.fds[0])
        message.close()
        assert os.read(reader, 100) == b"through"
        os.close(reader)
        channel.close()
        assert await peer.receive() is None
        peer.close()

    asyncio.run(body())


@pytest.mark.parametrize("data", [b"", b"x" * (MAX_MESSAGE_BYTES + 1)])
def test_what_is_too_large_or_empty_is_not_sent(data: bytes) -> None:
    async def body() -> None:
        channel, other = pair()
        with pytest.raises(LimitExceeded):
            channel.send(data)
        with pytest.raises(LimitExceeded):
            channel.send(b"x", [0] * (MAX_DESCRIPTORS + 1))
        channel.close()
        other.close()

    asyncio.run(body())


def test_too_many_descriptors_are_refused_and_closed() -> None:
    async def body() -> None:
        channel, other = pair()
        before = len(os.listdir("/proc/self/fd"))
        rights = array.array("i", [0] * (MAX_DESCRIPTORS + 4))
        other.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        with pytest.raises(LimitExceeded):
            await channel.receive()
        assert len(os.listdir("/proc/self/fd")) == before
        channel.close()
        other.close()

    asyncio.run(body())


def test_a_message_that_is_too_large_is_refused() -> None:
    async def body() -> None:
        channel, other = pair()
        other.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MAX_MESSAGE_BYTES)
        try:
            other.send(b"x" * (MAX_MESSAGE_BYTES + 1))
        except OSError:
            pytest.skip("missing: a socket buffer above 256 KiB (net.core.wmem_max)")
        with pytest.raises(LimitExceeded):
            await channel.receive()
        channel.close()
        other.close()

    asyncio.run(body())


def test_a_peer_that_does_not_read_is_dropped() -> None:
    async def body() -> None:
        channel, other = pair()
        with pytest.raises(ConnectionLost, match="unread"):
            _flood(channel)
        assert channel.closed
        with pytest.raises(ConnectionLost):
            channel.send(b"x")
        assert await channel.receive() is None
        other.close()

    before = sorted(os.listdir("/proc/self/fd"))
    asyncio.run(body())
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_what_waits_is_sent_in_order_once_the_peer_reads() -> None:
    async def body() -> None:
        channel, other = pair()
        peer = Channel(other)
        for number in range(200):
            channel.send(b"%d" % number + b" " * 5000)
        got = [await peer.receive() for _ in range(200)]
        assert [int(one.data) for one in got if one] == list(range(200))
        await channel.drain()
        channel.close()
        peer.close()

    asyncio.run(body())


def test_closing_wakes_a_waiting_receiver() -> None:
    async def body() -> None:
        channel, other = pair()
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            waiting = group.create_task(channel.receive())
            await asyncio.sleep(0)
            other.close()
        assert waiting.result() is None
        channel.close()
        channel.close()

    asyncio.run(body())


def test_a_server_refuses_peers_unheard_and_a_second_server_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"

    async def body() -> None:
        heard: list[bytes] = []
        accepted = [True]

        async def handle(channel: Channel) -> None:
            while message := await channel.receive():
                heard.append(message.data)
                channel.send(b"answer")

        server = seqpacket.listen(path)
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(FileExistsError):
            seqpacket.listen(path)
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            serving = group.create_task(seqpacket.serve(server, handle, accepts=lambda peer: accepted[0]))
            client = await seqpacket.connect(path)
            assert client.peer.pid == os.getpid()
            client.send(b"hello")
            answer = await client.receive()
            assert answer is not None
            client.close()
            accepted[0] = False
            refused = await seqpacket.connect(path)
            assert await refused.receive() is None
            refused.close()
            serving.cancel()
        server.close()
        assert heard == [b"hello"]
        with pytest.raises(ConnectionLost):
            await seqpacket.connect(path)
        seqpacket.listen(path).close()  # a dead socket's name is taken over

    asyncio.run(body())


def test_the_peers_credentials_are_the_kernels() -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    peer = peer_of(one)
    assert (peer.pid, peer.uid, peer.gid) == (os.getpid(), os.geteuid(), os.getegid())
    assert set(peer.groups) == set(os.getgroups())
    number = peer_pidfd(one)
    if number is not None:
        assert not os.get_inheritable(number)
        os.close(number)
    one.close()
    other.close()
