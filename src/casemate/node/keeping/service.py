"""casemated's side of kept connections: the relay kept alive, told what is kept, held, and not allowed any more."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import sqlite3
from dataclasses import dataclass

import msgspec

from casemate.hostd.client import ask
from casemate.hostd.protocol_keeping import PodProbe, Probed, RelayAttach
from casemate.node.core import Core, report
from casemate.node.directory import Directory, Entry
from casemate.node.flows.judging import judged
from casemate.node.flows.wire import Question
from casemate.node.keeping import wire
from casemate.node.policy.errors import HoldUnavailable
from casemate.node.rows import PodRow, select
from casemate.node.sidecar import Sidecar, keep_alive
from casemate.spec.api.keeping import HeldPort, HoldList, RelayCounters
from casemate.spec.errors import CasemateError
from casemate.spec.workload import KeptPort, PodSpec

_TCP = 6
#: Connections that are judged again between two turns of the loop.
_JUDGED_A_TURN = 200
#: Policy that changes again and again is looked at so often.
_AGAIN_S = 0.05
#: The relay answers within milliseconds; beyond its own bounds it is not waited for.
_PATIENCE_S = 5.0
_MAX_KEPT_PODS = 4000


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod that keeps ports."""

    id: str
    address: str
    ports: tuple[KeptPort, ...]
    #: It ends without telling the other side, and the host does not see what is open.
    own_stack: bool = False


