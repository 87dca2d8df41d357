"""Packets that the kernel's firewall holds for us: a queue bound, its packets' addresses and ports read, verdicts sent.

Only fixed header fields are read, with bounds: who, whom, protocol, ports; nothing of what is in the packet. Why our
own: decision 0087.
Source: linux/netfilter/nfnetlink_queue.h; RFC 791, 8200, 9293, 768, 9260, 792, 4443.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple

from casemate.host.netlink import attribute, messages
from casemate.host.rtnetlink import NetlinkFailed

DROP, ACCEPT, REPEAT = 0, 1, 4
#: The kernel's queues of this network namespace.
STATES = "/proc/net/netfilter/nfnetlink_queue"
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
#: struct nlmsghdr, nfgenmsg, attribute NFQA_PACKET_HDR of a message with a packet.
_BEGIN = struct.Struct("=IHHII4xHHI")
_ATTRIBUTE = struct.Struct("=HH")
#: That attribute: number, protocol, hook.
_HEADER_BYTES = 11
#: The fields of an IPv4 header without options, and the ports behind it.
_IPV4 = struct.Struct("!B5xHxB2x4s4sHH")
_IPV4_BYTES = 24
_PAYLOAD, _INDEV = 10, 5
#: nlmsghdr, nfgenmsg (its number big-endian), NFQA_VERDICT_HDR; and NFQA_MARK.
_VERDICT_HEAD = struct.Struct("=IHHIIBBHHHII")
_MARK = struct.Struct("=HHI")
#: Verdicts of one system call: the kernel sends each packet on within it, some 20 us.
_VERDICTS_AT_ONCE = 64


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
        self.verdicts([(packet, verdict, mark)])

    def verdicts(self, given: Sequence[tuple[int, int, int]]) -> None:
        """What becomes of packets: (the kernel's number, verdict, mark or 0), many in one system call.

        Not NFQNL_MSG_VERDICT_BATCH: that is about every packet up to a number, also those that wait for a person.
        """
        number, pack, mark_of = socket.htons(self.number), _VERDICT_HEAD.pack, _MARK.pack
        for start in range(0, len(given), _VERDICTS_AT_ONCE):
            parts: list[bytes] = []
            for packet, verdict, mark in given[start : start + _VERDICTS_AT_ONCE]:
                parts.append(
                    pack(40 if mark else 32, _SUBSYSTEM | _VERDICT, 1, 0, 0, 0, 0, number, 12, 2,
                         socket.htonl(verdict), socket.htonl(packet))
                )  # fmt: skip
                if mark:
                    parts.append(mark_of(8, 3, socket.htonl(mark)))
            try:
                self._socket.send(b"".join(parts))
            except OSError as error:
                # Its interface went away meanwhile.
                if error.errno not in (errno.ENOENT, errno.EAGAIN):
                    raise


def dropped(text: str) -> dict[int, int]:
    """Packets that the kernel dropped, by queue, since each was bound: it was full, or its reader's buffer was.

    *text* is :data:`STATES`, whose columns are number, reader, packets that wait, how much is copied (two), dropped for
    either reason, the last packet's number.
    """
    rows = (line.split() for line in text.splitlines())
    return {int(row[0]): int(row[5]) + int(row[6]) for row in rows if len(row) >= 8}


def parse(datagram: bytes) -> Queued | None:
    """The packet in a netlink message of the kernel's; None where there is none in it.

    One message is in a datagram, its first attribute says the packet's number, and the packet is looked for behind.
    """
    whole = len(datagram)
    if whole < _BEGIN.size:
        return None
    size, kind, _, _, _, length, attribute_kind, number = _BEGIN.unpack_from(datagram)
    if kind != _SUBSYSTEM | _PACKET or attribute_kind & 0x3FFF != 1 or length < _HEADER_BYTES or size > whole:
        return None
    offset, indev = 20, 0
    while offset + 4 <= size:
        length, attribute_kind = _ATTRIBUTE.unpack_from(datagram, offset)
        if length < 4 or offset + length > size:
            return None
        attribute_kind &= 0x3FFF
        if attribute_kind == _PAYLOAD:
            return Queued(socket.ntohl(number), indev, *ends(datagram[offset + 4 : offset + length]))
        if attribute_kind == _INDEV and length >= 8:
            indev = int.from_bytes(datagram[offset + 4 : offset + 8], "big")
        offset += (length + 3) & ~3
    return Queued(socket.ntohl(number), indev, b"", b"", 0, 0, 0)


def ends(packet: bytes) -> tuple[bytes, bytes, int, int, int]:
    """Addresses, protocol and ports of an IP packet, of which the first :data:`COPY_BYTES` are here.

    Protocol 0 where its headers are not whole; no address where it is no IP packet.
    """
    if len(packet) >= _IPV4_BYTES and packet[0] == 0x45:
        # Nearly every packet: one look at the fields of a header without options.
        _, fragment, protocol, source, destination, one, other = _IPV4.unpack_from(packet)
        if not fragment & 0x1FFF and protocol in (_TCP, _UDP, _SCTP):
            return source, destination, protocol, one, other
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
