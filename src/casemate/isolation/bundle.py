"""The values between hostd and an isolation level: what goes into a bundle, and what comes out.

Pure. Paths are text as the OCI runtime gets them; ids are host ids unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from casemate.spec.workload import ContainerSpec, PodSpec


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What a bundle depends on: ``uname -m``, hostd's capabilities (bit mask) and hard limits (-1: none),
    its own oom_score_adj, and where catatonit lies (empty: not installed)."""

    machine: str
    bounding: int
    hard_limits: Mapping[str, int] = field(default_factory=dict)
    oom_score_adj: int = 0
    catatonit: str = ""
    #: The host has /dev/mqueue, which a pod that shares its ipc namespace sees.
    mqueue: bool = True


@dataclass(frozen=True, slots=True)
class Sandbox:
    """The pod's own part: *namespaces* maps an OCI type (user, network, ipc, uts) to the path of the pinned one;
    a type that is missing is the host's. *ids* host ids from *first_id* on are the pod's 0 to *ids* - 1."""

    namespaces: Mapping[str, str]
    first_id: int
    cgroup: str
    ids: int = 65_536


@dataclass(frozen=True, slots=True)
class BindSource:
    """A mount that hostd has prepared at *source*; *options* are those of the OCI specification."""

    source: str
    target: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A host device as it was seen when it was granted."""

    target: str
    kind: Literal["c", "b"]
    major: int
    minor: int
    access: str
    mode: int = 0o666


@dataclass(frozen=True, slots=True)
class BundleInput:
    """Everything that a driver needs to write a bundle."""

    pod: PodSpec
    container: ContainerSpec
    sandbox: Sandbox
    rootfs: str
    facts: HostFacts
    binds: tuple[BindSource, ...] = ()
    devices: tuple[DeviceNode, ...] = ()
    #: What the container wrote before it was stopped, where a level keeps that as a file; empty: nothing.
    writable: str = ""


@dataclass(frozen=True, slots=True)
class BundlePlan:
    """The OCI configuration, and what was lowered or left out because the host cannot do it."""

    config: dict[str, Any]
    warnings: tuple[str, ...] = ()
    #: For this one container, what stands before the runtime's own words (``Runtime.before``); empty: as ever.
    before: tuple[str, ...] = ()
