"""A core over a real database and a hostd that takes notes: for the tests of policy without a kernel."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from casemate.hostd import protocol_firewall as wire
from casemate.hostd.client import Answered, HostdAway
from casemate.hostd.protocol import AnyOperation, Done, Welcome
from casemate.node.core import Caller, Core
from casemate.node.database import Database
from casemate.node.policy import documents
from casemate.node.rows import ContainerRow, PodRow, encode, insert
from casemate.spec.errors import CasemateError
from casemate.spec.settings import Settings
from casemate.spec.workload import ContainerSpec, NetworkSpec, PodSpec, Process

ROOT = Caller("0:root", 0, grants=lambda: frozenset({"policy"}))
ANYBODY = Caller("1000:eve", 1000)
SHOP = b"""
apiVersion: casemate/v1
kind: Policy
metadata: {name: shop}
spec:
  segments:
    web: {select: {matchLabels: {app: web}}}
    db: {select: {matchLabels: {app: db}}, default: {ingress: deny}}
  rules:
    - {from: [{segment: web}], to: [{segment: db}], ports: [tcp/5432], action: allow}
"""
BANKS = b"""
apiVersion: casemate/v1
kind: Policy
metadata: {name: banks}
spec:
  tier: operator
  segments:
    a: {select: {matchLabels: {bank: a}}}
    b: {select: {matchLabels: {bank: b}}}
  walls: [{name: banks, members: {a: [{segment: a}], b: [{segment: b}]}}]
"""
REFER = b"""
apiVersion: casemate/v1
kind: Policy
metadata: {name: ask}
spec:
  segments: {all: {select: {}, default: {egress: refer}}}
  rules:
    - {from: [{segment: all}], to: any, ports: [tcp/80], action: allow, when: 'destination.labels.app == "web"'}
    - {from: [{segment: all}], to: any, ports: [tcp/81], action: allow, when: 'rate < 3'}
"""


class Notes:
    """A hostd that does what it is told, and remembers it. *failing*: the next changes are refused with these."""

    welcome: Welcome | None = None

    def __init__(self) -> None:
        self.operations: list[AnyOperation] = []
        self.failing: list[CasemateError] = []
        self.generation = 0
        self.told = asyncio.Event()
        self.away = False

    async def call(
        self, operation: AnyOperation, *, descriptors: Sequence[int] = (), timeout_s: float = 60.0
    ) -> Answered:
        self.operations.append(operation)
        self.told.set()
        if isinstance(operation, wire.FirewallReplace | wire.FirewallChange):
            if self.failing:
                raise self.failing.pop(0)
            self.generation += 1
            return Answered(wire.FirewallChanged(self.generation))
        if isinstance(operation, wire.FlowsCut):
            return Answered(wire.Cut(len(operation.pairs)))
        if isinstance(operation, wire.PodRelease):
            return Answered(wire.Released(3, 0))
        return Answered(Done())

    def tell(self, operation: wire.FirewallAnswer) -> None:
        if self.away:
            raise HostdAway("away")
        self.operations.append(operation)
        self.told.set()

    def of(self, *kinds: type) -> list[Any]:
        return [one for one in self.operations if isinstance(one, kinds)]

    def answers(self) -> list[wire.ReferralAnswer]:
        return [one for operation in self.of(wire.FirewallAnswer) for one in operation.answers]


class Site:
    """A core over a real database, and :class:`Notes`; *now* is its clock."""

    def __init__(self, path: Path, **settings: str | int) -> None:
        self.db = Database(str(path / "x.db"))
        self.notes = Notes()
        self.now = 1_795_000_000.0
        named = {"paths.state": str(path), **settings}
        self.core = Core(Settings(named), self.db, self.notes, clock=lambda: self.now)  # type: ignore[arg-type]
        self._number = 0

    async def pod(self, name: str, *, up: bool = True, project: str = "default", **labels: str) -> str:
        """A lone container with *labels*, started unless told otherwise; its pod's id."""
        self._number += 1
        id_, pod = f"{self._number:064x}", f"{self._number:063x}f"
        spec = PodSpec(
            id=pod,
            name=f"pod-{name}",
            hostname="h",
            project=project,
            network=NetworkSpec(address=f"10.9.0.{self._number}"),
        )
        request = {"image": "i", "labels": labels}
        row = ContainerRow(
            id=id_, project=project, name=name, pod=pod, created_at=1.0, request=encode(request),
            spec=encode(ContainerSpec(id=id_, pod=pod, name=name, layers=(), process=Process(args=("x",)))), image="i",
            image_digest="d", command="x", labels=encode({"forged": "by-the-image"} | labels), restart_name="no",
            restart_maximum=0, auto_remove=0, stop_signal=15, stop_timeout=10,
            admission=encode({"answer": "admit", "reason": ""}), warnings=b"[]", desired="created", status="created",
        )  # fmt: skip

        def work(db: Any) -> None:
            address = 0x0A090000 + self._number
            insert(db, PodRow(pod, project, f"pod-{name}", 1.0, encode({}), encode(spec), 1, address))
            insert(db, row)

        await self.db.write(work)
        if up:
            await self.core.policy.pod_up(pod)
        return pod

    async def apply(self, text: bytes, caller: Caller = ROOT, *, dry_run: bool = False, whole: bool = False) -> Any:
        return await documents.apply(self.core, text, caller, dry_run=dry_run, whole=whole)


def packet(number: int, source: int, destination: int, port: int, protocol: int = 6) -> wire.ReferredPacket:
    return wire.ReferredPacket(
        number, bytes([10, 9, 0, source]), bytes([10, 9, 0, destination]), protocol, 40000 + number, port, ""
    )


Play = Callable[[Site], Coroutine[Any, Any, None]]


async def banks(site: Site) -> None:
    await site.core.policy.enforce()
    await site.apply(BANKS)
    await site.pod("analyst", role="analyst")
    await site.pod("a", bank="a")
    await site.pod("b", bank="b")
