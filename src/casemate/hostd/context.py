"""What every operation of hostd works with: the settings, the folders, the layers below, and the state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from casemate.host.cgroups import Cgroups
from casemate.host.pidfd import ProcessIdentity
from casemate.hostd.firewall import Firewall
from casemate.hostd.folders import Folders
from casemate.hostd.keeping import Keeping
from casemate.hostd.protocol import AnyEvent
from casemate.hostd.records import Records
from casemate.hostd.state import State
from casemate.hostd.visibility import Visibility
from casemate.isolation.bundle import HostFacts
from casemate.isolation.launcher import Launcher
from casemate.isolation.level import Levels, Runtime
from casemate.isolation.microvm.machines import Machines
from casemate.network.nat import Nat
from casemate.spec.settings import Settings
from casemate.storage.layers import LayerMounts
from casemate.storage.trash import Trash
from casemate.storage.volumes import Volumes


def _no_step(_name: str) -> None:
    """Steps of the journal are of interest to crash tests alone."""


@dataclass(slots=True)
class Context:
    """Made once by the daemon. *step* is called at each step of the journal; *emit* sends an event to the peer."""

    settings: Settings
    folders: Folders
    records: Records
    state: State
    facts: HostFacts
    cgroups: Cgroups
    levels: Levels
    layers: LayerMounts
    volumes: Volumes
    trash: Trash
    nat: Nat
    visibility: Visibility
    boot_id: str
    conmon: str
    casemated_uid: int
    mtu_bytes: int
    #: 0: each pod has a range of ids of its own, and its layers' owners are mapped when they are mounted. Else the
    #: first id of the one range that all pods share, which is what the layers' owners were shifted by.
    id_shift: int
    emit: Callable[[AnyEvent], None]
    step: Callable[[str], None] = _no_step
    #: System calls that the filter of gVisor's sandbox lets through, as it was read at the probe.
    gvisor_calls: tuple[str, ...] = ()
    launchers: dict[tuple[bool, tuple[str, ...], bool], Launcher] = field(default_factory=dict)
    #: Set by the daemon once the context is there.
    firewall: Firewall = field(init=False)
    keeping: Keeping = field(init=False)
    #: casemated, while it is connected; and whether one went away since the inputs were last looked at.
    peer: ProcessIdentity | None = None
    peer_gone: asyncio.Event = field(default_factory=asyncio.Event)
    #: Set when something was thrown into the trash.
    trash_waits: asyncio.Event = field(default_factory=asyncio.Event)
    #: Taps of pods that are gone: the kernel takes 40 ms to delete one, which no removal waits for.
    dead_links: set[str] = field(default_factory=set)
    links_wait: asyncio.Event = field(default_factory=asyncio.Event)
    #: Containers that ended and still are in their machine.
    spent: set[str] = field(default_factory=set)
    spent_waits: asyncio.Event = field(default_factory=asyncio.Event)
    #: The micro-VMs of this host, while their service runs.
    machines: Machines | None = None
    #: Addresses whose published UDP ports were taken back, and whose flows the kernel still translates.
    stale_flows: set[str] = field(default_factory=set)
    flows_wait: asyncio.Event = field(default_factory=asyncio.Event)

    def launcher(self, runtime: Runtime, *, starting: bool = False) -> Launcher:
        """The launcher that *runtime* needs; *starting*: for its ``start``."""
        key = runtime.hide_unified, runtime.cover_at_start if starting else (), runtime.gives_files
        if key not in self.launchers:
            self.launchers[key] = Launcher(hide_unified=key[0], covered=key[1], keep_null=key[2])
        return self.launchers[key]

    def pod_cgroup(self, pod: str) -> str:
        return f"{self.settings.text('cgroup.parent')}/{pod}"
