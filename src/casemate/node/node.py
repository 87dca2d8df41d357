"""The node: what casemated is, without HTTP. Holds the core, the connection to hostd, and the reconcile loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from casemate.host import heap
from casemate.hostd.client import HostdAway, HostdClient
from casemate.hostd.protocol import AnyEvent
from casemate.image import garbage
from casemate.node import exits, freshness, images, recovery, volumes
from casemate.node.core import Core, report
from casemate.node.database import Database
from casemate.node.directory import Directory
from casemate.node.dns.service import Names
from casemate.node.export.telemetry import Telemetry
from casemate.node.flows.service import Flows
from casemate.node.keeping.service import Keeping
from casemate.node.operations import Operations
from casemate.node.policy.desk import Desk
from casemate.node.refusals import Refusals
from casemate.node.trust import actions, policies, rematch
from casemate.spec.errors import CasemateError
from casemate.spec.settings import Settings

SOCKET_NAME = "hostd.sock"
#: The first time when the start is done, which frees 2 MiB; while it works, whoever needs memory waits. So the more
#: there is to look at, the more rarely: for a five-thousandth of the time.
_FIRST_TRIM_S, _TRIM_PERIOD_S, _TRIM_SHARE = 2.0, 20.0, 1 / 5000


class Node:
    """casemated's work. *core* is shared by its parts; *operations* is the long work under way."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.operations = Operations(core)
        #: Who has which address, and who talked to whom.
        self.directory = Directory(core)
        self.flows = Flows(core, self.directory)
        self.keeping = Keeping(core, self.directory)
        self.names = Names(core, self.directory, self.flows)
        self.telemetry = Telemetry(self)
        #: Policy's own work: referrals, quarantines, hours.
        self.desk = Desk(core, self.flows)
        self.referrals = self.desk.referrals
        self.referrals.asked_as = self.names.asked.name
        #: What the rights of projects refused.
        self.refusals = Refusals(core)
        #: Set once the store has been brought together with what hostd has.
        self.reconciled = asyncio.Event()
        #: Set when the daemon is about to end: streams come to their end.
        self.ending = asyncio.Event()
        self._wake = asyncio.Event()

    def on_event(self, event: AnyEvent) -> None:
        """Something happened at hostd; called on the loop."""
        if not self.desk.on_event(event):
            exits.on_event(self.core, event)

    def hostd_changed(self, up: bool) -> None:
        """The connection to hostd came or went."""
        self.flows.hostd_changed(up)
        self.names.hostd_changed(up)
        self.keeping.hostd_changed(up)
        if up:
            # hostd may mount layers in another way than before.
            self.core.resolved.clear()
            self._wake.set()
        else:
            self.core.policy.lost()
            self.reconciled.clear()

    async def _enforce(self) -> None:
        """The firewall first: containers that start again come up behind it."""
        try:
            await self.core.policy.enforce()
        except HostdAway:
            raise
        except CasemateError:
            report("the firewall does not have the policy; workloads that it concerns are not started")

    async def keep_reconciled(self) -> None:
        """Reconcile each time that the connection is made; never returns."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._enforce()
                for operation in await recovery.reconcile_all(self.core):
                    report(operation.describe())
                await volumes.recover(self.core)
                await images.recover(self.core)
                await actions.recover(self.core)
                await self.operations.recover()
                self.reconciled.set()
                self.core.trust.change("casemated was started, or casemate-hostd")
            except CasemateError:
                report("the reconcile loop was interrupted; it goes on when casemate-hostd is back")


async def _give_memory_back() -> None:
    """Of what was free in the heap; never returns."""
    pause_s = _FIRST_TRIM_S
    while True:
        await asyncio.sleep(pause_s)
        began = time.perf_counter()
        await asyncio.to_thread(heap.give_back)
        pause_s = max(_TRIM_PERIOD_S, (time.perf_counter() - began) / _TRIM_SHARE)


@asynccontextmanager
async def running_node(settings: Settings) -> AsyncGenerator[Node]:
    """A node at work: the database open, hostd's connection kept, everything ended at the exit."""
    db = Database(f"{settings.text('paths.state')}/casemate.db")
    await db.open()
    try:
        holder: list[Node] = []
        client = HostdClient(
            f"{settings.text('paths.host_run')}/{SOCKET_NAME}",
            on_event=lambda event: holder[0].on_event(event),  # noqa: PLW0108 - it is not there yet
            on_state=lambda up: holder[0].hostd_changed(up),  # noqa: PLW0108 - it is not there yet
        )
        core = Core(settings, db, client)
        await asyncio.to_thread(core.images.create)
        await policies.load(core)
        for path in await asyncio.to_thread(garbage.sweep_dead, core.images):
            report(f"removed {path}: its writer was killed")
        node = Node(core)
        holder.append(node)
        await node.names.named.load()
        await node.desk.load()
        async with core.running():
            core.spawn(client.run(), "the connection to casemate-hostd")
            core.spawn(node.keep_reconciled(), "the reconcile loop")
            core.spawn(node.desk.keep_hours(), "policy's clock")
            core.spawn(node.desk.watch.run(), "quarantine by rule")
            core.spawn(node.directory.run(), "the directory of addresses")
            core.spawn(node.flows.run(), "the flow recorder")
            core.spawn(rematch.keep_rematched(core), "the judging of what runs")
            core.spawn(freshness.keep_fresh(core), "the publishers' refresh")
            core.spawn(node.names.run(), "the pods' resolver")
            core.spawn(node.keeping.run(), "the relay of kept connections")
            core.spawn(node.telemetry.run(), "the export of telemetry")
            core.spawn(node.refusals.run(), "the audit of refusals")
            core.spawn(_give_memory_back(), "giving memory back")
            try:
                yield node
            finally:
                await node.operations.close()
                core.hub.close()
                await core.trust.close()
                await core.evidence_online.close()
                await core.evidence_offline.close()
    finally:
        await db.close()
