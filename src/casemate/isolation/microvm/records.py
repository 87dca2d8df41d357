"""What is remembered of a machine across a restart of hostd: one small file beside its socket."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from casemate.host import durable
from casemate.isolation.microvm.errors import MonitorFailed

#: The only pod-wide facts are the uid and the layers; 32 containers of 1 KiB each.
MAX_RECORD_BYTES = 256 << 10
Status = Literal["creating", "created", "running", "paused", "stopped"]


class Ids(Struct, frozen=True, forbid_unknown_fields=True):
    """A user namespace's maps: rows of (id inside, id outside, count)."""

    uids: tuple[tuple[int, int, int], ...]
    gids: tuple[tuple[int, int, int], ...]


#: An engine without user namespaces: the owners that it sees are the owners that the guest sees.
SAME_IDS = Ids(((0, 0, (1 << 32) - 1),), ((0, 0, (1 << 32) - 1),))


class ContainerRecord(Struct, frozen=True, forbid_unknown_fields=True):
    """One container: the *pid* is its waiter's; *code* counts once it is stopped."""

    id: str
    bundle: str
    pid: int
    status: Status
    channel: int
    code: int = 0
    oom_killed: bool = False
    #: Why it ended with its machine; empty for an end of its own.
    reason: str = ""
    created: str = ""
    annotations: dict[str, str] = {}
    #: The guest takes over what an engine has set up in the waiter's network namespace.
    takes_network: bool = False
    #: The engine's cgroup of it on the host.
    cgroup: str = ""
    #: Names of its shares, to be taken away when the machine outlives it.
    shares: tuple[str, ...] = ()
    #: What its engine says with ``--root``: containers of one root are one list.
    root: str = ""
    #: Its root file system on the host, which of layers is a name only.
    rootfs: str = ""


class MachineRecord(Struct, frozen=True, forbid_unknown_fields=True):
    """One machine: its name (the pod's, or its only container's), its uid, the channels used so far."""

    name: str
    uid: int
    next_channel: int
    containers: tuple[ContainerRecord, ...] = ()
    cgroups: tuple[str, ...] = ()
    #: The monitor, whose only child is QEMU.
    pid: int = 0
    #: How often the kernel had killed for want of memory in its cgroups before it was there.
    memory_kills: int = 0
    memory_bytes: int = 0
    #: The files on its block device, in their order; how often further ones were put behind them; and whether the
    #: guest has mounted the device whole, so that there can be none.
    layers: tuple[str, ...] = ()
    joins: int = 0
    whole_device: bool = True
    #: The writable layer of its one container is a file of the host's.
    scratch: bool = False
    #: QEMU's user namespace, its pid and start time: what a folder is attached to.
    ids: Ids | None = None
    qemu_pid: int = 0
    qemu_start_ticks: int = 0
    #: The inode of the network namespace that it has taken over; 0 for our own pods.
    netns: int = 0
    #: The engine's cgroup that it is in: its first container's, which outlives that container.
    cgroup: str = ""


_DECODER = msgspec.json.Decoder(MachineRecord)


def write(folder: Path, record: MachineRecord) -> None:
    """Replace the record; what it describes is gone after a reboot, so nothing is forced to the disk."""
    durable.write_atomic(folder / "machine.json", msgspec.json.encode(record), sync=False)


def read(folder: Path) -> MachineRecord:
    """The record in *folder*; :class:`MonitorFailed` when there is none that can be read."""
    try:
        return _DECODER.decode(durable.read_bounded(folder / "machine.json", MAX_RECORD_BYTES))
    except (OSError, msgspec.MsgspecError) as error:
        raise MonitorFailed(f"{folder}: {error}") from error
