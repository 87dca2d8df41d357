"""The driver of the level ``microvm``: casemate-vm's command line and its bundles. Pure but for the probe."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from casemate.host import programs
from casemate.isolation import oci
from casemate.isolation.bundle import BundleInput, BundlePlan
from casemate.isolation.level import Features, Inside, LevelLacks, Runtime, is_lone
from casemate.isolation.microvm import bundles
from casemate.isolation.microvm import origin as origins
from casemate.isolation.microvm.errors import MemoryUnfit, QemuMissing
from casemate.isolation.microvm.tap import GuestNetwork
from casemate.spec.errors import ProgramFailed
from casemate.spec.workload import ContainerSpec, Level, PodSpec, Resources, furthest

QEMU = "qemu-system-x86_64"
#: The first that restores what we save: older ones have no microvm machine with ACPI, or none that migrates.
LEAST_QEMU = (7, 2)
_VERSION = re.compile(r"version (\d+)\.(\d+)")
#: Of the host's kernel alone. The map of users stays: what the guest writes to a volume is owned through it.
_HOST_ONLY = ("rootfsPropagation",)
#: fs.nr_open of a guest's kernel: its root cannot ask for more either.
_HARD_LIMITS = {"nofile": 1 << 20}
_LEAST_ROOM_BYTES = 32 << 20
EMULATED = "microvm: no KVM that boots a guest; this machine is emulated (TCG): slower, and no hardware wall"


class MicrovmLevel:
    """Containers in a virtual machine of their pod's own.

    *layers*: the folder with the layers' files; *network*: the pod's tap and the guest's end of it, None for none.
    *memory_bytes*: of a machine whose pod and containers have no limit. *cgroups*: the folders of the cgroup of a
    pod's machine on the host; *most_bytes*: the host's memory (0: not asked).
    """

    name: Level = "microvm"
    features = Features(
        processes="runtime", state_is_files=False, namespaces=False, rootfs=False, network="tap", cgroup=False
    )

    def __init__(
        self,
        runtime: Runtime,
        summary: str,
        layers: Path,
        network: Callable[[PodSpec], GuestNetwork | None],
        *,
        inside: Inside | None = None,
        memory_bytes: int = bundles.LEAST_MEMORY_BYTES,
        emulated: bool = False,
        cgroups: Callable[[PodSpec], Sequence[str]] = lambda _pod: (),
        template: origins.Kind = "shared",
        most_bytes: int = 0,
    ) -> None:
        self.runtime = runtime
        self.summary = summary
        self.inside = inside
        self._layers = layers
        self._network = network
        self._memory_bytes = memory_bytes
        self._emulated = emulated
        self._cgroups = cgroups
        self._template: origins.Kind = template
        self._most_bytes = most_bytes

    def memory_bytes(self, pod: PodSpec, container: ContainerSpec | None) -> int:
        """The machine's memory: room for the limit of the pod, else of the container that it is made for."""
        limit = pod.resources.memory_bytes or (container.resources.memory_bytes if container else 0) or 0
        wanted = limit + bundles.guest_own_bytes(limit)
        if self._most_bytes and wanted > self._most_bytes:
            raise MemoryUnfit(
                f"a memory limit of {limit} bytes takes a machine of {wanted}, and the host has {self._most_bytes}",
                memory_bytes=limit,
            )
        return bundles.machine_memory(limit, self._memory_bytes)

    def origin(self, pod: PodSpec) -> origins.Origin:
        """What a machine of *pod* begins as."""
        return origins.of(furthest(self._template, pod.template), pod.project)

    def bundle(self, given: BundleInput) -> BundlePlan:
        if given.container.devices:
            name = given.container.name
            raise LevelLacks(f"container {name}: devices of the host (--device) cannot be had at level microvm")
        # The guest has namespaces, capabilities and limits of its own kernel: none is the host's to give.
        own = dict.fromkeys(("user", "network", "ipc", "uts"), "")
        facts = dataclasses.replace(given.facts, bounding=~0, hard_limits=_HARD_LIMITS, oom_score_adj=-1000)
        given = dataclasses.replace(given, sandbox=dataclasses.replace(given.sandbox, namespaces=own), facts=facts)
        plan = oci.configuration(given)
        linux = plan.config["linux"]
        for key in _HOST_ONLY:
            linux.pop(key, None)
        # The guest has no user but its own, and no network namespace but the machine's.
        linux["namespaces"] = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "cgroup")]
        size = self.memory_bytes(given.pod, given.container)
        linux["resources"] |= resources(given.container.resources, size)
        annotations = plan.config.setdefault("annotations", {})
        # Lowest first in the specification of a container, uppermost first in an overlay's options; each once.
        layers = dict.fromkeys(reversed(given.container.layers))
        annotations[bundles.LAYERS] = ":".join(str(self._layers / f"{layer}.sqfs") for layer in layers)
        annotations[bundles.POD] = given.pod.id
        annotations[bundles.TEMPLATE] = self.origin(given.pod).text()
        annotations[bundles.MEMORY] = str(self.memory_bytes(given.pod, given.container))
        if not is_lone(given.pod, given.container):
            annotations[bundles.MORE] = "1"
        if given.writable:
            on_disk = given.writable.endswith(bundles.SCRATCH_SUFFIX)
            annotations[bundles.SCRATCH if on_disk else bundles.WRITABLE] = given.writable
        if given.container.writable_bytes and bundles.SCRATCH not in annotations:
            annotations[bundles.UPPER] = str(given.container.writable_bytes)
        if limits := pod_limits(given.pod.resources):
            annotations[bundles.POD_LIMITS] = ",".join(f"{name}={value}" for name, value in limits)
        if folders := self._cgroups(given.pod):
            annotations[bundles.CGROUPS] = ":".join(folders)
        network = self._network(given.pod)
        if network is not None:
            annotations[bundles.NETWORK] = json.dumps(
                {
                    "tap": network.tap,
                    "address": str(network.address),
                    "gateway": str(network.gateway),
                    "mac": network.mac,
                    "mtu": network.mtu_bytes,
                }
            )
        warnings = (*plan.warnings, EMULATED) if self._emulated else plan.warnings
        return BundlePlan(plan.config, warnings)


