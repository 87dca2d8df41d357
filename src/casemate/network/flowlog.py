"""Log groups to which the firewall's rules copy packets for those who watch.

Two for each node, by number after its firewall table, so that two nodes on one host do not meet: what was denied or
only audited (with the verdict as prefix), and the first packet of each connection that begins a TLS handshake, for the
name that it shows. Without a reader the kernel drops the copies.
"""

from __future__ import annotations

import zlib

#: Headers of a refused packet: IPv6 with a few extension headers, and the ports.
VERDICT_COPY_BYTES = 128
#: A ClientHello that fits the first packet; keys for quantum computers make it 1,700 bytes, its name stands before.
HELLO_COPY_BYTES = 1600
#: What a firewall's rule writes before the verdict's word: ``casemate:deny``.
PREFIX = "casemate:"
#: The same before what is dropped whatever the policy is: ``casemate:guard:metadata``.
GUARD_WORDS = frozenset(("options", "metadata", "link_local", "multicast", "crowded", "parts"))


def verdict_group(table: str) -> int:
    """The log group of *table*'s verdicts (even, 1,000 to 65,000: low ones are what people choose by hand)."""
    return 1000 + 2 * (zlib.crc32(table.encode()) % 32_000)


def hello_group(table: str) -> int:
    """The log group of the first packets that begin a TLS handshake."""
    return verdict_group(table) + 1
