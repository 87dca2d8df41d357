"""What hostd asks of a machine beside the OCI's commands: its figures, its processes, its limits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from pathlib import Path

from casemate.isolation.bundle import BundleInput
from casemate.isolation.level import InnerProcess, InnerUsage, is_lone
from casemate.isolation.microvm import config, frames, guestrows, making
from casemate.isolation.microvm.driver import MicrovmLevel
from casemate.isolation.microvm.errors import MachineMissing
from casemate.isolation.microvm.frames import Field, Kind, Tag
from casemate.isolation.microvm.machine import Machine
from casemate.isolation.microvm.machines import Machines
from casemate.spec.errors import CasemateError
from casemate.spec.workload import ContainerSpec, PodSpec, Resources

_STATS_TIMEOUT_S = 5.0


class MicrovmInside:
    """The machines as :class:`casemate.isolation.level.Inside`."""

    def __init__(
        self, machines: Machines, level: Callable[[], MicrovmLevel], interface: Callable[[PodSpec], str] = lambda _: ""
    ) -> None:
        self._machines = machines
        self._level = level
        self._interface = interface

    def knows(self, container: str) -> bool:
        return self._machines.find(container) is not None or self._machines.early.has(container)

    def is_paused(self, container: str) -> bool:
        machine = self._machines.find(container)
        one = machine.container(container) if machine is not None else None
        return one is not None and one.status == "paused"

    async def pausing(self, container: str) -> None:
        """Nothing: the agent goes on, and answers."""

    def ending(self, container: str) -> str:  # noqa: ARG002 - of the Protocol
        """Nothing: the machines of the host say it themselves, also when this level is lost."""
        return ""

    def was_oom(self, container: str) -> bool:
        machine = self._machines.find(container)
        if machine is not None:
            machine.monitor.catch_up()
        one = machine.container(container) if machine is not None else None
        return one is not None and one.oom_killed

    async def reserve(self, pod: PodSpec, container: ContainerSpec | None, interface: str) -> str:
        """Nothing is waited for: no template is made or read for this."""
        origin = self._level().origin(pod)
        if origin.kind == "none" or not self._machines.pool.count() or not is_lone(pod, container):
            return ""
        template = await self._machines.template(self._level().memory_bytes(pod, container), origin)
        return self._machines.pool.reserve(template, interface) or ""

    async def enter(self, given: BundleInput) -> None:
        """The machine comes with its first container, whose bundle is there: it is begun, and what fails is said by the
        runtime's create."""
        with contextlib.suppress(CasemateError):
            making.begin(self._machines, given.container.id, Path(given.rootfs).parent)

    async def leave(self, pod: PodSpec, group: str) -> None:
        """Nothing: it ends with its last."""

    async def created(self, container: ContainerSpec) -> None:
        """Nothing."""

    async def prepare(self, pod: PodSpec, container: ContainerSpec) -> list[str]:
        """The template: made now when there is none, which takes longer than a start may. A cold boot has none."""
        origin = self._level().origin(pod)
        # Of the machine that the container had before: until it is gone, a new one cannot bear its name.
        await self._machines.taps.gone(self._interface(pod))
        if origin.kind == "none":
            return []
        template = await self._machines.template(self._level().memory_bytes(pod, container), origin)
        pool, interface = self._machines.pool, self._interface(pod)
        if not await pool.is_reserved(interface, template):
            # It has another size than this container wants, has ended while it waited, or does not answer.
            await pool.release(interface)
        return []

    @contextlib.contextmanager
    def files(self, container: str) -> Generator[tuple[int, int] | None]:  # noqa: ARG002 - of the Protocol
        """None: the guest's mounts are its own kernel's."""
        yield None

    async def processes(self, container: str) -> list[InnerProcess]:
        machine = self._find(container)
        fields = [frames.text(Tag.CONTAINER, container)]
        reply = await machine.monitor.ask(Kind.TOP, fields, timeout_s=_STATS_TIMEOUT_S)
        return guestrows.processes(reply)

    async def usage(self, container: str) -> InnerUsage:
        machine = self._find(container)
        fields = [frames.text(Tag.CONTAINER, container)]
        reply = await machine.monitor.ask(Kind.STATS, fields, timeout_s=_STATS_TIMEOUT_S)
        found = guestrows.usage(reply)
        # What the guest says of its memory is its own affair: the host pays for the pages of monitor and QEMU.
        return InnerUsage(
            cpu_ns=found.cpu_ns,
            memory_bytes=machine_bytes(machine),
            memory_limit_bytes=machine.record.memory_bytes,
            pids=found.pids,
            pids_limit=found.pids_limit,
            read_bytes=found.read_bytes,
            write_bytes=found.write_bytes,
        )

    async def update(self, container: str, resources: Resources) -> list[str]:
        """cpu, memory and pids in the guest; the machine itself keeps its size."""
        machine = self._find(container)
        fields = limit_fields(resources)
        warnings = []
        if resources.memory_bytes and resources.memory_bytes > machine.record.memory_bytes:
            warnings.append(
                f"memory: the machine has {machine.record.memory_bytes} bytes, which a start anew would change"
            )
        if fields:
            await machine.monitor.ask(Kind.LIMITS, [frames.text(Tag.CONTAINER, container), *fields])
        return warnings

    def _find(self, container: str) -> Machine:
        machine = self._machines.find(container)
        if machine is None:
            raise MachineMissing(f"container {container[:12]} is in no machine", container=container)
        return machine


def limit_fields(wanted: Resources) -> list[Field]:
    """Live limits as files of cgroup v2; 0 and -1 take a limit away."""
    found: list[tuple[str, str]] = []
    if wanted.memory_bytes is not None:
        found.append(("memory.max", str(wanted.memory_bytes or "max")))
    if wanted.cpu_millis is not None:
        found.append(("cpu.max", f"{wanted.cpu_millis * 100 or 'max'} 100000"))
    if wanted.memory_reservation_bytes is not None:
        found.append(("memory.low", str(wanted.memory_reservation_bytes)))
    if wanted.cpu_shares is not None:
        found.append(("cpu.weight", str(config.cpu_weight(wanted.cpu_shares))))
    if wanted.pids is not None:
        found.append(("pids.max", str(wanted.pids) if wanted.pids > 0 else "max"))
    return [Field(Tag.LIMIT, f"{name}\0{value}".encode()) for name, value in found]


def machine_bytes(machine: Machine) -> int:
    """Proportional set size of monitor and QEMU: what this machine costs the host. 0 when it is just ending."""
    total = 0
    for pid in filter(None, (machine.record.pid, machine.record.qemu_pid)):
        with contextlib.suppress(OSError, ValueError):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) << 10
    return total
