"""The machines of one host: cloned, configured, filled with containers, ended; found again after a restart."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from casemate.host import pidfd
from casemate.isolation.microvm import argv, clone, frames, kernel, records, shares, tap
from casemate.isolation.microvm.errors import MonitorFailed, NetworkFailed, RootfsFailed, ShareFailed
from casemate.isolation.microvm.frames import Field, Kind, Message, Tag
from casemate.isolation.microvm.monitor import Monitor
from casemate.isolation.microvm.records import SAME_IDS, ContainerRecord, Ids, MachineRecord, Status
from casemate.isolation.microvm.shares import Share
from casemate.isolation.microvm.tap import GuestNetwork
from casemate.isolation.microvm.template import Recipe, Template, Templates
from casemate.spec.errors import CasemateError, LimitExceeded

#: Users of the machines' monitors: below userns.first_id, above what useradd gives to people.
FIRST_UID, UIDS = 999_000_000, 50_000
SEED_BYTES = 64
_OVERLAY_ROOT = 32  # wire.h, FLAG_OVERLAY_ROOT
#: From the start of a clone to its first answer: 60 ms alone under emulation, seconds on a loaded host.
CLONE_TIMEOUT_S = 30.0
_QUIT_WAIT_S = 5.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")


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


@dataclass(slots=True)
class Machine:
    """One machine that runs. Its record on disk follows each change."""

    record: MachineRecord
    folder: Path
    monitor: Monitor
    changed: Callable[[str], None] = lambda _container: None
    starting: set[str] = field(default_factory=set)

    def container(self, name: str) -> ContainerRecord | None:
        return next((one for one in self.record.containers if one.id == name), None)

    def put(self, container: ContainerRecord) -> None:
        """Add or replace a container's record."""
        rest = tuple(one for one in self.record.containers if one.id != container.id)
        self._write(msgspec.structs.replace(self.record, containers=(*rest, container)))

    def drop(self, name: str) -> None:
        rest = tuple(one for one in self.record.containers if one.id != name)
        self._write(msgspec.structs.replace(self.record, containers=rest))

    def set_status(self, name: str, status: Status, code: int = 0, *, oom_killed: bool = False) -> None:
        one = self.container(name)
        if one is not None:
            self.put(msgspec.structs.replace(one, status=status, code=code, oom_killed=oom_killed))

    def next_channel(self) -> int:
        """A channel that this machine has not used: 65,535 processes over its life, of which execs are most."""
        number = self.record.next_channel
        if number > 0xFFFF:
            raise LimitExceeded("65,535 processes were started in this machine; start the pod anew")
        self._write(msgspec.structs.replace(self.record, next_channel=number + 1))
        return number

    async def learn_qemu(self, ids: Ids) -> None:
        """Which process QEMU is. Before anything of the user's runs in the guest: the monitor's word counts yet."""
        qemu = pidfd.identity(await self.monitor.qemu_pid())
        if qemu is None:
            raise MonitorFailed("the machine's QEMU ended")
        self._write(msgspec.structs.replace(self.record, ids=ids, qemu_pid=qemu.pid, qemu_start_ticks=qemu.start_ticks))

    @property
    def qemu(self) -> pidfd.ProcessIdentity:
        return pidfd.ProcessIdentity(self.record.qemu_pid, self.record.qemu_start_ticks)

    async def fill(
        self, container: str, places: Sequence[Field], opened: Sequence[shares.Opened], *, below: bool = False
    ) -> None:
        """Give *container* its folders, and its root: the layers at *places*, or the folder that is named for it."""
        root = shares.root_name(container)
        found = [frames.text(Tag.CONTAINER, container), *places]
        if opened:
            await shares.attach(self.qemu, opened)
            await self.monitor.ask(Kind.SHARE, [], error=ShareFailed)
        if any(one.name == root for one in opened):
            found += [frames.text(Tag.SHARE, root), frames.u32(Tag.FLAGS, _OVERLAY_ROOT if below else 0)]
        await self.monitor.ask(Kind.ROOTFS, found, error=RootfsFailed)

    def hear(self, message: Message) -> None:
        """An event of the guest's: an ended process. What it says of containers that are not there is nothing."""
        if message.kind is not Kind.EXITED or message.text(Tag.PROCESS):
            return
        name = message.text(Tag.CONTAINER)
        if (one := self.container(name)) is not None and one.status != "stopped":
            code = message.number_of(Tag.STATUS) & 255
            self.set_status(name, "stopped", code, oom_killed=bool(message.number_of(Tag.FLAGS)))
            self.changed(name)

    def lost(self) -> None:
        """The monitor ended: so did everything in it."""
        for one in self.record.containers:
            if one.status != "stopped":
                self.set_status(one.id, "stopped", 137)
                self.changed(one.id)

    def _write(self, record: MachineRecord) -> None:
        self.record = record
        records.write(self.folder, record)


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
            settings.state / "templates", settings.run, shim=settings.shim, qemu=settings.qemu, uid=FIRST_UID
        )
        self._machines: dict[str, Machine] = {}
        #: Taken before the first wait of a start: two starts at a time must not get one user.
        self._uids: set[int] = set()

    def all(self) -> list[Machine]:
        return list(self._machines.values())

    def find(self, container: str) -> Machine | None:
        """The machine that *container* is in."""
        return next((one for one in self._machines.values() if one.container(container) is not None), None)

    def get(self, name: str) -> Machine | None:
        return self._machines.get(name)

    async def recover(self) -> list[str]:
        """Connect to the monitors that an earlier hostd left; remove what is left of those that are gone."""
        found = []
        for folder in sorted(self.folder.iterdir()):
            try:
                record = records.read(folder)
                monitor = await Monitor.find(folder / "monitor.sock")
            except CasemateError:
                shutil.rmtree(folder, ignore_errors=True)
                continue
            machine = self._add(record, folder, monitor)
            try:
                await self._catch_up(machine)
                found.append(record.name)
            except CasemateError:
                await self.end(machine)
        return found

    async def _catch_up(self, machine: Machine) -> None:
        """What ended while nobody listened."""
        reply = await machine.monitor.ask(Kind.PROCESSES, [])
        for entry in reply.fields:
            parts = entry.value.split(b"\0")
            if entry.tag != Tag.PROCESS or len(parts) != 5 or parts[1]:
                continue
            name, status = parts[0].decode("ascii", "replace"), parts[3]
            if status == b"ended" and (one := machine.container(name)) is not None and one.status != "stopped":
                machine.set_status(name, "stopped", int(parts[4]) & 255 if parts[4].isdigit() else 255)

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
        given_tap_fd: int | None = None,
    ) -> Machine:
        """A configured clone over *layers*, or over the root among *shared* (*below*: under a writable layer).

        *ids*: the map of the guest's users, whose first is then QEMU's user. Raises the error of the step that
        failed, with nothing left behind.
        """
        if not _NAME.match(name) or name in self._machines:
            raise MonitorFailed(f"a machine {name[:80]!r} exists, or the name is not valid")
        template = await self.template(memory_bytes)
        folder = self.folder / name
        folder.mkdir(mode=0o700)
        tap_fd, uid = None, self._free_uid() if ids is None else ids.uids[0][1]
        opened: list[shares.Opened] = []
        try:
            opened = shares.open_all(shared)
            tap_fd = given_tap_fd if network is None else tap.open_tap(network.tap)
            place = clone.Place(folder, self._jail, uid, cgroups, ids or SAME_IDS)
            monitor, extents = await clone.start(
                template, place, layers, shim=self.settings.shim, qemu=self.settings.qemu, tap_fd=tap_fd
            )
        except BaseException:
            shares.close(opened)
            shutil.rmtree(folder, ignore_errors=True)
            self._uids.discard(uid)
            raise
        finally:
            if tap_fd is not None and tap_fd != given_tap_fd:
                os.close(tap_fd)
        pid = 0 if monitor.child is None else monitor.child.pid
        size = template.recipe.memory_bytes
        machine = self._add(MachineRecord(name, uid, 1, (), cgroups, pid, size), folder, monitor)
        try:
            records.write(folder, machine.record)
            await monitor.ask(
                Kind.CONFIGURE, _configuration(hostname, network), error=NetworkFailed, timeout_s=CLONE_TIMEOUT_S
            )
            await machine.learn_qemu(ids or SAME_IDS)
            places = [Field(Tag.LAYER, struct.pack("<QQ", one.start, one.sectors)) for one in extents]
            await machine.fill(name, places, opened, below=below)
        except BaseException as error:
            if isinstance(error, CasemateError):
                error.detail += f"; console: {(await monitor.tail())[-500:]}"
            await self.end(machine)
            raise
        finally:
            shares.close(opened)
        return machine

    async def template(self, memory_bytes: int | None) -> Template:
        """The template of a machine of this size, made when there is none."""
        settings = self.settings
        recipe = Recipe(
            kernel.chosen(settings.state / "kernels"),
            settings.qemu_version,
            settings.accelerator,
            memory_bytes or settings.memory_bytes,
            1,
            # With KVM the guest has the host's own clock.
            settings.tsc_khz if settings.accelerator.kind == "tcg" else None,
        )
        return await self.templates.get(recipe)

    def _add(self, record: MachineRecord, folder: Path, monitor: Monitor) -> Machine:
        machine = Machine(record, folder, monitor)
        self._uids.add(record.uid)
        monitor.on_event = machine.hear
        self._machines[record.name] = machine
        self._group.create_task(self._serve(machine))
        return machine

    async def _serve(self, machine: Machine) -> None:
        await machine.monitor.serve()
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
        self._machines.pop(machine.record.name, None)
        self._uids.discard(machine.record.uid)
        shutil.rmtree(machine.folder, ignore_errors=True)

    def forget(self) -> None:
        """Let go of every monitor without ending any: hostd stops, machines stay."""
        for machine in self._machines.values():
            machine.monitor.leave()


def _configuration(hostname: str, network: GuestNetwork | None) -> list[Field]:
    """Randomness first: nothing of the user's has run, and nothing before this drew any that it keeps."""
    return [
        Field(Tag.SEED, secrets.token_bytes(SEED_BYTES)),
        frames.u64(Tag.CLOCK, time.time_ns()),
        frames.text(Tag.HOSTNAME, (hostname or "casemate")[:64]),
        *(network.fields() if network is not None else ()),
    ]