def pod_limits(wanted: Resources) -> list[tuple[str, str]]:
    """The limits of a whole pod as files of cgroup v2 in its guest. Swap: a guest has none."""
    found = []
    if wanted.memory_bytes:
        found.append(("memory.max", str(wanted.memory_bytes)))
    if wanted.memory_reservation_bytes:
        found.append(("memory.low", str(wanted.memory_reservation_bytes)))
    if wanted.pids is not None and wanted.pids > 0:
        found.append(("pids.max", str(wanted.pids)))
    if wanted.cpu_millis:
        found.append(("cpu.max", f"{wanted.cpu_millis * 100} 100000"))
    return found


def resources(wanted: Resources, machine_bytes: int) -> dict[str, Any]:
    """The OCI resources of *wanted* that the agent sets on the container's cgroup in a guest of *machine_bytes*.

    There is a limit in any case: a guest that runs out of memory as a whole reads its programs' pages again and again,
    and does not come to kill anybody (under emulation for minutes).
    """
    found: dict[str, Any] = {}
    if wanted.pids is not None and wanted.pids > 0:
        found["pids"] = {"limit": wanted.pids}
    room = max(machine_bytes - bundles.GUEST_OVERHEAD_BYTES - machine_bytes // 64, _LEAST_ROOM_BYTES)
    # An update may have gone beyond the machine that the first start made.
    found["memory"] = {"limit": wanted.memory_bytes or room}
    if wanted.memory_reservation_bytes:
        found["memory"]["reservation"] = wanted.memory_reservation_bytes
    cpu: dict[str, Any] = {"quota": wanted.cpu_millis * 100, "period": 100_000} if wanted.cpu_millis else {}
    if wanted.cpu_shares is not None:
        cpu["shares"] = wanted.cpu_shares
    if wanted.cpuset:
        # Held by the host's cgroup; here for who would use more processors (:mod:`making`).
        cpu["cpus"] = wanted.cpuset
    if cpu:
        found["cpu"] = cpu
    return found


def runtime(shim: str, run: Path) -> Runtime:
    """casemate-vm against the service below *run*; a container's folder there is its machine's."""
    return Runtime(shim, str(run / "vm"), ("--socket", str(run / "vm.sock")), gives_files=False)


async def qemu_version(program: str = QEMU) -> str:
    """QEMU's version; :class:`QemuMissing` when there is none, or it is too old."""
    try:
        done = await programs.run([program, "--version"], timeout_s=10)
    except ProgramFailed as error:
        raise QemuMissing(str(error)) from error
    except programs.ProgramMissing as error:
        raise QemuMissing(f"{program} is not installed") from error
    return read_version(done.stdout.decode("utf-8", "replace"))


def read_version(text: str) -> str:
    """The whole first line; :class:`QemuMissing` below :data:`LEAST_QEMU`."""
    found = _VERSION.search(text)
    if found is None or (int(found[1]), int(found[2])) < LEAST_QEMU:
        raise QemuMissing(f"QEMU says {text[:80]!r}; needed is 7.2 or newer")
    return text.splitlines()[0]
