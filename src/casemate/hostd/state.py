"""What hostd knows while it runs: the records, and what hangs on them only in memory (watches, locks)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import msgspec

from casemate.hostd.errors import ContainerMissing, PodMissing, RangesExhausted
from casemate.hostd.inputs import Held
from casemate.hostd.records import ContainerRecord, PodRecord


@dataclass(slots=True)
class Exec:
    """One exec that runs: its conmon, and the process itself (0 while it is being made)."""

    exec_id: str
    container: str
    conmon_pid: int = 0
    pid: int = 0
    start_ticks: int = 0
    held: list[Held] = field(default_factory=list)


@dataclass(slots=True)
class Container:
    """A container's record, and its execs."""

    record: ContainerRecord
    execs: dict[str, Exec] = field(default_factory=dict)
    oom_told: bool = False
    #: The file that ``log.0`` names; 0 before the first look.
    log_inode: int = 0
    #: Connections that feed its input.
    held: list[Held] = field(default_factory=list)
    #: Copies, exports and comparisons under way; and whether the root was mounted for them alone.
    readers: int = 0
    lent: bool = False
    #: Set when nothing of it runs.
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def id(self) -> str:
        return self.record.spec.id


@dataclass(slots=True)
class Pod:
    """A pod's record, its containers by id, and the lock that every change of it takes."""

    record: PodRecord
    containers: dict[str, Container] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    #: Whether its ports may be published; True also where nobody knows, after a start of hostd.
    published: bool = True

    @property
    def id(self) -> str:
        return self.record.spec.id


class State:
    """Pods by id, containers by id, addresses and ranges in use: each looked up in constant time."""

    def __init__(self) -> None:
        self.pods: dict[str, Pod] = {}
        self.containers: dict[str, Container] = {}
        self.addresses: dict[str, str] = {}
        #: First id to the pods that have the range: one, but for the range that is shared where owners are not mapped.
        self.ranges: dict[int, set[str]] = {}
        self.volume_users: dict[tuple[str, str], set[str]] = {}
        self._next_range = 0

    def pod(self, pod: str) -> Pod:
        """Raises :class:`PodMissing`."""
        found = self.pods.get(pod)
        if found is None:
            raise PodMissing(f"pod {pod[:12]} is not on this host", pod=pod)
        return found

    def container(self, container: str) -> tuple[Pod, Container]:
        """Raises :class:`ContainerMissing`."""
        found = self.containers.get(container)
        if found is None:
            raise ContainerMissing(f"container {container[:12]} is not on this host", container=container)
        return self.pods[found.record.spec.pod], found

    def add_pod(self, record: PodRecord) -> Pod:
        pod = Pod(record)
        self.pods[pod.id] = pod
        self.ranges.setdefault(record.first_id, set()).add(pod.id)
        if record.spec.network.address:
            self.addresses[record.spec.network.address] = pod.id
        return pod

    def remove_pod(self, pod: Pod) -> None:
        self.pods.pop(pod.id, None)
        sharing = self.ranges.get(pod.record.first_id, set())
        sharing.discard(pod.id)
        if not sharing:
            self.ranges.pop(pod.record.first_id, None)
        if self.addresses.get(pod.record.spec.network.address) == pod.id:
            del self.addresses[pod.record.spec.network.address]

    def add_container(self, pod: Pod, record: ContainerRecord) -> Container:
        container = Container(record)
        pod.containers[container.id] = container
        self.containers[container.id] = container
        for mount in record.spec.mounts:
            if mount.__struct_config__.tag == "volume":
                key = (record.spec.project, mount.volume)  # type: ignore[union-attr]
                self.volume_users.setdefault(key, set()).add(container.id)
        return container

    def remove_container(self, pod: Pod, container: Container) -> None:
        pod.containers.pop(container.id, None)
        self.containers.pop(container.id, None)
        for key, users in list(self.volume_users.items()):
            users.discard(container.id)
            if not users:
                del self.volume_users[key]

    def free_range(self, first: int, count: int) -> int:
        """The first id of a range that no pod has; the one after the last given, so that none returns at once.

        Raises :class:`RangesExhausted`.
        """
        for step in range(count):
            index = (self._next_range + step) % count
            if first + index * 65_536 not in self.ranges:
                self._next_range = index + 1
                return first + index * 65_536
        raise RangesExhausted(f"all {count} ranges of user ids are taken", ranges=count)


def changed(container: Container, **values: object) -> ContainerRecord:
    """The container's record with *values*, put in its place in memory; the caller writes it."""
    container.record = msgspec.structs.replace(container.record, **values)
    return container.record
