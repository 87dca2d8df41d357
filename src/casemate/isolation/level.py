"""The one Protocol behind which every isolation level stands, and the register of those that work here.

A driver decides nothing and does nothing: it turns values into values (a bundle, a command line). hostd applies
them, always in the same way: a bundle on disk, conmon in front, the OCI runtime's command line behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from casemate.isolation.bundle import BundleInput, BundlePlan
from casemate.spec.errors import Conflict, HostLacks, InvalidArgument
from casemate.spec.workload import ContainerSpec, Level, PodSpec, Resources


class LevelUnavailable(HostLacks):
    code = "isolation.level_unavailable"
    title = "The host cannot run this isolation level"
    remedy = "`casemate system doctor` says what is missing; or choose another --isolation."


class LevelLacks(InvalidArgument):
    code = "isolation.level_lacks"
    title = "This isolation level does not have what was asked for"
    remedy = "docs/reference/levels.md lists what each level has; choose another --isolation."


class SandboxPaused(Conflict):
    code = "isolation.paused"
    title = "What is paused does not say what runs in it"
    remedy = "casemate unpause CONTAINER"


@dataclass(frozen=True, slots=True)
class Runtime:
    """An OCI runtime's command line: *program* (a path), its global *arguments*, and *root*, its state folder.

    *version* is its own word; *hide_unified* asks for a mount namespace without /sys/fs/cgroup/unified,
    *cover_at_start* for one in which these folders are empty, for ``start`` alone.
    """

    program: str
    root: str
    arguments: tuple[str, ...] = ()
    version: str = ""
    hide_unified: bool = False
    cover_at_start: tuple[str, ...] = ()
    #: It gives a process its standard files, the host's /dev/null among them, which must be kept from that.
    gives_files: bool = True
    #: What a container leaves below *root*, with its id for ``{}``, and its sandbox's for a second one; of interest
    #: where ``Features.state_is_files``.
    state: tuple[str, ...] = ("{}",)
    #: What stands before the global arguments: *program* is then one that starts the runtime.
    before: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.program.rpartition("/")[2]

    @property
    def global_arguments(self) -> tuple[str, ...]:
        return (*self.before, "--root", self.root, *self.arguments)

    def state_files(self, container: str, sandbox: str = "") -> tuple[str, ...]:
        """What *container* leaves; *sandbox*: the one that it joined, where that is not its own."""
        return tuple(f"{self.root}/{one.format(container, sandbox or container)}" for one in self.state)

    def start(self, container: str) -> tuple[str, ...]:
        return (self.program, *self.global_arguments, "start", container)

    def kill(self, container: str, signal: int, *, every: bool = False) -> tuple[str, ...]:
        flags = ("--all",) if every else ()
        return (self.program, *self.global_arguments, "kill", *flags, container, str(signal))

    def pause(self, container: str) -> tuple[str, ...]:
        return (self.program, *self.global_arguments, "pause", container)

    def resume(self, container: str) -> tuple[str, ...]:
        return (self.program, *self.global_arguments, "resume", container)

    def delete(self, container: str) -> tuple[str, ...]:
        return (self.program, *self.global_arguments, "delete", "--force", container)


@dataclass(frozen=True, slots=True)
class Features:
    """How a level is driven once a container exists.

    *processes* ``host``: its processes are the host's own: signals, freezing and listing go straight to the
    kernel (a runtime started for each costs 5 to 10 ms). ``runtime``: they go through the command line.
    *state_is_files*: a stopped container leaves nothing but files below ``root/<id>``, removed without the runtime.
    *namespaces*: the pod's namespaces are the host kernel's. *rootfs*: the root is mounted on the host, else the
    runtime takes the layers. *network*: the pod's end of its link is a veth in a namespace, or a tap.
    *takes_address*: the sandbox takes the address off the veth and asks by ARP itself: the address must be given
    back before each start, and questions for the gateway be answered. *shares_sandbox*: which containers of a pod
    run at a time: ``all``; ``made``, those of a pod that was made for several; ``none``, one alone. *process_tasks*:
    what the host runs at most for one process, and *own_tasks* for the sandbox itself (see :meth:`tasks`). *cgroup*:
    the container's cgroup on the host holds everything of it, so limits go there; *shared_cgroup*: not so in a pod
    that was made for several, whose sandbox is in a cgroup of its own (see :meth:`in_cgroup`).
    """

    processes: Literal["host", "runtime"]
    state_is_files: bool
    namespaces: bool = True
    rootfs: bool = True
    network: Literal["veth", "tap"] = "veth"
    takes_address: bool = False
    shares_sandbox: Literal["all", "made", "none"] = "all"
    process_tasks: int = 1
    own_tasks: int = 0
    cgroup: bool = True
    shared_cgroup: bool = False

    @property
    def pids_limit(self) -> bool:
        """Whether the cgroup counts a container's own processes alone, so that a limit means what the user meant."""
        return self.process_tasks == 1 and not self.own_tasks

    def tasks(self, pids: int | None) -> int | None:
        """The limit on tasks of the host for a limit of *pids* processes; None leaves it, 0 takes it away."""
        if pids is None or pids <= 0:
            return None if pids is None else 0
        return self.own_tasks + self.process_tasks * pids

    def in_cgroup(self, pod: PodSpec, container: ContainerSpec) -> bool:
        """Whether the cgroup of *container* on the host holds all of it."""
        return self.cgroup and not (self.shared_cgroup and not is_lone(pod, container))


