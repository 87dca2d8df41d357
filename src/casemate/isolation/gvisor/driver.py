"""The driver of the ``gvisor`` level over runsc: pure.

The sandbox (runsc's "sentry") runs as nobody in namespaces of its own and sees no file of the host; files come from
its "gofer", which is root of the pod's id range and sees the container's mounts alone. The network is gVisor's own
stack on the pod's interface: runsc takes the address off it and sends frames itself, so what leaves the pod meets
the same veth, the same anti-spoofing and the same rules as at every level (decision 0062).
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from casemate.isolation import oci
from casemate.isolation.bundle import BundleInput, BundlePlan
from casemate.isolation.level import Features, Inside, LevelLacks, Runtime, is_lone
from casemate.spec.workload import Level, Resources

#: In the words of runsc's own list of flags: what we give where it exists, and why.
_FLAGS: tuple[tuple[str, str, str], ...] = (
    ("network", "sandbox", "gVisor's own stack: the host's would be one more thing that the pod's code reaches"),
    ("file-access", "shared", "what `cp` and `diff` see on the host, and what a container sees, is one thing"),
    ("overlay2", "none", "what a container writes is the writable layer's, where `diff` and `export` look"),
    ("directfs", "false", "the sandbox opens no file of the host by itself"),
    ("host-uds", "none", "no socket of the host"),
    ("net-raw", "true", "CAP_NET_RAW is given by name; runsc would take it away unasked"),
    ("oci-seccomp", "true", "the container's own filter, as at every level"),
    ("allow-flag-override", "false", "an annotation must not change any of these"),
)
#: Covered while `runsc start` runs: one that asks whether a network namespace is the host's by looking for
#: net/core/rmem_default (2022) takes every namespace of a kernel since 6.13 for that, which shows it in each.
COVERED = "/proc/sys/net"
#: A sandbox's state, and a lone container's: removed with its sandbox dead,
#: without `runsc delete`, which fails for one that was paused.
STATE = ("{}_sandbox:{}.state", "{}_sandbox:{}.lock", "{}.join", "{}.paused")
#: By these runsc knows the sandbox of a pod and what joins it, as containerd and CRI-O name them.
_KIND, _SANDBOX = "io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"
#: What the host runs for one process at most (ptrace: its stubs, one for each thread of the sandbox that ran it;
#: seen 12 for `sleep`), and for a sandbox and its gofer without one (seen 39).
PROCESS_TASKS, OWN_TASKS = 12, 256
#: gVisor has its own of each; what a host's namespace would share does not exist in it.
_OWN_NAMESPACES = ("pid", "ipc", "uts", "mount")


@dataclass(frozen=True, slots=True)
class Program:
    """A runsc as it was found: its path, version, and the flags and platforms that it names itself."""

    path: str
    version: str
    flags: frozenset[str]
    platforms: tuple[str, ...]


def read_flags(text: str) -> tuple[frozenset[str], tuple[str, ...]]:
    """The names of the flags in the output of ``runsc flags``, and the platforms that ``-platform`` takes."""
    names = frozenset(re.findall(r"^ {2}-([a-zA-Z0-9_-]{1,60})", text, re.MULTILINE))
    found = re.search(r"^ {2}-platform .*\n(.*)", text, re.MULTILINE)
    words = re.findall(r"\b(systrap|ptrace|kvm)\b", found[1] if found else "")
    return names, tuple(dict.fromkeys(words))


def candidates(program: Program, wanted: str) -> tuple[str, ...]:
    """The platforms to be tried, the best first: *wanted*, or without ``kvm``, which is taken by name alone.

    KVM as a platform makes the sandbox a guest of the host's; where the host is a guest itself that is slow, and on
    some it spins for ever, so nobody gets it unasked.
    """
    if wanted != "auto":
        return (wanted,)
    return tuple(one for one in ("systrap", "ptrace") if one in program.platforms)


def runtime(program: Program, platform: str, root: str, *, cover: bool) -> Runtime:
    """runsc's command line with *platform*; its state in the folder *root*."""
    arguments = tuple(f"--{name}={value}" for name, value, _why in _FLAGS if name in program.flags)
    covered = (COVERED,) if cover else ()
    arguments = (f"--platform={platform}", *arguments)
    return Runtime(program.path, root, arguments, program.version, cover_at_start=covered, state=STATE)


def wrapped(runtime: Runtime, shim: str) -> Runtime:
    """*runtime* started by casemate-vm (*shim*): conmon's ``exec --tty`` is a flag that runsc lacks."""
    return dataclasses.replace(runtime, program=shim, before=("runsc", runtime.program))


