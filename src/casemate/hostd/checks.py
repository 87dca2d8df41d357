"""Every argument of an operation against hostd's own invariants: nothing is believed because casemated says so.

Types bound each field alone (:mod:`casemate.spec.workload`); here stands what takes two fields, the host's state, or
the caller's grants. Pure: the state and the caller are arguments.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from casemate.hostd.errors import AddressTaken, WrongState
from casemate.hostd.grants import Caller
from casemate.hostd.state import Pod, State
from casemate.network import names, plan
from casemate.spec import capabilities, targets
from casemate.spec.errors import Conflict, InvalidArgument
from casemate.spec.ids import check_hostname
from casemate.spec.settings import Settings
from casemate.spec.workload import BindMount, ContainerSpec, NetworkSpec, PodSpec, Resources
from casemate.storage import rootfs

#: cpu.cfs_quota_us has a least value of 1 ms in a period of 100 ms.
_LEAST_CPU_MILLIS = 10
#: Processors that this host may ever have; a fact of the host that does not change while it runs.
_CPUS = os.sysconf("SC_NPROCESSORS_CONF")
#: Below, the runtime itself does not come up (Docker's bound too).
_LEAST_MEMORY_BYTES = 6 << 20


def check_pod(spec: PodSpec, caller: Caller, state: State, settings: Settings) -> None:
    """Raises what is wrong with a new pod."""
    if spec.id in state.pods:
        raise Conflict(f"pod {spec.id[:12]} exists", pod=spec.id)
    check_hostname(spec.hostname)
    check_resources(spec.resources)
    if spec.host_pid or spec.host_ipc or spec.network.mode == "host":
        caller.need("host_namespaces", "sharing a namespace of the host")
    if spec.level == "microvm" and (spec.host_pid or spec.host_ipc or spec.network.mode == "host"):
        raise InvalidArgument(
            "a micro-VM has a kernel of its own, and so no namespace of the host's to share",
            remedy="Leave --pid host, --ipc host and --network host away, or take --isolation namespace.",
        )
    if spec.template is not None and spec.level != "microvm":
        raise InvalidArgument(f"a template is of micro-VMs, and the pod's level is {spec.level}")
    check_network(spec.network, state, settings)
    check_names(spec)


def check_network(network: NetworkSpec, state: State, settings: Settings) -> None:
    """The address is in the pool and nobody's; what has no interface has no address and no ports."""
    if network.mode != "pod":
        if network.address or network.ports or network.kept:
            raise InvalidArgument(f"network mode {network.mode} has neither an address nor published or kept ports")
        return
    plan.check_address(network.address, settings.text("network.pool"))
    if len({one.port for one in network.kept}) != len(network.kept):
        raise InvalidArgument("the same port is kept twice")
    if network.address in state.addresses:
        raise AddressTaken(f"address {network.address} is pod {state.addresses[network.address][:12]}'s")


def check_names(spec: PodSpec) -> None:
    """What is written into /etc/hosts and /etc/resolv.conf: checked before anything is made."""
    network = spec.network
    names.hosts_file(spec.hostname, network.address or None, [(one.address, one.name) for one in network.hosts])
    names.resolv_file(network.dns, network.dns_search, network.dns_options)


def check_resources(resources: Resources) -> None:
    memory, swap = resources.memory_bytes, resources.memory_swap_bytes
    if memory is not None and 0 < memory < _LEAST_MEMORY_BYTES:
        raise InvalidArgument(f"memory limit of {memory} bytes; the least is {_LEAST_MEMORY_BYTES}")
    if swap is not None and swap > 0 and (memory is None or swap < memory):
        raise InvalidArgument(
            f"memory and swap of {swap} bytes is below the memory limit ({memory}), or that is missing"
        )
    reservation = resources.memory_reservation_bytes
    if memory and reservation and reservation > memory:
        raise InvalidArgument(f"memory reservation {reservation} is above the memory limit {memory}")
    if resources.cpu_millis is not None and 0 < resources.cpu_millis < _LEAST_CPU_MILLIS:
        raise InvalidArgument(f"{resources.cpu_millis} thousandths of a cpu; the least is {_LEAST_CPU_MILLIS}")
    if resources.cpuset is not None:
        check_cpuset(resources.cpuset)


