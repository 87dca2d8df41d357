"""Packets that the kernel's firewall holds for us: a queue bound, its packets' addresses and ports read, verdicts sent.

Only fixed header fields are read, with bounds: who, whom, protocol, ports; nothing of what is in the packet. Why our
own: decision 0087.
Source: linux/netfilter/nfnetlink_queue.h; RFC 791, 8200, 9293, 768, 9260, 792, 4443.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import NamedTuple

from casemate.host.netlink import attribute, attributes, messages
from casemate.host.rtnetlink import NetlinkFailed

DROP, ACCEPT, REPEAT = 0, 1, 4
_SUBSYSTEM = 3 << 8
_PACKET, _VERDICT, _CONFIG = 0, 1, 2
_BIND, _COPY_PACKET = 1, 2
_SO_RCVBUFFORCE, _NO_ENOBUFS, _SOL_NETLINK = 33, 5, 270
#: Enough for IPv6 with the extension headers that are walked, and the ports.
COPY_BYTES = 160
_RECEIVE_BUFFER_BYTES = 8 << 20
#: One datagram has one packet.
_DATAGRAM_BYTES = 4096
_TCP, _UDP, _SCTP, _ICMP, _ICMP6 = 6, 17, 132, 1, 58
#: Extension headers of IPv6 that stand before the transport header, with a length of their own; more are not walked.
_EXTENSIONS = (0, 43, 60)
_MAX_EXTENSIONS = 4
_HEADER = struct.Struct("!IHB")
_VERDICT_BYTES = struct.Struct("=IHHII BBH HHII")


class Queued(NamedTuple):
    """A packet that waits: the kernel's number, addresses of 4 or 16 bytes, protocol, ports (ICMP: 0 and its type).

    *protocol* 0: no whole header could be read.
    """

    id: int
    indev: int
    source: bytes
    destination: bytes
    protocol: int
    source_port: int
    port: int


class PacketQueue:
    """The queue *number* of this network namespace. Not for two threads at once."""

    def __init__(self, number: int, max_packets: int) -> None:
        self.number = number
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 12)
        try:
            self._socket.settimeout(5.0)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
            # A full buffer must not be an error of the whole queue: the packet is dropped, and the kernel counts it.
            self._socket.setsockopt(_SOL_NETLINK, _NO_ENOBUFS, 1)
            self._socket.bind((0, 0))
            self._configure(attribute(1, struct.pack("!BxH", _BIND, 0)), "binding")
            self._configure(attribute(2, struct.pack("!IB", COPY_BYTES, _COPY_PACKET)), "setting the copied size of")
            self._configure(attribute(3, struct.pack("!I", max_packets)), "bounding")
            self._socket.setblocking(False)
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        """Leave the queue: what waits in it is dropped."""
        self._socket.close()

    def _configure(self, body: bytes, what: str) -> None:
        head = struct.pack("=IHHIIBBH", 20 + len(body), _SUBSYSTEM | _CONFIG, 5, 0, 0, 0, 0, socket.htons(self.number))
        self._socket.send(head + body)
        for kind, _, _, answer in messages(self._socket.recv(_DATAGRAM_BYTES)):
            number = -struct.unpack_from("=i", answer)[0] if kind == 2 else 0
            if number:
                raise NetlinkFailed(f"{what} packet queue {self.number}", number)

    def receive(self, limit: int) -> list[Queued]:
        """Up to *limit* packets that came; nothing when none waits."""
        found: list[Queued] = []
        receive = self._socket.recv
        for _ in range(limit):
            try:
                data = receive(_DATAGRAM_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    continue
                raise
            one = parse(data)
            if one is not None:
                found.append(one)
        return found

    def verdict(self, packet: int, verdict: int, mark: int = 0) -> None:
        """What becomes of the packet; one that the kernel has no longer is no error."""
        size = 40 if mark else 32
        data = struct.pack(
            "=IHHIIBBHHHII", size, _SUBSYSTEM | _VERDICT, 1, 0, 0, 0, 0, socket.htons(self.number), 12, 2,
            socket.htonl(verdict), socket.htonl(packet),
        )  # fmt: skip
        if mark:
            data += struct.pack("=HHI", 8, 3, socket.htonl(mark))
        try:
            self._socket.send(data)
        except OSError as error:
            # Its interface went away meanwhile.
            if error.errno not in (errno.ENOENT, errno.EAGAIN):
                raise


def parse(datagram: bytes) -> Queued | None:
    """The packet in a netlink message of the kernel's; None where there is none in it."""
    for kind, _, _, body in messages(datagram):
        if kind != _SUBSYSTEM | _PACKET:
            continue
        try:
            found = dict(attributes(body[4:]))
            number = _HEADER.unpack_from(found[1])[0]
            indev = struct.unpack("!I", found[5])[0] if 5 in found else 0
            return Queued(number, indev, *ends(found.get(10, b"")))
        except (ValueError, KeyError, struct.error):
            continue
    return None


def ends(packet: bytes) -> tuple[bytes, bytes, int, int, int]:
    """Addresses, protocol and ports of an IP packet, of which the first :data:`COPY_BYTES` are here.

    Protocol 0 where its headers are not whole; no address where it is no IP packet.
    """
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        source, destination, protocol = packet[12:16], packet[16:20], packet[9]
        offset = (packet[0] & 15) * 4
        # A later fragment has no ports; the kernel joins fragments before it asks us.
        if offset < 20 or (packet[6] << 8 | packet[7]) & 0x1FFF:
            return source, destination, 0, 0, 0
    elif len(packet) >= 40 and packet[0] >> 4 == 6:
        source, destination, protocol = packet[8:24], packet[24:40], packet[6]
        offset = 40
        for _ in range(_MAX_EXTENSIONS):
            if protocol not in _EXTENSIONS or len(packet) < offset + 2:
                break
            protocol, offset = packet[offset], offset + 8 + packet[offset + 1] * 8
        if protocol in _EXTENSIONS:
            return source, destination, 0, 0, 0
    else:
        return b"", b"", 0, 0, 0
    if protocol in (_TCP, _UDP, _SCTP):
        if len(packet) < offset + 4:
            return source, destination, 0, 0, 0
        ports = packet[offset : offset + 4]
        return source, destination, protocol, ports[0] << 8 | ports[1], ports[2] << 8 | ports[3]
    if protocol in (_ICMP, _ICMP6):
        if len(packet) < offset + 1:
            return source, destination, 0, 0, 0
        return source, destination, protocol, 0, packet[offset]
    return source, destination, protocol, 0, 0
