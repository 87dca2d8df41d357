"""Limits of a micro-VM that the host holds, beside those that its guest's kernel holds for each container in it.

Memory and processes of the machine are bounded where it is made (:mod:`casemate.isolation.microvm.hostlimits`). Here:
cpu time, weights, cpus and io of monitor and QEMU, for a machine whose one container asks for them. A guest has one cpu
and sees none of the host's, so a set of cpus means something on the host alone. A pod's limits are those of its cgroup.
"""

from __future__ import annotations

import dataclasses

from casemate.host import cgroups
from casemate.hostd import pods
from casemate.hostd.context import Context
from casemate.hostd.state import Container, Pod
from casemate.isolation.level import is_lone
from casemate.spec.workload import Resources

#: As they are without a container's: a clone is not to be slowed by the limit of what will run in it.
_NONE = cgroups.Limits(cpu_millis=0, cpu_weight=0)


def _held(resources: Resources) -> cgroups.Limits:
    return dataclasses.replace(
        pods.limits(resources),
        memory_bytes=None,
        memory_swap_bytes=None,
        memory_reservation_bytes=None,
        pids=None,
    )


def _is_asked_for(limits: cgroups.Limits) -> bool:
    return any(value is not None for value in dataclasses.astuple(limits))


def hold(context: Context, pod: Pod, container: Container, resources: Resources) -> list[str]:
    """Hold *resources* for the machine of a lone container; warnings for what this host cannot limit."""
    spec, wanted = pod.record.spec, _held(resources)
    path = pods.machine_cgroup(context, spec)
    if not pods.is_machine(spec) or not is_lone(spec, container.record.spec) or not _is_asked_for(wanted):
        return []
    return context.cgroups.set_limits(path, wanted) if context.cgroups.exists(path) else []


def free(context: Context, pod: Pod, container: Container) -> None:
    """Take the limits of an earlier start away: the next machine is made at full speed."""
    spec = pod.record.spec
    path = pods.machine_cgroup(context, spec)
    if pods.is_machine(spec) and _is_asked_for(_held(container.record.spec.resources)) and context.cgroups.exists(path):
        context.cgroups.set_limits(path, _NONE)


async def update_pod(context: Context, pod: Pod, resources: Resources) -> list[str]:
    """Live limits of a whole pod, in its cgroup and, where it is a machine, in its guest."""
    warnings = pods.update(context, pod, resources)
    machine = None if context.machines is None else context.machines.get(pod.id)
    if machine is None or not pods.is_machine(pod.record.spec) or machine.monitor.ended.is_set():
        return warnings
    files = pod_files(resources)
    if files:
        await machine.limit("", files)
    if resources.memory_bytes and resources.memory_bytes > machine.record.memory_bytes:
        warnings.append(f"memory: the machine has {machine.record.memory_bytes} bytes, which a start anew would change")
    return warnings


def pod_files(resources: Resources) -> list[tuple[str, str]]:
    """Live limits of a pod as files of cgroup v2 in its guest; 0 and -1 take a limit away."""
    found = []
    if resources.memory_bytes is not None:
        found.append(("memory.max", str(resources.memory_bytes or "max")))
    if resources.memory_reservation_bytes is not None:
        found.append(("memory.low", str(resources.memory_reservation_bytes)))
    if resources.cpu_millis is not None:
        found.append(("cpu.max", f"{resources.cpu_millis * 100 or 'max'} 100000"))
    if resources.pids is not None:
        found.append(("pids.max", str(resources.pids) if resources.pids > 0 else "max"))
    return found