def is_lone(pod: PodSpec, container: ContainerSpec | None) -> bool:
    """Whether *pod* was made for *container* alone (casemated names it so): nothing joins it."""
    return container is not None and pod.name == f"pod-{container.id[:12]}"


@dataclass(frozen=True, slots=True)
class InnerProcess:
    """A process behind a wall, as its own kernel counts it; times in nanoseconds and seconds since the epoch."""

    pid: int
    ppid: int
    uid: int
    cpu_ns: int
    started_at: float
    tty: str
    command: str


@dataclass(frozen=True, slots=True)
class InnerUsage:
    """What a container uses: *memory_bytes* as the host pays for it, the limits as they hold, io inside."""

    cpu_ns: int
    memory_bytes: int
    memory_limit_bytes: int
    pids: int
    pids_limit: int
    read_bytes: int
    write_bytes: int


class Inside(Protocol):
    """What hostd asks of a level whose processes are not the host's own (``Features.processes`` is ``runtime``).

    Signals, pause and deletion go through the runtime's command line; what has no command of the OCI's stands here.
    """

    def knows(self, container: str) -> bool:
        """Whether the runtime still has something of *container* that lives, so that it must be deleted."""
        ...

    def is_paused(self, container: str) -> bool: ...

    async def pausing(self, container: str) -> None:
        """All of *container* is about to be stopped from outside: what nobody answers then is asked now."""
        ...

    def ending(self, container: str) -> str:
        """Why *container* ended, where its sandbox ended with it and left word; empty for an end of its own."""
        ...

    def was_oom(self, container: str) -> bool:
        """Whether a process of *container* was killed for want of memory, while the runtime still has it."""
        ...

    async def reserve(self, pod: PodSpec, container: ContainerSpec | None, interface: str) -> str:
        """The interface of a sandbox that waits and fits, which the caller renames to *interface*; empty for none."""
        ...

    async def enter(self, given: BundleInput) -> None:
        """Make the sandbox that a container is to join, where it does not come with its first container."""
        ...

    async def leave(self, pod: PodSpec, group: str) -> None:
        """No container of *pod* runs any more: end what :meth:`enter` made. *group*: the pod's cgroup."""
        ...

    async def created(self, container: ContainerSpec) -> None:
        """What is left to do between the runtime's create and its start."""
        ...

    async def prepare(self, pod: PodSpec, container: ContainerSpec) -> list[str]:
        """What must be there before the runtime is started and takes longer than a start may; warnings."""
        ...

    def files(self, container: str) -> AbstractContextManager[tuple[int, int] | None]:
        """Descriptors of a mount namespace of the host that shows what *container* sees, and of its root there."""
        ...

    async def processes(self, container: str) -> list[InnerProcess]: ...

    async def usage(self, container: str) -> InnerUsage: ...

    async def update(self, container: str, resources: Resources) -> list[str]:
        """Live limits of *container*; warnings for what cannot be changed live."""
        ...


class IsolationLevel(Protocol):
    """One level on this host."""

    name: Level
    features: Features
    runtime: Runtime
    #: One line for hello and doctor: which runtime, its version, why this one.
    summary: str
    #: How hostd asks what the host's kernel does not know; None where ``features.processes`` is ``host``.
    inside: Inside | None

    def bundle(self, given: BundleInput) -> BundlePlan:
        """The OCI bundle of a container. Pure; raises :class:`~casemate.spec.errors.InvalidArgument`."""
        ...


class Levels:
    """The levels of this host: those that work, and for the others the reason."""

    __slots__ = ("_drivers", "_missing")

    def __init__(self, drivers: Mapping[Level, IsolationLevel], missing: Mapping[Level, str]) -> None:
        self._drivers = dict(drivers)
        self._missing = dict(missing)

    def add(self, driver: IsolationLevel) -> None:
        """*driver* works from now on."""
        self._drivers[driver.name] = driver
        self._missing.pop(driver.name, None)

    def lack(self, level: Level, why: str) -> None:
        """*level* cannot be used (any more)."""
        self._drivers.pop(level, None)
        self._missing[level] = why

    def get(self, level: Level) -> IsolationLevel | None:
        """The driver of *level*, if it works."""
        return self._drivers.get(level)

    def find(self, level: Level) -> IsolationLevel:
        """The driver of *level*; raises :class:`LevelUnavailable` with the reason."""
        driver = self._drivers.get(level)
        if driver is None:
            why = self._missing.get(level, "this version of Casemate has no driver for it")
            raise LevelUnavailable(f"isolation level {level}: {why}", level=level)
        return driver

    def describe(self) -> dict[str, str]:
        """Level to runtime, or to why it cannot be used."""
        found = {str(level): driver.summary for level, driver in self._drivers.items()}
        return found | {str(level): f"unavailable: {why}" for level, why in self._missing.items()}
