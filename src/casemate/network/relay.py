"""Sockets of the relay of kept connections: the listener that is given away, and connections to pods under a client's
address. Nothing of what goes through them is read here."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import struct
from pathlib import Path

from casemate.network.firewall.kept import LISTENER

_IP_TRANSPARENT = 19
_SO_MARK = 36
#: linux/sockios.h: a descriptor of the network namespace of a socket.
_SIOCGSKNS = 0x894C
#: The kernel lowers it to net.core.somaxconn.
BACKLOG = 65_535
#: A guest that boots answers nothing; one that runs answers within a millisecond.
PROBE_S = 0.5


def listen(mark: int) -> socket.socket:
    """A listening socket that takes connections to any address; those that it accepts bear *mark*."""
    one = _made(mark)
    try:
        one.bind((LISTENER, 0))
        one.listen(BACKLOG)
    except BaseException:
        one.close()
        raise
    return one


def _made(mark: int) -> socket.socket:
    one = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        one.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
        one.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark)
    except BaseException:
        one.close()
        raise
    return one


def ends(one: socket.socket, mark: int) -> tuple[tuple[str, int], tuple[str, int]] | None:
    """Both ends (own, peer's) of a TCP connection that a listener of :func:`listen` accepted; None for any other.

    Nobody without privilege can give a socket of this network namespace a mark: it is what tells ours from a forgery,
    whose addresses could be anybody's.
    """
    try:
        if (one.family, one.type, one.proto) != (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP):
            return None
        if one.getsockopt(socket.SOL_SOCKET, _SO_MARK) != mark or not _is_here(one):
            return None
        return one.getsockname(), one.getpeername()
    except OSError:
        return None


def _is_here(one: socket.socket) -> bool:
    number = fcntl.ioctl(one.fileno(), _SIOCGSKNS)
    try:
        there, here = os.fstat(number), Path("/proc/self/ns/net").stat()
    finally:
        os.close(number)
    return (there.st_ino, there.st_dev) == (here.st_ino, here.st_dev)


async def takes(address: str, port: int, mark: int) -> bool:
    """Whether a connection can be made there within :data:`PROBE_S`; it is reset at once."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as one:
        one.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
        try:
            async with asyncio.timeout(PROBE_S):
                await asyncio.get_running_loop().sock_connect(one, (address, port))
        except (OSError, TimeoutError):
            return False
        return True


def connect(client: tuple[str, int], pod: tuple[str, int], mark: int) -> socket.socket:
    """A connection to *pod* that has begun, from *client*'s address, and its port where that is free.

    Raises ``OSError``.
    """
    for port in (client[1], 0):
        one = _made(mark)
        try:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((client[0], port))
            with contextlib.suppress(BlockingIOError):
                one.connect(pod)
        except OSError as error:
            one.close()
            # The same two ends were connected a moment ago: the address is what counts.
            if port and error.errno in (errno.EADDRNOTAVAIL, errno.EADDRINUSE):
                continue
            raise
        return one
    raise AssertionError("the loop ends with a return or an error")
