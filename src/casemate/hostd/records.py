"""hostd's records: what it has made or is about to make, written before the effect, read at the next start.

One JSON file for a pod and one for each container, replaced atomically. On the way of a start nothing waits for
the disk: an fsync took 1 to 4 ms here, five times for each container. A record is made durable a second later, if
its object still lives then; a power cut inside that second finds no process running anyway, and what the lost
record stood for is a folder of ours without a record, which is garbage by definition.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from casemate.host import durable
from casemate.hostd.errors import RecordCorrupt
from casemate.hostd.folders import Folders
from casemate.spec.errors import CasemateError
from casemate.spec.workload import ContainerSpec, PodSpec, Value

SCHEMA = 1
#: A spec of the protocol's greatest size (192 KiB of msgpack) is below this as JSON.
MAX_RECORD_BYTES = 2 << 20
_SYNC_AFTER_S = 1.0

PodPhase = Literal["creating", "ready", "removing"]
ContainerPhase = Literal["creating", "created", "running", "exited", "removing"]


class CallerRecord(Value, frozen=True):
    """Who asked for it, and what they were granted: a start without them is held to this."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    grants: tuple[str, ...] = ()


class ProcessRecord(Value, frozen=True):
    """A process by pid and start time in ticks since boot."""

    pid: int
    start_ticks: int


class PodRecord(Value, frozen=True):
    """*id_shift*: as the context's when the pod was made; it says how the layers of its containers are mounted."""

    spec: PodSpec
    phase: PodPhase
    first_id: int
    boot_id: str
    schema: int = SCHEMA
    caller: CallerRecord | None = None
    id_shift: int = 0


class ContainerRecord(Value, frozen=True):
    """*caller* opened the host paths, and opens them again at a later start: with the rights that they have then."""

    spec: ContainerSpec
    phase: ContainerPhase
    boot_id: str
    schema: int = SCHEMA
    caller: CallerRecord | None = None
    conmon: ProcessRecord | None = None
    process: ProcessRecord | None = None
    exit_code: int | None = None
    oom_killed: bool = False
    started_at: float = 0.0
    finished_at: float = 0.0
    reason: str = ""


class Records:
    """The files. Only hostd's one loop calls this; nothing is locked."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders
        self._encoder = msgspec.json.Encoder()
        self._pods = msgspec.json.Decoder(PodRecord)
        self._containers = msgspec.json.Decoder(ContainerRecord)
        self._unsynced: dict[Path, float] = {}

    def write_pod(self, record: PodRecord) -> None:
        path = self._folders.pod_record(record.spec.id)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        self._write(path, self._encoder.encode(record))

    def write_container(self, record: ContainerRecord) -> None:
        path = self._folders.container_record(record.spec.pod, record.spec.id)
        path.parent.mkdir(mode=0o711, exist_ok=True)
        self._write(path, self._encoder.encode(record))

    def _write(self, path: Path, data: bytes) -> None:
        durable.write_atomic(path, data, sync=False)
        self._unsynced.setdefault(path, asyncio.get_running_loop().time() + _SYNC_AFTER_S)

    def forget(self, path: Path) -> None:
        """*path* is to go: it need not become durable."""
        self._unsynced.pop(path, None)

    def due(self) -> list[Path]:
        """Records that have lived long enough to be made durable."""
        now = asyncio.get_running_loop().time()
        found = [path for path, when in self._unsynced.items() if when <= now]
        for path in found:
            del self._unsynced[path]
        return found

    def read_pod(self, pod: str) -> PodRecord:
        """The record of *pod*; raises :class:`RecordCorrupt`."""
        path = self._folders.pod_record(pod)
        try:
            record = self._pods.decode(durable.read_bounded(path, MAX_RECORD_BYTES))
        except (OSError, msgspec.MsgspecError, CasemateError, UnicodeDecodeError) as error:
            raise RecordCorrupt(f"{path}: {error}", path=str(path)) from error
        if record.spec.id != pod or record.schema != SCHEMA:
            raise RecordCorrupt(f"{path}: is of pod {record.spec.id[:12]}, schema {record.schema}", path=str(path))
        return record

    def read_container(self, pod: str, container: str) -> ContainerRecord:
        """The record of *container*; raises :class:`RecordCorrupt`."""
        path = self._folders.container_record(pod, container)
        try:
            record = self._containers.decode(durable.read_bounded(path, MAX_RECORD_BYTES))
        except (OSError, msgspec.MsgspecError, CasemateError, UnicodeDecodeError) as error:
            raise RecordCorrupt(f"{path}: {error}", path=str(path)) from error
        if record.spec.id != container or record.spec.pod != pod or record.schema != SCHEMA:
            raise RecordCorrupt(f"{path}: is of container {record.spec.id[:12]}", path=str(path))
        return record

    def pods(self) -> Iterator[str]:
        """The ids that have a folder, record or not."""
        yield from folder_names(self._folders.pods)

    def containers(self, pod: str) -> Iterator[str]:
        """The containers' ids that have a folder in *pod*'s."""
        yield from folder_names(self._folders.pod(pod))


def folder_names(folder: Path) -> list[str]:
    """Names in *folder* that are whole ids, in order."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        return sorted(one.name for one in entries if len(one.name) == 64 and one.is_dir(follow_symlinks=False))
    return []


def sync(paths: list[Path]) -> None:
    """Make *paths* and their names durable; those that went meanwhile are passed over. Runs in a thread."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(number)
            finally:
                os.close(number)
            durable.sync_folder(path.parent)
            durable.sync_folder(path.parent.parent)


def remove_small(folder: Path) -> None:
    """Remove a folder of a few files of ours, without a mount in it; or a file."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.unlink()