class GvisorLevel:
    """Containers in a runsc sandbox of their pod's own."""

    name: Level = "gvisor"

    def __init__(self, runtime: Runtime, summary: str, inside: Inside | None = None) -> None:
        self.features = Features(
            processes="runtime",
            state_is_files=True,
            takes_address=True,
            # A further container has a waiter in front of it, which is a part of casemate-vm.
            shares_sandbox="made" if runtime.before else "none",
            process_tasks=PROCESS_TASKS,
            own_tasks=OWN_TASKS,
            shared_cgroup=True,
        )
        self.runtime = runtime
        self.summary = summary
        self.inside = inside

    def bundle(self, given: BundleInput) -> BundlePlan:
        """Raises :class:`LevelLacks` for what gVisor has no part for."""
        check(given)
        plan = oci.configuration(given)
        plan.config["linux"] = _linux(given, plan.config["linux"])
        # Done once the mount points are made: see GvisorInside.created.
        plan.config["root"]["readonly"] = False
        # gVisor has neither: it would pass over them with a word in a log that nobody reads.
        plan.config["mounts"] = [one for one in plan.config["mounts"] if one["type"] not in ("mqueue", "cgroup")]
        if not self.runtime.before or is_lone(given.pod, given.container):
            return plan
        if given.container.read_only:
            raise LevelLacks(
                f"container {given.container.name}: a read-only root cannot be had in a pod of several at level gvisor"
            )
        plan.config["annotations"] = {_KIND: "container", _SANDBOX: given.pod.id}
        said = not_its_own(given.container.resources)
        before = (self.runtime.before[0], "--join", given.pod.id, *self.runtime.before[1:])
        return BundlePlan(plan.config, (*plan.warnings, *said), before)


def resting(given: BundleInput, rootfs: str, program: str) -> dict[str, Any]:
    """The bundle of a sandbox that containers of *given*'s pod join: one process, *program* in *rootfs*, which waits.

    It has the pod's network and name, no capability and no file but its own.
    """
    plan = oci.configuration(given)
    linux = plan.config["linux"]
    kept = {key: linux[key] for key in ("uidMappings", "gidMappings")}
    return {
        "ociVersion": oci.OCI_VERSION,
        "process": {"args": [program, "rest"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "noNewPrivileges": True},
        "root": {"path": rootfs, "readonly": False},
        "hostname": given.pod.hostname,
        "mounts": [],
        "annotations": {_KIND: "sandbox"},
        "linux": _linux(given, kept) | {"cgroupsPath": f"/{sandbox_group(given.sandbox.cgroup)}"},
    }


def sandbox_group(pod_group: str) -> str:
    """The cgroup of the sandbox in a pod of several: limits of the pod hold it."""
    return f"{pod_group}/sandbox"


def not_its_own(wanted: Resources) -> tuple[str, ...]:
    """Warnings for limits of one container in a sandbox that several share."""
    asked = {"memory": wanted.memory_bytes, "cpus": wanted.cpu_millis, "cpuset": wanted.cpuset}
    return tuple(
        f"{name}: at level gvisor a pod's containers share one sandbox: limit the pod (`pod create`) instead"
        for name, value in asked.items()
        if value
    )


def check(given: BundleInput) -> None:
    """Refuse what would be passed over in silence."""
    pod, container = given.pod, given.container
    asked = {
        "the host's network": pod.network.mode == "host",
        "the host's processes": pod.host_pid,
        "the host's ipc": pod.host_ipc,
        "devices of the host": bool(container.devices),
        "privileged containers": container.security.privileged,
        "a kernel setting (--sysctl)": bool(container.sysctls),
    }
    for what, is_asked in asked.items():
        if is_asked:
            raise LevelLacks(f"container {container.name}: {what} cannot be had at level gvisor")


def _linux(given: BundleInput, linux: dict[str, Any]) -> dict[str, Any]:
    namespaces: list[dict[str, str]] = [{"type": kind} for kind in _OWN_NAMESPACES]
    # Not the pod's own, by path: a Go program cannot join one. The gofer's is a twin, with the same ids.
    namespaces.append({"type": "user"})
    namespaces.append({"type": "network", "path": given.sandbox.namespaces["network"]})
    found = {key: value for key, value in linux.items() if key not in ("rootfsPropagation", "devices")}
    return found | {"namespaces": namespaces}
