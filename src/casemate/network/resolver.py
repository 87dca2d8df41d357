"""The way from a pod's resolv.conf to casemated's resolver: sockets on the gateway's address, rules that lead there.

The sockets have a port of their own choice: whatever serves names on the host keeps port 53. A pod that asks faster
than :data:`QUERIES_A_SECOND` is cut short in the kernel, before it costs anybody anything.
"""

from __future__ import annotations

import socket

from casemate.host import nft
from casemate.network.plan import GATEWAY, check_prefix

_IP_FREEBIND = 15
QUERIES_A_SECOND, QUERIES_BURST = 1000, 2000
_BACKLOG = 128
_RECEIVE_BYTES = 1 << 20


def listen() -> tuple[socket.socket, socket.socket]:
    """A UDP and a listening TCP socket on one port of the gateway's address, which need not be there yet."""
    for _ in range(16):
        stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            for one in (stream, datagram):
                one.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
                one.setblocking(False)
            stream.bind((GATEWAY, 0))
            datagram.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
            datagram.bind((GATEWAY, stream.getsockname()[1]))
            stream.listen(_BACKLOG)
        except OSError:
            stream.close()
            datagram.close()
            continue
        return datagram, stream
    raise OSError(98, "no port of the pods' gateway is free for UDP and TCP")


def table_name(table: str) -> str:
    return f"{nft.check_table_name(table)[:25]}_names"


def script(table: str, prefix: str, port: int) -> str:
    """The table as nft(8) text, in place of what there is of it.

    What is bounded is looked at where packets come to the host itself: those that are forwarded do not meet it.
    """
    name, ours = table_name(table), f'"{check_prefix(prefix)}*"'
    # The address first: every connection's first packet is asked.
    asked = f"ip daddr {GATEWAY} iifname {ours}"
    return f"""\
add table ip {name}
delete table ip {name}
add table ip {name}
add set ip {name} asking {{ type ipv4_addr; size 65535; flags dynamic,timeout; timeout 10s; }}
add chain ip {name} bound {{ type filter hook input priority filter; policy accept; }}
add rule ip {name} bound {asked} udp dport {port} update @asking \
{{ ip saddr limit rate over {QUERIES_A_SECOND}/second burst {QUERIES_BURST} packets }} counter drop
add chain ip {name} lead {{ type nat hook prerouting priority dstnat - 10; policy accept; }}
add rule ip {name} lead {asked} meta l4proto {{ tcp, udp }} th dport 53 dnat to {GATEWAY}:{port}
"""


def lay(context: nft.Nft, table: str, prefix: str, port: int) -> None:
    """Make the table, in place of what there is of it."""
    context.run(script(table, prefix, port))
