"""What ``inspect`` says of a container's system calls: its level's allow-list, from what hostd told. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from casemate.spec.api import SystemCalls
from casemate.spec.workload import ContainerSpec, Level


def of(level: Level, spec: ContainerSpec | None, offered: Mapping[str, Sequence[str]]) -> SystemCalls | None:
    """The list that stands between the container *spec* at *level* and the host's kernel.

    *offered*: :func:`casemate.hostd.calls.offered`; None is answered where hostd has told nothing.
    """
    if level == "gvisor" and (names := offered.get("gvisor")):
        return SystemCalls("runsc's sandbox, by the filter that it has put upon itself", len(names), tuple(names))
    if level == "gvisor":
        return SystemCalls("runsc's sandbox, which has a filter of its own")
    if level == "microvm" and (names := offered.get("microvm")):
        return SystemCalls("QEMU and its 9p server, by the filter of casemate-vm", len(names), tuple(names))
    if level != "namespace" or spec is None or "namespace" not in offered:
        return None
    if spec.security.privileged or spec.security.seccomp == "unconfined":
        return SystemCalls("the container's processes, with no filter")
    found = set(offered["namespace"])
    for capability in spec.security.capabilities:
        found.update(offered.get(capability, ()))
    return SystemCalls("the container's processes, by its seccomp profile", len(found), tuple(sorted(found)))
