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


class ContainerRecord(Struct, frozen=True, forbid_unknown_fields=True):
    """One container: the *pid* is its waiter's; *code* counts once it is stopped."""

    id: str
    bundle: str
    pid: int
    status: Status
    channel: int
    code: int = 0
    oom_killed: bool = False
    created: str = ""
    annotations: dict[str, str] = {}


class MachineRecord(Struct, frozen=True, forbid_unknown_fields=True):
    """One machine: its name (the pod's, or its only container's), its uid, the channels used so far."""

    name: str
    uid: int
    next_channel: int
    containers: tuple[ContainerRecord, ...] = ()
    cgroups: tuple[str, ...] = ()


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
