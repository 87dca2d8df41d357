"""casemated's side of the pods' resolver: the child kept alive, told who is who, and heard; answers laid for rules."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import OrderedDict
from pathlib import Path

import msgspec

from casemate.hostd.protocol_visibility import ResolverListen
from casemate.node import events
from casemate.node.core import Core, report
from casemate.node.directory import Directory, Entry
from casemate.node.dns.asked import Asked
from casemate.node.dns.closing import Closing
from casemate.node.dns.named import Named
from casemate.node.dns.wire import (
    ENCODER,
    FROM_RESOLVER,
    MAX_PODS,
    MAX_WATCHED_BYTES,
    Answered,
    Counters,
    Held,
    Laid,
    Orders,
    Pods,
    Refused,
    Told,
)
from casemate.node.flows.service import Flows
from casemate.node.policy.passages import names_outside
from casemate.node.resolvers import upstream_servers
from casemate.node.sidecar import Sidecar, keep_alive, started
from casemate.spec.errors import CasemateError

MODULE = "casemate.node.dns.child"
#: Entries of network.rebind_allowed that are heard.
MAX_REBIND_ALLOWED = 100
#: How often the host's resolv.conf is looked at.
_LOOK_S = 5.0
#: How often at most rules are asked what each pod may ask for.
_CLOSE_S = 0.1
#: One event for a refused answer in so long for each pod and name: a program asks again and again.
_QUIET_S, _MAX_QUIET = 60.0, 1000


class Names:
    """The pods' resolver of this node."""

    def __init__(self, core: Core, directory: Directory, flows: Flows) -> None:
        self._core = core
        self._directory = directory
        self._flows = flows
        self.named = Named(core.policy, db=core.db, boot=_boot())
        core.policy.named = self.named.ends
        self.asked = Asked()
        self.enabled = core.settings.flag("network.resolver")
        self._sidecar: Sidecar | None = None
        self._hostd_up, self._hostd_down = asyncio.Event(), asyncio.Event()
        self._orders: Orders | None = None
        self._told: OrderedDict[tuple[str, str], float] = OrderedDict()
        self.counters = Counters()
        directory.listeners.append(self._changed)
        #: What the child knows of pods that may not ask for any name.
        self._held: dict[str, tuple[str, ...]] = {}
        self._closing = Closing(core.policy)
        self._policy_changed = asyncio.Event()
        core.policy.changed.append(self._policy_changes)

    def hostd_changed(self, up: bool) -> None:
        """The connection to hostd came or went; the sockets live on either way."""
        if up:
            self._hostd_up.set()
            self._hostd_down.clear()
        else:
            self._hostd_up.clear()
            self._hostd_down.set()

    @property
    def working(self) -> bool:
        return self._sidecar is not None

    async def run(self) -> None:
        """Keep a resolver at work; never returns. Pods that were told of it need it also where it is switched off."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._look_after_servers())
            tasks.create_task(self._close_for_ever())
            tasks.create_task(self.named.expire_for_ever())
            await keep_alive("the pods' resolver", self._hostd_up, self._one_life)

    async def _one_life(self) -> None:
        asked = self._core.hostd.call(ResolverListen())
        sidecar = await started(asked, 2, MODULE, [self._core.settings.text("network.pool")], self._on_message)
        self._sidecar = sidecar
        try:
            self._held = {}
            await self._core.policy.load()
            await self._closing.look(self._directory.pods.values())
            self._give_held()
            self._send(Pods(replace=True))
            everybody = [_row(entry) for entry in self._directory.pods.values()]
            for at in range(0, len(everybody), MAX_PODS):
                self._send(Pods(tuple(everybody[at : at + MAX_PODS])))
            self._orders = None
            self._give_orders()
            hostd_went = asyncio.ensure_future(self._until_hostd_returns())  # noqa: TID251 - cancelled below
            ended = asyncio.ensure_future(sidecar.ended())  # noqa: TID251 - cancelled below
            try:
                await asyncio.wait((hostd_went, ended), return_when=asyncio.FIRST_COMPLETED)
                if ended.done():
                    report(f"the pods' resolver ended ({ended.result()}); it is started again")
            except asyncio.CancelledError:
                # This daemon ends, and may be started again at once: pods' questions are answered meanwhile.
                sidecar.release()
                raise
            finally:
                hostd_went.cancel()
                ended.cancel()
        finally:
            self._sidecar = None
            # It would go on for a while, as for a daemon that is started again.
            await sidecar.close(0.0)

    async def _until_hostd_returns(self) -> None:
        """Another hostd leads the pods' questions to other sockets."""
        await self._hostd_down.wait()
        await self._hostd_up.wait()

    def _send(self, message: msgspec.Struct) -> None:
        if self._sidecar is not None:
            self._sidecar.send(ENCODER.encode(message))

    async def _look_after_servers(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            self._give_orders()

    def _policy_changes(self) -> None:
        self._policy_changed.set()
        self._give_orders()

    async def _close_for_ever(self) -> None:
        """What the rules leave each pod to ask for; never returns. Some 1 us for each pod, so not with each change."""
        while True:
            await self._policy_changed.wait()
            self._policy_changed.clear()
            await self._closing.look(self._directory.pods.values())
            self._give_held()
            await asyncio.sleep(_CLOSE_S)

    def _give_held(self) -> None:
        """Tell of pods that may ask for less, or for more, since it was told last: by their rules, or since they came
        into quarantine or out of it."""
        policy, now = self._core.policy, dict(self._closing.pods)
        for name, row in policy.quarantines.items():
            entry = self._directory.pods.get(policy.workloads.names.get(name, ""))
            allowed = names_outside(policy.passages.get(row.number, ()))
            if entry is None:
                continue
            now.pop(entry.address, None)
            if allowed is not None:
                now[entry.address] = allowed
        for address in self._held.keys() - now.keys():
            self._send(Held(address))
        for address, allowed in now.items():
            if self._held.get(address) != allowed:
                self._send(Held(address, allowed))
        self._held = now

    def _give_orders(self) -> None:
        self._give_held()
        settings = self._core.settings
        watched = self.named.patterns()
        too_many = sum(map(len, watched)) + 5 * len(watched) > MAX_WATCHED_BYTES
        orders = Orders(
            upstream_servers(settings), () if too_many else watched,
            settings.texts("network.rebind_allowed")[:MAX_REBIND_ALLOWED], too_many,
        )  # fmt: skip
        if orders != self._orders:
            self._orders = orders
            self._send(orders)

    def _changed(self, old: Entry | None, new: Entry | None) -> None:
        gone = (old.address,) if old is not None and (new is None or new.address != old.address) else ()
        if gone:
            self.named.viewer_gone(gone[0])
            self.asked.viewer_gone(gone[0])
        # Before the resolver knows it: until then it answers nothing to it.
        self._closing.one(old, new)
        self._give_held()
        self._send(Pods((_row(new),) if new is not None else (), gone))

    def _on_message(self, data: bytes) -> None:
        message = FROM_RESOLVER.decode(data)
        match message:
            case Answered():
                self._flows.answered(message.viewer, message.name, message.addresses)
                self.asked.answered(message.viewer, message.name, message.addresses)
                if message.number:
                    self._core.spawn(self._lay(message), f"the answer for {message.name[:80]}")
            case Refused():
                self._core.spawn(self._note(message), f"the refused answer for {message.name[:80]}")
            case Told():
                self.counters = message.counters

    async def _lay(self, answer: Answered) -> None:
        """Into the firewall first; then the pod may have it."""
        try:
            await self.named.answered(answer.viewer, answer.name, answer.addresses)
        except CasemateError as error:
            report(f"the answer for {answer.name[:80]} is not in the firewall: {error.detail}")
            self._send(Laid(answer.number, failed=True))
        else:
            self._send(Laid(answer.number))

    async def _note(self, refused: Refused) -> None:
        key = (refused.viewer, refused.name)
        now = self._core.clock()
        if now - self._told.get(key, 0.0) < _QUIET_S:
            return
        self._told[key] = now
        while len(self._told) > _MAX_QUIET:
            self._told.popitem(last=False)
        entry = self._directory.by_address.get(refused.viewer)

        def work(db: sqlite3.Connection) -> None:
            assert entry is not None
            events.add(
                db, now, "pod", entry.pod, "dns_refused", project=entry.project, name=entry.name,
                asked=refused.name, address=refused.address,
            )  # fmt: skip

        if entry is not None:
            await self._core.db.write(work)
            self._core.events.wake()


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _row(entry: Entry) -> tuple[str, str, tuple[str, ...]]:
    return (entry.address, entry.project, entry.names)
