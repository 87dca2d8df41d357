"""Tracked connections bounded for each pod, so that one that opens too many does not shut the others out.

The kernel tracks so many connections on the whole host; one too many is dropped, whoever it belongs to. A
count for each pod on the way of every new connection costs more the more there are (the kernel walks a list); so the
whole is looked at four times a second, and only where it is worth it counted by pod.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

from casemate.host import conntrack
from casemate.network.firewall.kernel import Kernel
from casemate.network.firewall.sets import address_set_row
from casemate.spec.errors import CasemateError

log = logging.getLogger("casemate.hostd")

#: A pod may have this part of all connections that the kernel tracks; and this one when most of the table is full.
SHARE, CROWDED_SHARE, CROWDED = 4, 8, 0.6
_PERIOD_S = 0.25
#: To count takes some us for each connection: so often, and sooner where so much of the table was taken meanwhile (a
#: flood of 200,000 in a second takes a fifth of 262,144 in one period).
_COUNT_S, _GROWN = 1.0, 16
#: No new connections so long; then it is looked at again.
_REFUSED_MS = 3_000


def crowding(counted: Mapping[bytes, int], total: int, maximum: int) -> list[bytes]:
    """Whose new connections are refused for a while. Pure."""
    part = CROWDED_SHARE if total > maximum * CROWDED else SHARE
    return sorted(address for address, count in counted.items() if count > maximum // part)


def is_worth_a_count(total: int, maximum: int) -> bool:
    """Whether any pod can be above its share."""
    return total > maximum // SHARE


def is_due(since_s: float, grown: int, maximum: int) -> bool:
    """Whether to count again, *since_s* after the last time, when there are *grown* connections more."""
    return since_s >= _COUNT_S or grown > maximum // _GROWN


async def run(kernel: Kernel, pods: Mapping[str, str]) -> None:
    """For ever; *pods* has the addresses that are pods'."""
    told: set[bytes] = set()
    counted_at, counted_total = -_COUNT_S, 0
    while True:
        await asyncio.sleep(_PERIOD_S)
        total, maximum = conntrack.fill()
        if not maximum or not is_worth_a_count(total, maximum):
            told.clear()
            continue
        if not is_due(time.monotonic() - counted_at, total - counted_total, maximum):
            continue
        try:
            counted = await asyncio.to_thread(conntrack.count_by_source)
            ours = {packed: count for packed, count in counted.items() if _text(packed) in pods}
            found = crowding(ours, total, maximum)
            if found:
                await kernel.put([address_set_row("crowded", one, _REFUSED_MS) for one in found])
        except (CasemateError, OSError) as error:
            log.warning("tracked connections were not counted: %s", error)
            continue
        for one in set(found) - told:
            log.warning("%s has %d of %d tracked connections: new ones are refused", _text(one), ours[one], maximum)
        told = set(found)
        counted_at, counted_total = time.monotonic(), total


def _text(packed: bytes) -> str:
    return ".".join(map(str, packed))
