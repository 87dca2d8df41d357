"""The one Protocol behind which every isolation level stands, and the register of those that work here.

A driver decides nothing and does nothing: it turns values into values (a bundle, a command line). hostd applies
them, always in the same way: a bundle on disk, conmon in front, the OCI runtime's command line behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from casemate.isolation.bundle import BundleInput, BundlePlan
from casemate.spec.errors import HostLacks
from casemate.spec.workload import Level


class LevelUnavailable(HostLacks):
    code = "isolation.level_unavailable"
    title = "The host cannot run this isolation level"
    remedy = "`casemate system doctor` says what is missing; or choose another --isolation."


@dataclass(frozen=True, slots=True)
class Runtime:
    """An OCI runtime's command line: *program* (a path), its global *arguments*, and *root*, its state folder.

    *version* is its own word; *hide_unified* asks for a mount namespace without /sys/fs/cgroup/unified.
    """

    program: str
    root: str
    arguments: tuple[str, ...] = ()
    version: str = ""
    hide_unified: bool = False

    @property
    def name(self) -> str:
        return self.program.rpartition("/")[2]

    @property
    def global_arguments(self) -> tuple[str, ...]:
        return ("--root", self.root, *self.arguments)

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
    """

    processes: Literal["host", "runtime"]
    state_is_files: bool


class IsolationLevel(Protocol):
    """One level on this host."""

    name: Level
    features: Features
    runtime: Runtime
    #: One line for hello and doctor: which runtime, its version, why this one.
    summary: str

    def bundle(self, given: BundleInput) -> BundlePlan:
        """The OCI bundle of a container. Pure; raises :class:`~casemate.spec.errors.InvalidArgument`."""
        ...


class Levels:
    """The levels of this host: those that work, and for the others the reason."""

    __slots__ = ("_drivers", "_missing")

    def __init__(self, drivers: Mapping[Level, IsolationLevel], missing: Mapping[Level, str]) -> None:
        self._drivers = dict(drivers)
        self._missing = dict(missing)

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
