"""The host's memory for parts of packets, divided among the pods that send them when it fills.

Parts wait up to 30 s for the rest, in one memory of 4 MiB for everybody; when it is full, everybody's are dropped. The
firewall's table lets a pod send so many parts in a second as well-behaved programs do; when a quarter of the memory is
taken, so few that those who never send the rest hold no more than a part of it together (decisions 0149, 0161).
"""

from __future__ import annotations

import asyncio
import logging

from casemate.host import fragments
from casemate.network.firewall.kernel import Kernel
from casemate.spec.errors import CasemateError

log = logging.getLogger("casemate.hostd")

#: Of the memory: above this part pods are held short, below the other no more.
STRAINED, RELAXED = 4, 8
_PERIOD_S = 0.25


def divided_among(senders: int, before: int) -> int:
    """The next power of two: each change of it gives all of them their burst anew. Never fewer than *before*. Pure."""
    return max(before, 1 << max(senders - 1, 0).bit_length())


def is_strained(held: int, maximum: int, before: bool) -> bool:
    """Whether pods are to be held short, who were so *before* or not. Pure."""
    return held > maximum // (RELAXED if before else STRAINED)


async def look(kernel: Kernel) -> None:
    """Hold pods short, or no more, where the memory asks for it."""
    held, maximum = fragments.fill()
    before, pods = kernel.strained, 0
    if is_strained(held, maximum, before > 0):
        pods = divided_among(await kernel.senders_of_parts(), before)
    if maximum and pods != before:
        await kernel.set_strained(pods, maximum)
        if pods:
            log.warning("parts of packets hold %d of %d bytes: pods may send few of them for a while", held, maximum)


async def run(kernel: Kernel) -> None:
    """For ever."""
    while True:
        try:
            await look(kernel)
        except (CasemateError, OSError) as error:
            log.warning("the memory for parts of packets was not looked after: %s", error)
        await asyncio.sleep(_PERIOD_S)