class Keeping:
    """Kept connections of this node."""

    def __init__(self, core: Core, directory: Directory) -> None:
        self._core = core
        self._directory = directory
        self._pods: dict[str, Pod] = {}
        self._wanted = asyncio.Event()
        self._ready = asyncio.Event()
        self._hostd_up = asyncio.Event()
        self._other_version = False
        self._look = asyncio.Event()
        self._sidecar: Sidecar | None = None
        #: None until the relay has told.
        self._told: wire.Told | None = None
        #: Addresses that an earlier casemated held connections to.
        self._orphans: set[str] = set()
        self._waiting: dict[tuple[type, str], asyncio.Future[wire.Drained | wire.Resumed]] = {}
        self._ends: list[tuple[str, str, int]] = []
        self._connected: asyncio.Future[None] | None = None
        self._held: set[str] = set()
        directory.listeners.append(self._changed)
        core.policy.changed.append(self._look.set)
        core.policy.firewall.cut_listeners.append(self._cut)
        core.keeping = self

    @property
    def working(self) -> bool:
        return self._sidecar is not None

    def hostd_changed(self, up: bool) -> None:
        """The connection to hostd came or went; what is open goes on either way."""
        if up:
            self._hostd_up.set()
        else:
            self._hostd_up.clear()

    # --- what is kept ---------------------------------------------------------------------------------------------

    def note(self, spec: PodSpec) -> None:
        """A pod is about to be made that keeps ports; before hostd makes it."""
        if not spec.network.kept:
            return
        own_stack = spec.level != "namespace"
        self._pods[spec.id] = Pod(spec.id, spec.network.address, spec.network.kept, own_stack)
        self._wanted.set()
        self._tell_ports()

    def _changed(self, old: Entry | None, new: Entry | None) -> None:
        if new is None and old is not None and self._pods.pop(old.pod, None) is not None:
            self._tell_ports()

    async def _load(self) -> None:
        def work(db: sqlite3.Connection) -> list[PodRow]:
            return select(db, PodRow, "WHERE address IS NOT NULL AND CAST(spec AS TEXT) LIKE ?", '%"kept"%')

        for row in await self._core.db.read(work):
            self.note(row.the_spec())

    def _tell_ports(self) -> None:
        ports = [(pod.address, one.port, one.replay) for pod in self._pods.values() for one in pod.ports]
        self._send(wire.KeptPorts(tuple(ports[:_MAX_KEPT_PODS])))

    # --- the relay's life -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep a relay at work from the first pod that keeps a port on; never returns."""
        await self._load()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_judged())
            await self._wanted.wait()
            await keep_alive("the relay of kept connections", self._hostd_up, self._one_life)

    async def _one_life(self) -> None:
        sidecar = Sidecar(self._on_message)
        (descriptor,) = (await self._core.hostd.call(RelayAttach(self._other_version))).take()
        sidecar.join(socket.socket(fileno=descriptor))
        self._sidecar = sidecar
        self._other_version = False
        self._tell_ports()
        self._ready.set()
        # What an earlier casemated left open may not be allowed any more.
        self._look.set()
        try:
            async with asyncio.TaskGroup() as tasks:
                letting_go = tasks.create_task(self._let_go())
                await sidecar.ended()
                letting_go.cancel()
            report("the relay of kept connections ended, or was attached to another; it is asked for again")
        finally:
            self._sidecar = None
            self._ready.clear()
            self._told, self._orphans = None, set()
            for future in self._waiting.values():
                future.cancel()
            # It goes on: with the next casemated, or as long as something is open.
            await sidecar.close()

    async def _let_go(self) -> None:
        """Have what an earlier casemated held go on, when its pod takes connections: nobody else would say so."""
        while self._told is None or self._orphans:
            for pod in [one for one in self._pods.values() if one.address in self._orphans]:
                with contextlib.suppress(CasemateError):
                    # Another restart may have begun meanwhile.
                    if await self._takes(pod) and pod.address in self._orphans:
                        self._orphans.discard(pod.address)
                        await self._core.policy.firewall.release(pod.id)
                        await self.resume(pod, accept=True, anew=pod.own_stack)
            await asyncio.sleep(_AGAIN_S)

    async def _takes(self, pod: Pod) -> bool:
        for one in pod.ports:
            if not (await ask(self._core.hostd, PodProbe(pod.id, one.port), Probed)).is_open:
                return False
        return True

    def _send(self, message: msgspec.Struct) -> bool:
        return self._sidecar is not None and self._sidecar.send(wire.ENCODER.encode(message))

    def _on_message(self, data: bytes) -> None:
        message = wire.FROM_RELAY.decode(data)
        match message:
            case wire.Told():
                held = {one.address for one in message.ports if one.left_s}
                self._orphans = held - self._held if self._told is None else self._orphans & held
                self._told = message
            case wire.Hello():
                if message.version != wire.VERSION:
                    self._other_version = True
                    raise ValueError(f"it speaks version {message.version}, this daemon {wire.VERSION}")
            case wire.Drained() | wire.Resumed():
                future = self._waiting.get((type(message), message.address))
                if future is not None and not future.done():
                    future.set_result(message)
            case wire.Connected():
                self._ends.extend(message.ends)
                if message.whole and self._connected is not None and not self._connected.done():
                    self._connected.set_result(None)
            case _:
                raise TypeError(type(message).__name__)

    # --- what is not allowed any more -----------------------------------------------------------------------------

    def _cut(self, source: bytes, destination: bytes, port: int) -> None:
        ends = [str(ipaddress.ip_address(one)) if one else "" for one in (source, destination)]
        self._send(wire.Cut(ends[0], ends[1], port))

    async def _keep_judged(self) -> None:
        """After each change of policy, cut what it does not allow; the kernel lets nothing of that pass meanwhile."""
        while True:
            await self._look.wait()
            self._look.clear()
            if self._sidecar is not None:
                for address in [one for one in self._held if self._is_quarantined(one)]:
                    self._send(wire.Resume(address, accept=False))
                    self._send(wire.Cut("", address))
                await self._judge()
            await asyncio.sleep(_AGAIN_S)

    async def _judge(self) -> None:
        self._ends, self._connected = [], asyncio.get_running_loop().create_future()
        if not self._send(wire.Ask()):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                await self._connected
        ends, self._connected = self._ends, None
        for start in range(0, len(ends), _JUDGED_A_TURN):
            part = ends[start : start + _JUDGED_A_TURN]
            rulings = judged(self._core.policy, [Question(client, pod, _TCP, port) for client, pod, port in part])
            for (client, pod, port), ruling in zip(part, rulings, strict=True):
                if ruling.verdict == "deny":
                    self._send(wire.Cut(client, pod, port))
            await asyncio.sleep(0)

    def _is_quarantined(self, address: str) -> bool:
        pod = next((one.id for one in self._pods.values() if one.address == address), "")
        workload = self._core.policy.workloads.get(pod)
        return workload is not None and workload.name in self._core.policy.quarantines

    # --- holds ----------------------------------------------------------------------------------------------------

    async def check(self, pod: str, name: str) -> Pod:
        """The pod *name* (by its id), whose connections can be held now. Raises :class:`HoldUnavailable`."""
        found = self._pods.get(pod)
        if found is None:
            raise HoldUnavailable(
                f"{name} keeps no port: its open connections go straight to it",
                remedy="Make it with `casemate run --keep PORT`, or restart with --hold alone.",
            )
        if self._is_quarantined(found.address):
            raise HoldUnavailable(
                f"{name} is in quarantine: nothing is held for it",
                remedy="Release it with `casemate quarantine release`, or restart without --hold connections.",
            )
        self._orphans.discard(found.address)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._ready.wait()
        except TimeoutError as error:
            raise HoldUnavailable(
                "the relay of kept connections does not run", remedy="See casemated's journal; it is started again."
            ) from error
        return found

    async def hold(self, pod: Pod, *, wait_s: float, drain_s: float, limit: int) -> wire.Drained:
        """Hold the connections to *pod*; answered when nothing is under way, or *drain_s* are over."""
        self._held.add(pod.address)
        answer = await self._ask(
            wire.Drained, pod.address, wire.Hold(pod.address, wait_s, min(drain_s, wait_s), limit), drain_s
        )
        return answer if isinstance(answer, wire.Drained) else wire.Drained(pod.address, 0, 0)

    async def resume(self, pod: Pod, *, accept: bool, anew: bool = False) -> wire.Resumed:
        """Have what is held go on (or, not *accept*, reset it)."""
        self._held.discard(pod.address)
        # Each connection to the pod has as long as a new one has.
        answer = await self._ask(wire.Resumed, pod.address, wire.Resume(pod.address, accept, anew), _PATIENCE_S)
        return answer if isinstance(answer, wire.Resumed) else wire.Resumed(pod.address, 0, 0, 0)

    async def _ask(
        self, kind: type, address: str, message: msgspec.Struct, patience_s: float
    ) -> wire.Drained | wire.Resumed | None:
        """The relay's answer of *kind* about *address*; None where it is gone, or does not answer."""
        future: asyncio.Future[wire.Drained | wire.Resumed] = asyncio.get_running_loop().create_future()
        self._waiting[kind, address] = future
        try:
            if not self._send(message):
                return None
            async with asyncio.timeout(patience_s + _PATIENCE_S):
                await asyncio.wait([future])
            return None if future.cancelled() else future.result()
        except TimeoutError:
            return None
        finally:
            self._waiting.pop((kind, address), None)

    # --- what is shown --------------------------------------------------------------------------------------------

    def state(self, project: str) -> HoldList:
        """Kept ports of *project*, and what the relay last told of them (once a second)."""
        last = self._told or wire.Told((), wire.Counters())
        told = {(one.address, one.port): one for one in last.ports}
        rows = []
        for pod in self._pods.values():
            entry = self._directory.pods.get(pod.id)
            if entry is None or entry.project != project:
                continue
            for one in pod.ports:
                held = told.get((pod.address, one.port), wire.Held(pod.address, one.port, 0, 0, 0, 0.0))
                rows.append(
                    HeldPort(
                        entry.name, pod.id, pod.address, one.port, one.replay, held.open, held.held, held.bytes,
                        held.left_s,
                    )
                )  # fmt: skip
        counters = RelayCounters(**msgspec.structs.asdict(last.counters))
        return HoldList(self.working, tuple(sorted(rows, key=lambda row: (row.workload, row.port))), counters)
