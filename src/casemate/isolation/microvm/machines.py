"""The machines of one host: cloned, configured, filled with containers, ended; found again after a restart."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from casemate.host import pidfd
from casemate.isolation.microvm import (
    accelerate,
    argv,
    clone,
    configuring,
    disks,
    ending,
    guestrows,
    hostlimits,
    join,
    kernel,
    priority,
    records,
    rehearsals,
    shares,
    swap,
    takeover,
    tap,
    taps,
    warming,
)
from casemate.isolation.microvm import origin as origins
from casemate.isolation.microvm.early import Early
from casemate.isolation.microvm.errors import MonitorFailed, NetworkFailed
from casemate.isolation.microvm.frames import Field, Kind, Tag
from casemate.isolation.microvm.machine import Machine
from casemate.isolation.microvm.monitor import Monitor
from casemate.isolation.microvm.oci import Config
from casemate.isolation.microvm.pool import Pool, Waiting
from casemate.isolation.microvm.records import SAME_IDS, Ids, MachineRecord
from casemate.isolation.microvm.shares import Share
from casemate.isolation.microvm.tap import GuestNetwork
from casemate.isolation.microvm.template import SOCKETS, Recipe, Template, Templates
from casemate.spec.errors import CasemateError, LimitExceeded

log = logging.getLogger("casemate.hostd")

#: Users of the machines' monitors: below userns.first_id, above what useradd gives to people.
FIRST_UID, UIDS = 999_000_000, 50_000
#: From the start of a clone to its first answer: 60 ms alone under emulation, seconds on a loaded host.
CLONE_TIMEOUT_S = 30.0
_QUIT_WAIT_S = 5.0
_YOUNG_S = 1.0
#: What a waiting machine may take for its answer: beyond, a clone is there sooner.
_ANSWER_TIMEOUT_S = 2.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
#: What the names of machines begin with that wait: nobody's machine can be called so.
_WAITS = "+"


@dataclass(frozen=True, slots=True)
class Settings:
    """Where things lie, and what a machine is: *memory_bytes* when a bundle does not say."""

    state: Path
    run: Path
    shim: str
    qemu: str
    qemu_version: str
    accelerator: argv.Accelerator
    #: Why this accelerator.
    accelerated: str = field(default="not probed: there was no guest kernel", kw_only=True)
    tsc_khz: int | None
    memory_bytes: int = 128 << 20
    #: How many machines may wait, and how the other ends of their cards are called; empty: they have none.
    pool: int = 0
    taps: str = ""
    #: How far apart machines are at least, whatever a bundle asks for.
    template: origins.Kind = "shared"
    #: Whether starts with a processor to spare run a rehearsal on it.
    rehearsal: bool = False
    #: Of containers whose engine names no cgroup on the host: each has one of its name below this one.
    cgroup_parent: str = "casemate-vm"


@dataclass(frozen=True, slots=True)
class _Where:
    """A clone's name, cgroups, map of users, and its card's other end."""

    name: str
    cgroups: tuple[str, ...]
    ids: Ids | None
    tap_fds: Sequence[int]
    scratch_fd: int | None = None
    #: How the first tap's interface is called, where it is ours to close; an engine's goes with its network namespace.
    tap: str = ""


class Machines:
    """The machines below ``<run>/vm``. Must be used inside :meth:`run`'s task group."""

    def __init__(self, settings: Settings, group: asyncio.TaskGroup) -> None:
        self.settings = settings
        self._group = group
        self.folder = settings.run / "vm"
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._jail = settings.run / "jail"
        self._jail.mkdir(exist_ok=True, mode=0o700)
        self.templates = Templates(
            settings.state / "templates",
            settings.run,
            shim=settings.shim,
            qemu=settings.qemu,
            uid=FIRST_UID,
            program=lambda: self.filter(warming.WANTED),
        )
        self._machines: dict[str, Machine] = {}
        #: Of containers that ended with their machine while no hostd ran; read by the one that finds them.
        self._endings: dict[str, str] = {}
        self.early = Early(group, self.end)
        #: Taken before the first wait of a start: two starts at a time must not get one user.
        self._uids: set[int] = set()
        self.taps = taps.Taps()
        self._waiting_number = 0
        #: A bundle's seccomp profile as a filter, by who compiles and keeps them (:mod:`service`).
        self.filter: Callable[[Config], bytes] = lambda _config: b""
        self.pool = Pool(settings.pool, self._make_waiting, self.end, _is_alive, _answers)
        group.create_task(self.pool.run())
        most = rehearsals.half_of_host() if settings.rehearsal else 0
        self.rehearsals = rehearsals.Rehearsals(
            self.templates, group, most, busy=lambda: self.pool.busy, has_memory=self.pool.has_memory
        )

    def all(self) -> list[Machine]:
        """Those that are somebody's."""
        return [one for one in self._machines.values() if not one.record.name.startswith(_WAITS)]

    def find(self, container: str) -> Machine | None:
        """The machine that *container* is in."""
        return next((one for one in self._machines.values() if one.container(container) is not None), None)

    def _young(self) -> int:
        """How many machines are in their first second: what they run translates as it goes."""
        since = time.monotonic() - _YOUNG_S
        return sum(one.begun_s > since for one in self.all())

    def get(self, name: str) -> Machine | None:
        return self._machines.get(name)

    async def recover(self) -> list[str]:
        """Connect to the monitors that an earlier hostd left; remove what is left of those that are gone."""
        await self._end_own()
        found = []
        for folder in sorted(self.folder.iterdir()):
            try:
                record = records.read(folder)
                monitor = await Monitor.find(folder / "monitor.sock")
            except CasemateError:
                self._remember_end(folder)
                shutil.rmtree(folder, ignore_errors=True)
                continue
            machine = self._add(record, folder, monitor)
            if record.name.startswith(_WAITS) or not record.containers:
                # Of an earlier hostd's pool, or begun for a start that it did not come to.
                await self.end(machine)
                continue
            try:
                await self._catch_up(machine)
                found.append(record.name)
            except CasemateError:
                await self.end(machine)
        return found

    async def _end_own(self) -> None:
        """End the machines that an earlier hostd had for itself when it was killed: a template's, a probe's."""
        for path in (*self.settings.run.glob(SOCKETS), self.settings.run / accelerate.SOCKET):
            with contextlib.suppress(CasemateError):
                monitor = await Monitor.find(path)
                monitor.quit()
                monitor.leave()
            path.unlink(missing_ok=True)

    def _remember_end(self, folder: Path) -> None:
        with contextlib.suppress(CasemateError):
            record = records.read(folder)
            kills = hostlimits.memory_kills(record.cgroups) - record.memory_kills
            why = ending.words(ending.explain(ending.read(folder), kills))
            self._endings |= {one.id: one.reason or why for one in record.containers if _ended_with(one)}

    def ending(self, container: str) -> str:
        """Why *container* ended with its machine; empty for an end of its own, and for one that is not known."""
        machine = self.find(container)
        return self._endings.pop(container, "") if machine is None else machine.ending_of(container)

    async def _catch_up(self, machine: Machine) -> None:
        """What ended while nobody listened."""
        reply = await machine.monitor.ask(Kind.PROCESSES, [])
        for one in guestrows.ended(reply):
            known = machine.container(one.container)
            if known is not None and known.status != "stopped":
                machine.set_status(one.container, "stopped", one.code, oom_killed=one.oom_killed)

    async def create(
        self,
        name: str,
        layers: Sequence[Path],
        *,
        hostname: str,
        memory_bytes: int | None = None,
        network: GuestNetwork | None = None,
        cgroups: tuple[str, ...] = (),
        ids: Ids | None = None,
        shared: Sequence[Share] = (),
        below: bool = False,
        netns_fd: int | None = None,
        cards: int = 1,
        pod: str = "",
        more: bool = False,
        origin: origins.Origin = origins.Origin(),  # noqa: B008 - frozen
        scratch_fd: int | None = None,
        upper_bytes: int = 0,
        cpu_limited: bool = False,
    ) -> Machine:
        """A configured clone (or cold boot, as *origin* says) over *layers*, or over the root among *shared*.

        *below*: that root lies under a writable layer. *ids*: the map of the guest's users, whose first is then QEMU's
        user; *netns_fd*: an engine's network namespace (the caller's), for the other ends of its *cards*. *pod*: the
        machine's name, where it is not its container's; *more*: further containers may :meth:`join`; *scratch_fd*: the
        file of its writable layer (the caller's), else that lies in memory, *upper_bytes* of it at most (0: half).
        *cpu_limited*: the pod has less than the host's processors, so that a second one of the guest's gains nothing.
        Raises the error of the step that failed, with nothing left behind.
        """
        called = pod or name
        if not _NAME.match(called) or called in self._machines:
            raise MonitorFailed(f"a machine {called[:80]!r} exists, or the name is not valid")
        cold = origin.kind == "none"
        recipe = self._recipe(memory_bytes, "" if cold else origin.project, cards)
        source = recipe if cold else await self._template(recipe, cpu_limited=cpu_limited)
        opened = shares.open_all(shared)
        self.pool.busy += 1
        machine: Machine | None = None
        moved: asyncio.Future[None] | None = None
        try:
            # One that waits has no room for layers of others, and is nobody's cold boot.
            waiting = None
            if isinstance(source, Template) and not more and cards == 1:
                interface = "" if network is None else network.tap
                waiting = await self._waiting(source, interface, netns_fd, ids, shared=bool(shared))
            if waiting is not None:
                machine = waiting
                machine.tap = "" if network is None else network.tap
                moved = self._take(machine, called, cgroups)
                extents = await swap.layers(machine.monitor, layers)
            else:
                source = (None if cold or cpu_limited else self.rehearsals.of(recipe, self._young())) or source
                tap_fds = await _open_taps(network, netns_fd, cards)
                where = _Where(called, cgroups, ids, tap_fds, scratch_fd, "" if network is None else network.tap)
                machine, extents = await self._clone(source, where, layers, more=more)
                if cold:
                    await clone.booted(machine.monitor)
            await machine.monitor.ask(
                Kind.CONFIGURE,
                configuring.fields(
                    hostname,
                    network,
                    card=network is not None or netns_fd is not None,
                    rehearse=waiting is None and _recipe_of(source).cpus > 1,
                ),
                error=NetworkFailed,
                timeout_s=CLONE_TIMEOUT_S,
            )
            if waiting is None:
                await machine.learn_qemu(ids or SAME_IDS)
            elif scratch_fd is not None:
                await swap.scratch(machine.monitor, scratch_fd)
            if scratch_fd is not None:
                machine.set_scratch()
            places = [Field(Tag.LAYER, struct.pack("<QQ", one.start, one.sectors)) for one in extents]
            await machine.fill(name, places, opened, below=below, more=more, upper_bytes=upper_bytes)
            machine.set_layers([str(one) for one in layers], whole=not more)
            if moved is not None:
                # Before anything of the user's runs.
                await moved
        except BaseException as error:
            if machine is not None:
                if isinstance(error, CasemateError):
                    await machine.explain(error)
                await self.end(machine)
            raise
        finally:
            self.pool.busy -= 1
            shares.close(opened)
        return machine

    async def _template(self, recipe: Recipe, *, cpu_limited: bool) -> Recipe | Template:
        if not cpu_limited:
            self.rehearsals.foresee(recipe, self._young())
        return await self.templates.get(recipe)

    async def _waiting(
        self, template: Template, interface: str, netns_fd: int | None, ids: Ids | None, *, shared: bool
    ) -> Machine | None:
        """One that waits, if it may be taken and answers; that with *interface* was asked before its start began."""
        if netns_fd is not None:
            return await self._waiting_in(template, netns_fd) if ids is None else None
        if shared:
            # Its user is not the pod's, as whom alone files of the host may be written.
            return None
        machine = self.pool.take(template, interface)
        if machine is None or interface or await _answers(machine):
            return machine
        # In its own time: a monitor that is stopped as well is given 10 s to end.
        self._group.create_task(self.end(machine))
        return None

    async def _waiting_in(self, template: Template, netns_fd: int) -> Machine | None:
        """One that waits, its tap moved into an engine's namespace; the engine's map of users is its own, too."""
        one = self.pool.take_with_tap(template)
        if one is None:
            return None
        if not await _answers(one.machine):
            self._group.create_task(self.end(one.machine))
            return None
        try:
            await takeover.adopt_tap(one.tap, netns_fd)
        except BaseException as error:
            # Awaited: a clone's tap is to have the name that this one may have got.
            await self.end(one.machine)
            if not isinstance(error, NetworkFailed):
                raise
            log.warning("a waiting micro-VM was not taken: %s", error.detail)
            return None
        # It goes with QEMU, as a clone's of an engine does: its name there is the next one's, too.
        self.taps.leave(one.machine)
        return one.machine

    async def join(
        self,
        machine: Machine,
        name: str,
        layers: Sequence[Path],
        *,
        shared: Sequence[Share],
        below: bool = False,
        upper_bytes: int = 0,
    ) -> None:
        """Give *machine* a further container *name* over *layers*. What was there goes on when it fails."""
        opened = shares.open_all(shared)
        try:
            extents = await join.add_layers(machine, layers) if layers else ()
            places = [Field(Tag.LAYER, struct.pack("<QQ", one.start, one.sectors)) for one in extents]
            await machine.fill(name, places, opened, below=below, more=True, upper_bytes=upper_bytes)
        except BaseException:
            await shares.detach(machine.qemu, [one.name for one in opened])
            raise
        finally:
            shares.close(opened)

    async def _clone(
        self,
        source: Template | Recipe,
        where: _Where,
        layers: Sequence[Path],
        *,
        waits: bool = False,
        more: bool = False,
    ) -> tuple[Machine, tuple[disks.Extent, ...]]:
        """Start a clone, or a cold boot; *where*'s tap is the machine's, or closed. Nothing is left when it fails."""
        folder = self.folder / where.name
        uid: int | None = None
        try:
            folder.mkdir(mode=0o700)
            kills = self._bound(where.cgroups, _recipe_of(source).memory_bytes)
            uid = self._free_uid() if where.ids is None else where.ids.uids[0][1]
            monitor, extents = await clone.start(
                source,
                clone.Place(folder, self._jail, uid, where.cgroups, where.ids or SAME_IDS),
                layers,
                shim=self.settings.shim,
                qemu=self.settings.qemu,
                tap_fds=where.tap_fds,
                scratch_fd=where.scratch_fd,
                waits=waits,
                more=more,
            )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            if uid is not None:
                self._uids.discard(uid)
            _close(where.tap_fds)
            raise
        pid = 0 if monitor.child is None else monitor.child.pid
        size = _recipe_of(source).memory_bytes
        record = MachineRecord(
            where.name, uid, 1, cgroups=where.cgroups, pid=pid, memory_bytes=size, memory_kills=kills
        )
        machine = self._add(record, folder, monitor)
        if where.tap and where.tap_fds:
            machine.tap, machine.tap_fd = where.tap, where.tap_fds[0]
        else:
            _close(where.tap_fds)
        records.write(folder, record)
        return machine, extents

    def _bound(self, folders: Sequence[str], memory_bytes: int) -> int:
        """The limits on the host of a machine that is to be in these cgroups; how often it was killed there before."""
        hostlimits.bound(folders, memory_bytes, self.settings.accelerator)
        return hostlimits.memory_kills(folders)

    def _take(self, machine: Machine, name: str, cgroups: tuple[str, ...]) -> asyncio.Future[None]:
        """Make a waiting machine the one called *name*; what is answered is done when it is in *cgroups*.

        In a thread: the kernel waits for every cpu before it moves a process, 20 ms for eight hierarchies of version 1.
        """
        self._machines[name] = self._machines.pop(machine.record.name)
        machine.folder = machine.folder.rename(self.folder / name)
        machine.rename(name, cgroups, self._bound(cgroups, machine.record.memory_bytes))
        moved = asyncio.get_running_loop().run_in_executor(None, machine.join)
        # Where another step fails first, nobody asks for this one's error.
        moved.add_done_callback(lambda done: done.cancelled() or done.exception())
        return moved

    async def _make_waiting(self, template: Template) -> Waiting:
        """A warmed clone of *template* that nobody has asked for yet."""
        self._waiting_number += 1
        layer = await warming.make_layer(self.settings.state / "templates", Path(self.settings.shim))
        card = f"{self.settings.taps}{self._waiting_number % 10**6}" if self.settings.taps else ""
        where = _Where(f"{_WAITS}{self._waiting_number}", (), None, [tap.open_tap(card)] if card else [], tap=card)
        machine, extents = await self._clone(template, where, [layer], waits=True)
        try:
            fields = configuring.fields("casemate", warming.NETWORK)
            await machine.monitor.ask(Kind.CONFIGURE, fields, timeout_s=CLONE_TIMEOUT_S)
            await machine.learn_qemu(SAME_IDS)
            with priority.idle(machine.record.qemu_pid):
                await warming.run(machine.monitor, machine.next_channel(), extents[0], self.filter(warming.WANTED))
        except BaseException:
            await self.end(machine)
            raise
        return Waiting(machine, template, card)

    async def template(self, memory_bytes: int | None, origin: origins.Origin = origins.Origin()) -> Template:  # noqa: B008
        """The template of a machine of this size, of everybody's or of *origin*'s project, made when there is none."""
        return await self.templates.get(self._recipe(memory_bytes, origin.project))

    def _recipe(self, memory_bytes: int | None, owner: str = "", cards: int = 1) -> Recipe:
        settings = self.settings
        return Recipe(
            kernel.chosen(settings.state / "kernels"),
            settings.qemu_version,
            settings.accelerator,
            memory_bytes or settings.memory_bytes,
            1,
            # With KVM the guest has the host's own clock.
            settings.tsc_khz if settings.accelerator.kind == "tcg" else None,
            owner,
            cards,
        )

    def _add(self, record: MachineRecord, folder: Path, monitor: Monitor) -> Machine:
        machine = Machine(record, folder, monitor)
        self._uids.add(record.uid)
        monitor.on_event = machine.hear
        self._machines[record.name] = machine
        self._group.create_task(self._serve(machine))
        return machine

    async def _serve(self, machine: Machine) -> None:
        await machine.monitor.serve()
        self.taps.close(machine)
        if machine.folder.is_dir():
            machine.lost()

    def _free_uid(self) -> int:
        for uid in range(FIRST_UID + 1, FIRST_UID + UIDS):
            if uid not in self._uids:
                self._uids.add(uid)
                return uid
        raise LimitExceeded(f"{UIDS} machines run at one time")

    async def end(self, machine: Machine) -> None:
        """End the machine and take away what is there of it. May be repeated."""
        machine.monitor.quit()
        try:
            async with asyncio.timeout(_QUIT_WAIT_S):
                await machine.monitor.ended.wait()
        except TimeoutError:
            machine.monitor.channel.close()
        await machine.monitor.wait(_QUIT_WAIT_S)
        self.taps.close(machine)
        self._machines.pop(machine.record.name, None)
        self._uids.discard(machine.record.uid)
        shutil.rmtree(machine.folder, ignore_errors=True)

    def forget(self) -> None:
        """Let go of every monitor: hostd stops, machines stay, but for those that nobody has asked for."""
        for machine in self._machines.values():
            if machine.record.name.startswith(_WAITS):
                machine.monitor.quit()
            machine.monitor.leave()
            self.taps.leave(machine)


