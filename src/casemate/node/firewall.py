"""The firewall in hostd, as the policy work of casemated uses it: a planner's transactions brought into the kernel.

One caller at a time changes it (the lock is here); answers to referrals go beside. Nothing is retried: after an error,
and after each new connection to hostd, the caller gives the whole state with :meth:`Firewall.replace`.
"""

from __future__ import annotations

import asyncio
import fcntl
import ipaddress
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

from casemate.hostd import protocol_firewall as wire
from casemate.hostd.client import Hostd, ask
from casemate.hostd.protocol import Done
from casemate.policy.addresses import Address
from casemate.policy.lower import Element
from casemate.policy.plan import AddressElement, BaseElement, Transaction

#: A replacement of a million elements takes the kernel some seconds.
REPLACE_TIMEOUT_S = 60.0
CHANGE_TIMEOUT_S = 10.0
#: What pods were told of names is forgotten so long after a replacement, should nobody renew it.
VIEWED_LIFETIME_S = 3600
#: Elements that are packed on the loop: a millisecond.
_SMALL = 1000
_NO_VIEWER = bytes(16)


class Firewall:
    """hostd's firewall. *generation* is what hostd last answered; 0 before the first answer."""

    def __init__(self, hostd: Hostd) -> None:
        self._hostd = hostd
        self._lock = asyncio.Lock()
        self.generation = 0
        #: Told of connections that are cut: source, destination (packed; empty: any), port (0: any).
        self.cut_listeners: list[Callable[[bytes, bytes, int], None]] = []

    def _tell_cut(self, ends: Iterable[tuple[bytes, bytes, int]]) -> None:
        for source, destination, port in ends:
            for listener in self.cut_listeners:
                listener(source, destination, port)

    async def replace(self, whole: Transaction, *, in_force: bool = True) -> int:
        """*whole* (a planner's ``start``) instead of all that is in force; the new generation.

        *in_force* False: no policy holds, whatever *whole* says. Atomic: the old holds until the new does.
        """
        body = await _packed(whole, VIEWED_LIFETIME_S)
        async with self._lock:
            inline = body if len(body) <= wire.MAX_INLINE_BYTES else b""
            operation = wire.FirewallReplace(inline, in_force, whole.reason[:200])
            return await self._send(operation, body, REPLACE_TIMEOUT_S)

    async def change(self, transaction: Transaction, *, lifetime_s: int = 0) -> int:
        """*transaction* in one commit; the new generation.

        *lifetime_s*: after that the kernel forgets the added addresses that have a viewer (answers of DNS). Raises
        the remote error ``hostd.firewall_conflict`` when hostd has another state than the last answer said.
        """
        body = await _packed(transaction, lifetime_s)
        look_again = bool(transaction.tightened or transaction.moved)
        async with self._lock:
            inline = body if len(body) <= wire.MAX_INLINE_BYTES else b""
            operation = wire.FirewallChange(self.generation, inline, look_again, transaction.reason[:200])
            return await self._send(operation, body, CHANGE_TIMEOUT_S)

    async def _send(self, operation: wire.FirewallReplace | wire.FirewallChange, body: bytes, timeout_s: float) -> int:
        files = [] if operation.body else [sealed(body)]
        try:
            answer = await ask(self._hostd, operation, wire.FirewallChanged, descriptors=files, timeout_s=timeout_s)
        finally:
            for number in files:
                os.close(number)
        self.generation = answer.generation
        return self.generation

    def answer(self, answers: Sequence[wire.ReferralAnswer]) -> None:
        """Answers to referred packets, in as few messages as may be; nobody waits for them to arrive."""
        for start in range(0, len(answers), wire.MAX_BATCH):
            self._hostd.tell(wire.FirewallAnswer(tuple(answers[start : start + wire.MAX_BATCH])))

    async def forget(self, keys: Sequence[wire.AnswerKey] | None = None, *, cut: bool = True) -> None:
        """Cached answers of *keys* (None: all) hold no longer; with *cut*, connections that *keys* opened end."""
        if cut:
            self._tell_cut((one.source, one.destination, one.port) for one in keys or ())
        for start in range(0, len(keys or ()) or 1, wire.MAX_BATCH):
            part = None if keys is None else tuple(keys[start : start + wire.MAX_BATCH])
            await ask(self._hostd, wire.FirewallForget(part, cut), Done)

    async def hold(self, pod: str, *, wait_s: int = 30, limit: int = 16_384) -> None:
        """New connections to *pod* wait, at most *wait_s* and *limit* of them; then they are reset."""
        await ask(self._hostd, wire.PodHold(pod, wait_s, limit), Done)

    async def release(self, pod: str, *, accept: bool = True) -> wire.Released:
        """What waits for *pod* goes on, or (not *accept*) is reset."""
        return await ask(self._hostd, wire.PodRelease(pod, accept), wire.Released)

    async def cut(self, pairs: Iterable[tuple[Address | None, Address | None]]) -> int:
        """Forget the tracked connections between these pairs of addresses (None: any); how many."""
        packed = [tuple(b"" if one is None else one.packed for one in pair) for pair in pairs]
        self._tell_cut((one, other, 0) for pair in packed for one, other in (pair, pair[::-1]))
        count = 0
        for start in range(0, len(packed), 64):
            part = tuple((one, other) for one, other in packed[start : start + 64])
            count += (await ask(self._hostd, wire.FlowsCut(part), wire.Cut)).connections
        return count

    async def state(self) -> wire.FirewallState:
        """What is in force, what waits, what was counted."""
        return await ask(self._hostd, wire.FirewallObserve(), wire.FirewallState)


async def _packed(transaction: Transaction, lifetime_s: int) -> bytes:
    """:func:`pack`, off the loop where it takes more than a moment."""
    if transaction.size <= _SMALL:
        return pack(transaction, lifetime_s)
    return await asyncio.to_thread(pack, transaction, lifetime_s)


def pack(transaction: Transaction, lifetime_s: int = 0) -> bytes:
    """A transaction as the body that hostd takes."""
    return wire.body(
        address_deletes=_addresses(transaction.address_deletes, 0),
        verdict_deletes=_verdicts(transaction.deletes),
        base_deletes=_bases(transaction.base_deletes),
        verdict_adds=_verdicts(transaction.adds),
        base_adds=_bases(transaction.base_adds),
        address_adds=_addresses(transaction.address_adds, lifetime_s),
    )


def _verdicts(elements: Iterable[Element]) -> Iterator[bytes]:
    pack_one = wire.VERDICT_RECORD.pack
    return (pack_one(*element) for element in elements)


def _bases(elements: Iterable[BaseElement]) -> Iterator[bytes]:
    pack_one = wire.BASE_RECORD.pack
    return (pack_one(*element) for element in elements)


def _addresses(elements: Iterable[AddressElement], lifetime_s: int) -> Iterator[bytes]:
    pack_one = wire.ADDRESS_RECORD.pack
    for one in elements:
        size = 4 if one.version == 4 else 16
        viewer = ipaddress.ip_address(one.viewer).packed if one.viewer else _NO_VIEWER
        first, last = one.first.to_bytes(size, "big"), one.last.to_bytes(size, "big")
        yield pack_one(one.exact, one.version, first, last, viewer, one.number, lifetime_s if one.viewer else 0)


def sealed(data: bytes) -> int:
    """A memory file with *data* that nobody can change any more; the caller closes it."""
    number = os.memfd_create("casemate-firewall", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(number, view) :]
        fcntl.fcntl(
            number, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        )
    except BaseException:
        os.close(number)
        raise
    return number