def check_cpuset(text: str, cpus: int = _CPUS) -> None:
    """A list of numbers and ranges: the kernel says no more than EINVAL of a bad one."""
    for part in text.split(","):
        low, dash, high = part.partition("-")
        good = low.isdigit() and (not dash or (high.isdigit() and int(low) <= int(high)))
        if not good or int(high or low) > 8191:
            raise InvalidArgument(f"cpuset {text[:60]!r}: {part!r} is neither a cpu nor a range of cpus")
        if int(high or low) >= cpus:
            raise InvalidArgument(f"cpuset {text[:60]!r}: this host has the cpus 0 to {cpus - 1}")


def check_container(
    spec: ContainerSpec, pod: PodSpec, caller: Caller, state: State, has_layer: Callable[[str], bool]
) -> None:
    """Raises what is wrong with a new container of *pod*; its host paths are opened later, as the caller."""
    if spec.id in state.containers or spec.id in state.pods.get(pod.id, _NO_POD).containers:
        raise Conflict(f"container {spec.id[:12]} exists", container=spec.id)
    if spec.pod != pod.id:
        raise InvalidArgument(f"container {spec.id[:12]} is of pod {spec.pod[:12]}, not {pod.id[:12]}")
    if spec.project != pod.project:
        raise InvalidArgument(f"container of project {spec.project} in a pod of project {pod.project}")
    for layer in spec.layers:
        if not has_layer(layer):
            raise InvalidArgument(f"layer {layer} is not on this host", layer=layer)
    if spec.writable_bytes and spec.writable_bytes < rootfs.MIN_WRITABLE_BYTES:
        raise InvalidArgument(
            f"a writable layer of {spec.writable_bytes} bytes; the least is {rootfs.MIN_WRITABLE_BYTES}"
        )
    check_resources(spec.resources)
    check_security(spec, caller)
    check_mounts(spec, caller)


def check_security(spec: ContainerSpec, caller: Caller) -> None:
    beyond = capabilities.beyond_default(spec.security.capabilities)
    if beyond:
        caller.need("capabilities", f"adding {', '.join(beyond)}")
    if spec.security.privileged:
        caller.need("privileged", "a privileged container")
    if spec.security.seccomp == "unconfined":
        caller.need("privileged", "a container without seccomp")
    if spec.devices:
        caller.need("devices", f"passing {spec.devices[0].source}")
    for device in spec.devices:
        for path in (device.source, device.target):
            parts = path.split("/")
            if not path.startswith("/dev/") or ".." in parts or path == "/dev/":
                raise InvalidArgument(f"device path {path[:100]!r} is not below /dev")


def check_mounts(spec: ContainerSpec, caller: Caller) -> None:
    seen: set[str] = set()
    for mount in spec.mounts:
        target = targets.check_target(mount.target)
        if target in seen:
            raise InvalidArgument(f"two mounts at {target[:100]!r}")
        seen.add(target)
        if isinstance(mount, BindMount):
            caller.need("host_paths", f"binding {mount.source[:200]!r}")
            if ".." in mount.source.split("/"):
                raise InvalidArgument(f"host path {mount.source[:100]!r} holds '..'")


def check_free_of_containers(pod: Pod) -> None:
    """For removing a pod without force."""
    if pod.containers:
        names_of = ", ".join(one.record.spec.name for one in list(pod.containers.values())[:3])
        raise WrongState(f"pod {pod.record.spec.name} still has containers: {names_of}", pod=pod.id)


class _NoPod:
    containers: dict[str, object] = {}  # noqa: RUF012 - never changed


_NO_POD = _NoPod()
