"""The driver of the level ``microvm``: casemate-vm's command line and its bundles. Pure but for the probe.

It is not registered among hostd's levels yet (docs/reference/levels.md says what is missing): nobody can ask for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from casemate.host import programs
from casemate.isolation import oci
from casemate.isolation.bundle import BundleInput, BundlePlan
from casemate.isolation.level import Features, Runtime
from casemate.isolation.microvm import bundles
from casemate.isolation.microvm.errors import QemuMissing
from casemate.isolation.microvm.tap import GuestNetwork
from casemate.spec.errors import ProgramFailed
from casemate.spec.workload import Level, PodSpec

QEMU = "qemu-system-x86_64"
#: The first that restores what we save: older ones have no microvm machine with ACPI, or none that migrates.
LEAST_QEMU = (7, 2)
_VERSION = re.compile(r"version (\d+)\.(\d+)")
#: Of the host's kernel alone: the guest has its own.
_HOST_ONLY = ("uidMappings", "gidMappings", "rootfsPropagation")


class MicrovmLevel:
    """Containers in a virtual machine of their pod's own.

    *layers*: the folder with the layers' files; *network*: the pod's tap and the guest's end of it, None for none.
    """

    name: Level = "microvm"
    features = Features(processes="runtime", state_is_files=False)

    def __init__(
        self, runtime: Runtime, summary: str, layers: Path, network: Callable[[PodSpec], GuestNetwork | None]
    ) -> None:
        self.runtime = runtime
        self.summary = summary
        self._layers = layers
        self._network = network

    def bundle(self, given: BundleInput) -> BundlePlan:
        plan = oci.configuration(given)
        linux = plan.config["linux"]
        for key in _HOST_ONLY:
            linux.pop(key, None)
        # The guest has no user but its own, and no network namespace but the machine's.
        linux["namespaces"] = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "cgroup")]
        resources = given.container.resources
        if resources.pids is not None and resources.pids > 0:
            linux["resources"]["pids"] = {"limit": resources.pids}
        annotations = plan.config.setdefault("annotations", {})
        # Lowest first in the specification of a container, uppermost first in an overlay's options.
        files = [str(self._layers / f"{layer}.sqfs") for layer in reversed(given.container.layers)]
        annotations[bundles.LAYERS] = ":".join(files)
        annotations[bundles.POD] = given.pod.id
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
        return plan


def runtime(shim: str, run: Path) -> Runtime:
    """casemate-vm against the service below *run*; a container's folder there is its machine's."""
    return Runtime(shim, str(run / "vm"), ("--socket", str(run / "vm.sock")))


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
