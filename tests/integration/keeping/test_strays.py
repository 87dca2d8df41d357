"""Packets of a kept port that belong to nothing: what a pod says to a socket that is gone never gets to the client.

Both sides of a relayed connection have the same ends, and the kernel numbers them by the same clock: a late packet of
the pod's fits the window of the client's side, by which connection tracking takes the client's next bytes for old ones.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import select
import socket
import struct
from collections.abc import Iterator

from tests.integration.firewall.lab import ACK, Packet
from tests.integration.keeping.kept import PORT, Kept

from casemate.host import rtnetlink

FIN, RST = 1, 4
#: So that a stray one is known.
NUMBER = 0x5A5A
#: Further than a window, and less than what is thought to be new: what a pod's side is ahead after 5 ms.
AHEAD = 74_242


@contextlib.contextmanager
def raw(kept: Kept, name: str) -> Iterator[socket.socket]:
    """A raw socket at the interface of the pod of *name*."""

    def work() -> socket.socket:
        one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(0x0800))
        one.bind(("eth0", 0x0800))
        return one

    one = kept.inside(name, work)
    try:
        yield one
    finally:
        one.close()


def gateway(kept: Kept, name: str) -> bytes:
    """The hardware address that *name* knows its gateway by."""

    def work() -> bytes:
        with rtnetlink.RouteSocket() as routes:
            link = routes.link("eth0")
            assert link is not None
        with open("/proc/thread-self/net/arp", encoding="ascii") as file:
            row = next(line.split() for line in file if line.startswith("169.254.1.1 "))
        return rtnetlink.mac_bytes(row[3])

    return kept.inside(name, work)


def heard(one: socket.socket) -> list[bytes]:
    """IPv4 packets that have come in by now."""
    found = []
    while select.select([one], [], [], 0)[0]:
        data, where = one.recvfrom(65536)
        if where[2] != socket.PACKET_OUTGOING:
            found.append(data[14:])
    return found


def relayed(client: str, port: int, address: str) -> bool:
    """Whether the relay has a socket for the pod's side of the connection (proc(5), net/tcp)."""
    ends = [
        f"{struct.unpack('=I', socket.inet_aton(where))[0]:08X}:{number:04X}"
        for where, number in ((client, port), (address, PORT))
    ]
    with open("/proc/net/tcp", encoding="ascii") as file:
        return any(line.split()[1:3] == ends for line in file)


def test_what_a_pod_says_to_nobodys_socket_is_dropped(kept: Kept) -> None:
    """While it starts anew its side of the connection is nobody's: resets, ends and bytes that fit the client's."""
    address = kept.keep("web", "3000", replay=True)
    client = kept.run("one")
    kept.ready("one", address)
    with raw(kept, "one") as seen, raw(kept, "web") as wire, kept.lines("one", address) as one:
        before = one.ask("a")
        assert relayed(client, one.socket.getsockname()[1], address)
        # The client's side, as it is now: the number of the next byte from the service.
        answer = next(packet for packet in reversed(heard(seen)) if packet[12:16] == socket.inet_aton(address)
                      and struct.unpack("!H", packet[22:24])[0] == one.socket.getsockname()[1]
                      and len(packet) > 52)  # fmt: skip
        sequence, acknowledged = struct.unpack("!II", answer[24:32])
        size = struct.unpack("!H", answer[2:4])[0] - 20 - (answer[32] >> 4) * 4
        head = gateway(kept, "web") + wire.getsockname()[4] + b"\x08\0"
        ends = {"source": address, "destination": client, "source_port": PORT, "port": one.socket.getsockname()[1]}

        def stray(flags: int, ahead: int, payload: bytes = b"") -> bytes:
            number = (sequence + size + ahead) % (1 << 32)
            packet = Packet(**ends, flags=flags, sequence=number, acknowledged=acknowledged, number=NUMBER,
                            payload=payload)  # type: ignore[arg-type]  # fmt: skip
            return head + packet.bytes()

        with concurrent.futures.ThreadPoolExecutor() as pool:
            restarting = pool.submit(kept.restart, "web", hold_for_s=60)
            kept.until(lambda: not relayed(client, ends["port"], address), "the pod's side is closed", 30.0)
            sent = 0
            while not restarting.done() or not sent:
                for one_ in (stray(RST, AHEAD), stray(ACK | FIN, 0), stray(RST, 0), stray(ACK, 100, b"forged")):
                    wire.send(one_)
                    sent += 1
                os.sched_yield()
                select.select([], [], [], 0.02)
            restarting.result()
        assert sent
        after = one.ask("b")
        assert (after.line, after.peer) == ("b", one.name)
        assert after.start > before.start
        assert not [packet for packet in heard(seen) if packet[4:6] == struct.pack("!H", NUMBER)]


def test_a_pod_still_answers_the_host_and_itself(kept: Kept) -> None:
    """They are not relayed: the host's own connection, and one that the pod makes to itself by a published port."""
    published = 20_000 + int.from_bytes(os.urandom(2), "big") % 10_000
    address = kept.keep("web", published=published)

    def answers() -> bool:
        with contextlib.suppress(ConnectionError), socket.create_connection((address, PORT), 30) as here:
            here.sendall(b"x\n")
            return here.recv(100).endswith(b" x\n")
        return False

    kept.until(answers, "the service answers the host", 30.0)
    with kept.outside() as (_, host), kept.lines("web", host, published) as around:
        assert around.ask("y").line == "y"
