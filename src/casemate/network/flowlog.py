"""Rules that copy packets for those who watch: a table of its own, which drops and accepts nothing.

Two log groups for each node, by number after its firewall table, so that two nodes on one host do not meet: what
was denied or only audited (logged by the firewall's own rules, with the verdict as prefix), and the first packet of
each connection that begins a TLS handshake, for the name that it shows. Without a reader the kernel drops the copies.
"""

from __future__ import annotations

import zlib

from casemate.host import nft, nft_netlink
from casemate.network.plan import check_prefix

#: Headers of a refused packet: IPv6 with a few extension headers, and the ports.
VERDICT_COPY_BYTES = 128
#: A ClientHello that fits the first packet; keys for quantum computers make it 1,700 bytes, its name stands before.
HELLO_COPY_BYTES = 1600
#: What a firewall's rule writes before the verdict's word: ``casemate:deny``.
PREFIX = "casemate:"
#: The same before what is dropped whatever the policy is: ``casemate:guard:metadata``.
GUARD_WORDS = frozenset(("options", "metadata", "link_local", "multicast", "crowded", "parts"))
#: The connection's own packets among which the handshake's first is looked for: SYN, ACK, data (and one sent again).
_FIRST_PACKETS = 8


def verdict_group(table: str) -> int:
    """The log group of *table*'s verdicts (even, 1,000 to 65,000: low ones are what people choose by hand)."""
    return 1000 + 2 * (zlib.crc32(table.encode()) % 32_000)


def hello_group(table: str) -> int:
    """The log group of the first packets that begin a TLS handshake."""
    return verdict_group(table) + 1


def table_name(table: str) -> str:
    return f"{nft.check_table_name(table)[:26]}_see"


def script(table: str, prefix: str, *, brief: bool = True) -> str:
    """The table as nft(8) text, in place of what there is of it.

    *brief*: pods' TCP connections that were closed are forgotten after seconds, not two minutes: their counters come
    with that, and the kernel's table of connections holds fewer that are over. Not every kernel can.
    """
    name, ours = table_name(table), f'"{check_prefix(prefix)}*"'
    # 0x16: a handshake record; 0x03: the major version that every TLS has had (RFC 8446, 5.1).
    hello = f"meta l4proto tcp @ih,0,16 0x1603 log group {hello_group(table)} snaplen {HELLO_COPY_BYTES}"
    return f"""\
add table inet {name}
delete table inet {name}
add table inet {name}
add chain inet {name} first
add chain inet {name} see {{ type filter hook forward priority filter + 20; policy accept; }}
add rule inet {name} see ct direction original ct original packets <= {_FIRST_PACKETS} goto first
add rule inet {name} first iifname {ours} {hello}
add rule inet {name} first iifname != {ours} oifname {ours} {hello}
{_brief(name, ours) if brief else ""}"""


def _brief(name: str, ours: str) -> str:
    new = "ct state new meta l4proto tcp"
    return f"""\
add ct timeout inet {name} closed {{ protocol tcp; l3proto ip; policy = {{ time_wait : 10, close : 5 }}; }}
add rule inet {name} first iifname {ours} {new} ct timeout set "closed"
add rule inet {name} first iifname != {ours} oifname {ours} {new} ct timeout set "closed"
"""


def is_whole(table: str) -> bool:
    """By a look of our own, below 1 ms: the library reads every table of the host, however large, to list one."""
    found = nft_netlink.rules(table_name(table), nft_netlink.INET)
    return found.get("see") == 1 and found.get("first") in (2, 4)


def ensure(context: nft.Nft, table: str, prefix: str) -> bool:
    """Make the table when it is not whole; whether it had to be made."""
    if is_whole(table):
        return False
    try:
        context.run(script(table, prefix))
    except nft.NftFailed:
        context.run(script(table, prefix, brief=False))
    return True