def _ended_with(one: records.ContainerRecord) -> bool:
    """Whether the end of a container was its machine's, by what was written down."""
    return one.status != "stopped" or bool(one.reason)


def _is_alive(machine: Machine) -> bool:
    """Of a machine that waits: whether QEMU runs. Its death may not have been heard of yet."""
    return not machine.monitor.ended.is_set() and pidfd.is_alive(machine.qemu.pid, machine.qemu.start_ticks)


async def _answers(machine: Machine) -> bool:
    """Whether the agent of a machine that waits answers at once: 1 ms of a start, against the 30 s of a silent one."""
    try:
        await machine.monitor.call(Kind.PROCESSES, [], timeout_s=_ANSWER_TIMEOUT_S)
    except CasemateError:
        return False
    return True


def _recipe_of(source: Template | Recipe) -> Recipe:
    return source.recipe if isinstance(source, Template) else source


def _close(numbers: Sequence[int]) -> None:
    for number in numbers:
        os.close(number)


async def _open_taps(network: GuestNetwork | None, netns_fd: int | None, cards: int) -> list[int]:
    """The taps of a clone: of its pod's link, or in an engine's namespace."""
    if netns_fd is not None:
        return await takeover.open_taps(netns_fd, cards)
    return [] if network is None else [tap.open_tap(network.tap)]
