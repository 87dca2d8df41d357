"""The host's end of an engine's resolver, alone: what it asks, whom, and what a hostile guest gets out of it."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

#: A server at 127.0.0.11 that answers every question with its bytes turned round; it says when it listens.
SERVER = """
import socket, threading
udp, tcp = socket.socket(type=socket.SOCK_DGRAM), socket.socket()
udp.bind(("127.0.0.11", 53)); tcp.bind(("127.0.0.11", 53)); tcp.listen()
def streams():
    while True:
        one, _ = tcp.accept()
        data = one.recv(5000)
        one.sendall(len(data[2:]).to_bytes(2, "big") + data[:1:-1]); one.close()
threading.Thread(target=streams, daemon=True).start()
print("up", flush=True)
while True:
    data, who = udp.recvfrom(5000)
    udp.sendto(data[::-1], who)
"""
QUESTION = bytes(range(40))


@contextmanager
def served(*, server: bool) -> Iterator[int]:
    """The pid of a process in a network namespace of its own, with the server there."""
    command = [sys.executable, "-c", SERVER] if server else ["sh", "-c", "echo up; exec sleep 100"]
    words = ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh", *command]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            yield process.pid
        finally:
            process.kill()


@contextmanager
def relay(shim: Path, pid: int) -> Iterator[tuple[socket.socket, subprocess.Popen[bytes]]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(20)
    with ours, theirs:
        number = theirs.fileno()
        with subprocess.Popen([shim, "resolver", str(pid), str(number)], pass_fds=(number,)) as process:
            theirs.close()
            try:
                yield ours, process
            finally:
                process.kill()


def ask(guest: socket.socket, number: int, kind: int, question: bytes = QUESTION) -> tuple[int, int, bytes]:
    guest.sendall(struct.pack("<HHI", number, kind, len(question)) + question)
    head = guest.recv(8, socket.MSG_WAITALL)
    number, kind, length = struct.unpack("<HHI", head)
    return number, kind, guest.recv(length, socket.MSG_WAITALL) if length else b""


def test_questions_by_datagram_and_by_stream(built: tuple[Path, Path]) -> None:
    with served(server=True) as pid, relay(built[1], pid) as (guest, process):
        assert ask(guest, 7, 0) == (7, 0, QUESTION[::-1])
        assert ask(guest, 65_535, 1) == (65_535, 1, QUESTION[::-1])
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert "CapPrm:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status
        assert "Uid:\t65534\t65534\t65534\t65534" in status
        assert os.readlink(f"/proc/{process.pid}/ns/net") == os.readlink(f"/proc/{pid}/ns/net")
        # Byte for byte, as a guest under load may write it.
        for byte in struct.pack("<HHI", 9, 0, len(QUESTION)) + QUESTION:
            guest.sendall(bytes([byte]))
        assert guest.recv(8, socket.MSG_WAITALL) == struct.pack("<HHI", 9, 0, len(QUESTION))
        guest.close()
        assert process.wait(20) == 0


def test_nobody_listens(built: tuple[Path, Path]) -> None:
    with served(server=False) as pid, relay(built[1], pid) as (guest, process):
        # A connection that is refused ends the guest's; a datagram stays without an answer.
        assert ask(guest, 3, 1) == (3, 1, b"")
        guest.sendall(struct.pack("<HHI", 4, 0, len(QUESTION)) + QUESTION)
        assert process.poll() is None


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack("<HHI", 1, 0, 4097),
        struct.pack("<HHI", 1, 0, 0xFFFF_FFFF),
        struct.pack("<HHI", 1, 1, 0),
        struct.pack("<HHI", 1, 0, 11) + bytes(11),
    ],
)
def test_frames_that_are_none_end_it(built: tuple[Path, Path], frame: bytes) -> None:
    with served(server=False) as pid, relay(built[1], pid) as (guest, process):
        guest.sendall(frame)
        assert process.wait(20) == 1


def test_more_questions_than_it_keeps(built: tuple[Path, Path]) -> None:
    with served(server=True) as pid, relay(built[1], pid) as (guest, _):
        for number in range(300):
            guest.sendall(struct.pack("<HHI", number, 0, len(QUESTION)) + QUESTION)
        # Of a kind that is none nothing comes; the next is answered all the same.
        guest.sendall(struct.pack("<HHI", 301, 2, len(QUESTION)) + QUESTION)
        numbers = set()
        while 299 not in numbers and len(numbers) < 64:
            numbers.add(struct.unpack("<HHI", guest.recv(8, socket.MSG_WAITALL))[0])
            assert guest.recv(len(QUESTION), socket.MSG_WAITALL) == QUESTION[::-1]
        assert 301 not in numbers
