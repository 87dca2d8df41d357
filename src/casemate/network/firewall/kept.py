"""The way of kept connections: a table that leads them to the relay and its own to the pod, as text. Pure.

A *kept* port of a pod is served through a relay on this host, so that its open connections outlive a restart
(decision 0115). What the packets of one connection meet, in words:

- client to relay: after translation (so published ports work too) the first packet goes to the relay's listener, the
  others to their socket; the mark KEPT brings them there by a routing rule. The firewall's table judges them on their
  way in by the same connection and the same identities as if there were no relay;
- relay to client: the relay's sockets bear the mark DOWN: judged too;
- relay to pod: the sockets that casemate-hostd made bear the mark UP, and the client's address: not tracked, since the
  same connection is tracked on the client's side. The pod's answers are known by their socket, and marked BACK;
- what a kept port says to nobody's socket is dropped (not answers to the host, or of connections without the relay): it
  is late, and would be taken for the client's side of the same connection, whose numbers are close to its own
  (decision 0136).

Where nobody listens (the relay died) a first packet goes to the pod as to any other, judged as ever; such connections
are remembered, so that a relay that starts does not take them for its own. The memory is everybody's, so that a caller
begins so many in a second and has so many open, and what was never answered or is over is soon forgotten.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from casemate.host.nft_netlink import element

#: The relay's listener has the "IPv4 dummy address" (RFC 7600): nothing routes to it, only our rule leads there.
LISTENER = "192.0.0.8"
#: Connections that began while nobody listened, and how long one of them may say nothing.
MAX_DIRECT, DIRECT_FORGET_S = 65_535, 7_200
#: One caller's: begun in a second, at once, and open; and how long one is remembered that is not open (any more). So
#: one holds some 9,000 at most.
DIRECT_RATE, DIRECT_BURST, DIRECT_OPEN, DIRECT_OVER_S = 50, 500, 2_000, 120
#: What connection tracking still grants a connection: more, and it is open (TCP's other states have 120 s).
_OPEN_S = 125
#: After defragmentation (-400), before connection tracking (-200).
_EARLY = -305
#: After translation (-100) and the queue of held pods (-90).
_LEAD = -80
RULES = {"back": 1, "answer": 4, "lead": 2, "led": 10, "out": 1, "see": 1}


class Marks(NamedTuple):
    """Marks of packets, exact values. *kept* and *back* differ in the last bit: one routing rule has both.

    *probe*: casemate-hostd's own question whether a held pod takes connections; it does not wait with the others.
    """

    kept: int
    back: int
    down: int
    up: int
    probe: int


def number(table: str) -> int:
    """16 bits of *table*'s own, so that two nodes on one host do not meet."""
    return zlib.crc32(table.encode()) & 0xFFFF


def marks(table: str) -> Marks:
    first = 0x0C000000 | number(table) << 4
    return Marks(first, first | 1, first | 2, first | 4, first | 6)


def routing_table(table: str) -> int:
    """The number of the routing table in which everything is this host's own."""
    return 0x0C000000 | number(table)


def table_name(table: str) -> str:
    return f"{table[:26]}_keep"


def script(table: str, prefix: str, port: int, log_group: int, log_bytes: int) -> str:
    """The table as nft(8) text: made where it is missing, its rules anew; its elements stay.

    *port*: the listener's; 0: nobody listens. *log_group*: where first packets of TLS are told (as those forwarded).
    """
    name, ours, mark = table_name(table), f'"{prefix}*"', marks(table)
    flow = "ip saddr . tcp sport . ip daddr . tcp dport"
    first = "tcp flags & (fin|syn|rst|ack) == syn"
    go = f"meta l4proto tcp tproxy ip to {LISTENER}:{port or 1} meta mark set {mark.kept:#x} accept"
    return f"""\
add table inet {name}
add set inet {name} kept {{ type ipv4_addr . inet_service; }}
add set inet {name} itself {{ type ipv4_addr . ipv4_addr; }}
add set inet {name} direct {{ type ipv4_addr . inet_service . ipv4_addr . inet_service; size {MAX_DIRECT}; \
flags dynamic,timeout; timeout {DIRECT_FORGET_S}s; }}
add set inet {name} callers {{ type ipv4_addr; size {MAX_DIRECT}; flags dynamic,timeout; timeout 60s; }}
add set inet {name} open {{ type ipv4_addr; size {MAX_DIRECT}; flags dynamic; }}
add chain inet {name} led
add chain inet {name} answer
add chain inet {name} back {{ type filter hook prerouting priority {_EARLY}; policy accept; }}
add chain inet {name} lead {{ type filter hook prerouting priority {_LEAD}; policy accept; }}
add chain inet {name} out {{ type filter hook output priority {_EARLY}; policy accept; }}
add chain inet {name} see {{ type filter hook input priority 20; policy accept; }}
flush table inet {name}
add rule inet {name} back iifname {ours} ip protocol tcp ip saddr . tcp sport @kept goto answer
add rule inet {name} answer socket transparent 1 meta mark set {mark.back:#x} notrack accept
add rule inet {name} answer ip daddr . tcp dport . ip saddr . tcp sport @direct accept
add rule inet {name} answer fib daddr type local accept
add rule inet {name} answer drop
add rule inet {name} lead meta mark {mark.back:#x} accept
add rule inet {name} lead ip protocol tcp ip daddr . tcp dport @kept jump led
add rule inet {name} led ip saddr . ip daddr @itself return
add rule inet {name} led {first} {go}
add rule inet {name} led {first} update @callers \
{{ ip saddr limit rate over {DIRECT_RATE}/second burst {DIRECT_BURST} packets }} drop
add rule inet {name} led {first} add @open {{ ip saddr ct count over {DIRECT_OPEN} }} drop
add rule inet {name} led {first} update @direct {{ {flow} timeout {DIRECT_OVER_S}s }} return
add rule inet {name} led socket transparent 1 meta mark set {mark.kept:#x} accept
add rule inet {name} led tcp flags & (fin|rst) != 0 {flow} @direct update @direct \
{{ {flow} timeout {DIRECT_OVER_S}s }} return
add rule inet {name} led {flow} @direct ct expiration > {_OPEN_S}s update @direct {{ {flow} }} return
add rule inet {name} led {flow} @direct return
add rule inet {name} led {go}
add rule inet {name} out meta mark {mark.up:#x} notrack
add rule inet {name} see meta mark {mark.kept:#x} ct direction original ct original packets <= 8 \
@ih,0,16 0x1603 log group {log_group} snaplen {log_bytes}
"""  # noqa: S608 - nft's words, not SQL's


def kept_element(address: bytes, port: int) -> bytes:
    """An element of ``kept``: *address* as 4 bytes."""
    return element(address + struct.pack("!Hxx", port))


def itself_element(address: bytes) -> bytes:
    """An element of ``itself``: a pod that calls itself through a published port goes straight."""
    return element(address + address)
