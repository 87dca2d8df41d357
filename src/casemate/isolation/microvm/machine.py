"""One machine that runs: its record, which follows each change, and what its guest says of itself."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from casemate.host import pidfd
from casemate.isolation.microvm import ending, frames, hostlimits, records, shares
from casemate.isolation.microvm.errors import MonitorFailed, RootfsFailed, ShareFailed
from casemate.isolation.microvm.frames import Field, Kind, Message, Tag
from casemate.isolation.microvm.monitor import Monitor
from casemate.isolation.microvm.records import ContainerRecord, Ids, MachineRecord, Status
from casemate.spec.errors import CasemateError, LimitExceeded

_OVERLAY_ROOT, _PARTITIONS, _SCRATCH = 32, 64, 1024  # wire.h, FLAG_OVERLAY_ROOT, FLAG_PARTITIONS, FLAG_SCRATCH
#: Of what a guest has not written to its scratch device yet, at most its memory.
_SYNC_TIMEOUT_S = 60.0
#: Of the console, in the error of a step.
_TAIL_CHARS = 500


@dataclass(slots=True)
class Machine:
    """One machine that runs. Its record on disk follows each change."""

    record: MachineRecord
    folder: Path
    monitor: Monitor
    changed: Callable[[str], None] = lambda _container: None
    starting: set[str] = field(default_factory=set)
    #: How many copies of whose files are under way.
    copies: Counter[str] = field(default_factory=Counter)
    #: The card's other end, held beside QEMU's, and its name: who closes it last waits for the kernel (:mod:`taps`).
    tap: str = ""
    tap_fd: int = -1
    #: time.monotonic() when it was cloned, or found again.
    begun_s: float = field(default_factory=time.monotonic)

    def container(self, name: str) -> ContainerRecord | None:
        return next((one for one in self.record.containers if one.id == name), None)

    def put(self, container: ContainerRecord) -> None:
        """Add or replace a container's record."""
        rest = tuple(one for one in self.record.containers if one.id != container.id)
        self._write(msgspec.structs.replace(self.record, containers=(*rest, container)))

    def drop(self, name: str) -> None:
        rest = tuple(one for one in self.record.containers if one.id != name)
        self._write(msgspec.structs.replace(self.record, containers=rest))

    def set_status(
        self, name: str, status: Status, code: int = 0, *, oom_killed: bool = False, reason: str = ""
    ) -> None:
        one = self.container(name)
        if one is not None:
            self.put(msgspec.structs.replace(one, status=status, code=code, oom_killed=oom_killed, reason=reason))

    def rename(self, name: str, cgroups: tuple[str, ...], memory_kills: int) -> None:
        """It is somebody's from now on, in *cgroups*; its folder has been renamed."""
        self._write(msgspec.structs.replace(self.record, name=name, cgroups=cgroups, memory_kills=memory_kills))

    def join(self) -> None:
        """Move monitor and QEMU into the record's cgroups."""
        for folder in self.record.cgroups:
            for pid in (self.record.pid, self.record.qemu_pid):
                Path(folder, "cgroup.procs").write_text(str(pid), "ascii")

    def next_channel(self) -> int:
        """A channel that this machine has not used: 65,535 processes over its life, of which execs are most."""
        number = self.record.next_channel
        if number > 0xFFFF:
            raise LimitExceeded("65,535 processes were started in this machine; start the pod anew")
        self._write(msgspec.structs.replace(self.record, next_channel=number + 1))
        return number

    def set_engine(self, netns: int, cgroup: str) -> None:
        """The engine's network namespace that is taken over (its inode), and its cgroup that the machine is in."""
        self._write(msgspec.structs.replace(self.record, netns=netns, cgroup=cgroup))

    def set_layers(self, layers: Sequence[str], joins: int = 0, *, whole: bool = False) -> None:
        """What lies on the block device."""
        self._write(msgspec.structs.replace(self.record, layers=tuple(layers), joins=joins, whole_device=whole))

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
        self,
        container: str,
        places: Sequence[Field],
        opened: Sequence[shares.Opened],
        *,
        below: bool = False,
        more: bool = False,
        upper_bytes: int = 0,
    ) -> None:
        """Give *container* its folders, and its root: the layers at *places*, or the folder that is named for it."""
        root = shares.root_name(container)
        found = [frames.text(Tag.CONTAINER, container), *places]
        if opened:
            await shares.attach(self.qemu, opened)
            await self.monitor.ask(Kind.SHARE, [], error=ShareFailed)
        if any(one.name == root for one in opened):
            found += [frames.text(Tag.SHARE, root), frames.u32(Tag.FLAGS, _OVERLAY_ROOT if below else 0)]
        else:
            flags = (_PARTITIONS if more else 0) | (_SCRATCH if self.record.scratch else 0)
            found += [frames.u32(Tag.FLAGS, flags)] if flags else []
        if upper_bytes and not self.record.scratch:
            found.append(frames.u64(Tag.UPPER_BYTES, upper_bytes))
        await self.monitor.ask(Kind.ROOTFS, found, error=RootfsFailed)

    async def limit(self, container: str, files: Sequence[tuple[str, str]]) -> None:
        """Set files of cgroup v2 in the guest: of *container*, or of the whole pod where it is empty."""
        of = [frames.text(Tag.CONTAINER, container)] if container else []
        limits = [Field(Tag.LIMIT, f"{name}\0{value}".encode()) for name, value in files]
        await self.monitor.ask(Kind.LIMITS, [*of, *limits])

    async def sync(self) -> None:
        """What the guest has written lies in the scratch file: the machine may end."""
        await self.monitor.ask(Kind.SYNC, [], timeout_s=_SYNC_TIMEOUT_S)

    def set_scratch(self) -> None:
        """Its writable layer lies on the scratch device."""
        self._write(msgspec.structs.replace(self.record, scratch=True))

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
        reason = self.ending()
        for one in self.record.containers:
            if one.status != "stopped":
                self.set_status(one.id, "stopped", 137, reason=reason)
                self.changed(one.id)

    def ending(self) -> str:
        """How the machine ended, as its monitor wrote it down and its cgroup counted; empty while it runs."""
        said = ending.read(self.folder)
        # Its socket tells the loop a moment later than its waiter's end tells a supervisor.
        if not said and not self.monitor.ended.is_set() and not ending.is_over(self.record.pid):
            return ""
        kills = hostlimits.memory_kills(self.record.cgroups) - self.record.memory_kills
        return ending.words(ending.explain(said, kills))

    async def explain(self, error: CasemateError) -> None:
        """Say in *error*, that of a step, how the machine ended; or, while it runs, what is on its console."""
        if self.monitor.ended.is_set() and (why := self.ending()):
            error.detail += f": {why}"
        else:
            error.detail += f"; console: {(await self.monitor.tail())[-_TAIL_CHARS:]}"

    def ending_of(self, container: str) -> str:
        """Why *container* ended with the machine; empty for an end of its own, and while it runs."""
        self.monitor.catch_up()
        one = self.container(container)
        if one is None or one.status == "stopped":
            return "" if one is None else one.reason
        return self.ending()

    def _write(self, record: MachineRecord) -> None:
        self.record = record
        records.write(self.folder, record)
