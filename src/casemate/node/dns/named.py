"""Answers that rules speak of (``to: api.example.org``) as identities of addresses, for the pod alone that got them.

An address that a pod was told under a watched name becomes, for this pod's connections, an outside end with the
patterns that cover the name; not with the name itself: strangers could make as many identities as they can make names.
It stays for the answer's lifetime, over a restart of casemated too; the kernel forgets it by itself a while later,
should casemated be gone.
"""

from __future__ import annotations

import asyncio
import ipaddress
import sqlite3
import time
from collections.abc import Callable, Iterable

from casemate.node.core import report
from casemate.node.database import Database
from casemate.node.policy.state import Policy
from casemate.policy.identity import Endpoint, Kind
from casemate.policy.plan import Planner
from casemate.policy.rules import name_matches
from casemate.spec.errors import CasemateError

#: Addresses that one pod may hold under names of rules, and lifetimes at most: beyond, the oldest go.
MAX_OF_ONE = 2000
MAX_LIFETIME_S = 86_400
#: The kernel keeps an element so much longer than we do.
GRACE_S = 60
_LOOK_S = 1.0


class Named:
    """What pods were told under names of rules."""

    def __init__(
        self, policy: Policy, now: Callable[[], float] = time.monotonic, db: Database | None = None, boot: str = ""
    ) -> None:  # fmt: skip
        """*now* begins anew with each *boot* of the host; without *db* nothing outlives this process."""
        self._policy = policy
        self._now = now
        self._db, self._boot = db, boot
        #: The planner that was told; another one has to be told all of it.
        self._planner: Planner | None = None
        #: By viewer and address: pattern -> until when (seconds of the clock).
        self._held: dict[str, dict[str, dict[str, float]]] = {}
        #: When the kernel forgets each, if nothing is done.
        self._kernel: dict[tuple[str, str], float] = {}

    async def load(self) -> None:
        """What pods were told in this boot of the host, before the policy is laid; and it is laid with it."""
        if self._db is None:
            return
        now, boot = self._now(), self._boot

        def work(db: sqlite3.Connection) -> list[tuple[str, str, str, float]]:
            db.execute("DELETE FROM named_addresses WHERE boot<>? OR until<=?", (boot, now))
            return db.execute("SELECT viewer, address, pattern, until FROM named_addresses").fetchall()

        for viewer, address, pattern, until in await self._db.write(work):
            self._held.setdefault(viewer, {}).setdefault(address, {})[pattern] = until

    def ends(self) -> list[tuple[Endpoint, str]]:
        """What holds now, each with the pod that was told: for a planner that begins anew."""
        now = self._now()
        return [
            (_end(viewer, address, patterns), viewer)
            for viewer, held in self._held.items()
            for address, patterns in held.items()
            if patterns and max(patterns.values()) > now
        ]

    def patterns(self) -> tuple[str, ...]:
        """Every name that a rule in force speaks of."""
        if not self._policy.active:
            return ()
        planner = self._policy.planner
        if planner is None:
            return ()
        return tuple(sorted({pattern for one in planner.compiler.names for pattern in one.patterns}))

    async def answered(self, viewer: str, name: str, addresses: Iterable[tuple[str, int]]) -> None:
        """*viewer* is about to be told; when this returns the kernel knows."""
        now, addresses = self._now(), list(addresses)
        matching = [pattern.lower().rstrip(".") for pattern in self.patterns() if name_matches(pattern, name)]
        held = self._held.setdefault(viewer, {})
        for address, ttl_s in addresses:
            until = now + min(ttl_s, MAX_LIFETIME_S)
            patterns = held.setdefault(address, {})
            for pattern in matching:
                patterns[pattern] = max(patterns.get(pattern, 0.0), until)
            await self._lay(viewer, address, now)
        await self._keep(viewer, held, [address for address, _ in addresses])
        while len(held) > MAX_OF_ONE:
            oldest = min(held, key=lambda address: max(held[address].values(), default=0.0))
            held[oldest].clear()
            await self._lay(viewer, oldest, now)

    async def _keep(self, viewer: str, held: dict[str, dict[str, float]], addresses: Iterable[str]) -> None:
        """Into the store, for the next life."""
        if self._db is None:
            return
        rows = [
            (viewer, address, pattern, until, self._boot)
            for address in addresses
            for pattern, until in held.get(address, {}).items()
        ]
        query = "INSERT OR REPLACE INTO named_addresses VALUES (?, ?, ?, ?, ?)"
        await self._db.write(lambda db: db.executemany(query, rows))

    async def _lay(self, viewer: str, address: str, now: float) -> None:
        """Bring what is held of one address into the planner and the kernel."""
        patterns = self._held.get(viewer, {}).get(address, {})
        for pattern in [one for one, until in patterns.items() if until <= now]:
            del patterns[pattern]
        key = (viewer, address)
        if not patterns:
            self._held.get(viewer, {}).pop(address, None)
            if not self._held.get(viewer, True):
                del self._held[viewer]
            self._kernel.pop(key, None)
            await self._policy.unname(_name(viewer, address))
            return
        left_s = max(patterns.values()) - now
        # Laid again where the kernel would forget it before its time.
        fresh = self._kernel.get(key, 0.0) < now + left_s
        lifetime_s = int(left_s) + GRACE_S
        if await self._policy.name(_end(viewer, address, patterns), viewer, lifetime_s, again=fresh):
            self._kernel[key] = now + lifetime_s

    def viewer_gone(self, viewer: str) -> None:
        """The pod is gone; its address may be another's soon."""
        for patterns in self._held.get(viewer, {}).values():
            patterns.clear()

    async def expire_for_ever(self) -> None:
        """Take out what has run out; never returns."""
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await self.look()
            except CasemateError:
                report("answers to names could not be taken out of the firewall; it is tried again")

    async def look(self) -> None:
        """Take out what has run out, and lay anew what a new planner does not know."""
        now = self._now()
        if self._policy.planner is not self._planner:
            self._planner = self._policy.planner
            self._kernel.clear()
        late = [
            (viewer, address)
            for viewer, held in self._held.items()
            for address, patterns in held.items()
            if not patterns or min(patterns.values()) <= now or (viewer, address) not in self._kernel
        ]
        for viewer, address in late:
            await self._lay(viewer, address, now)


def _end(viewer: str, address: str, patterns: Iterable[str]) -> Endpoint:
    return Endpoint(
        _name(viewer, address), addresses=(ipaddress.ip_address(address),), kind=Kind.WORLD, dns=frozenset(patterns)
    )


def _name(viewer: str, address: str) -> str:
    return f"name:{viewer}:{address}"
