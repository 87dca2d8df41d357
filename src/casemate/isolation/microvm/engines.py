"""What engines expect of an OCI runtime beside the container itself: hooks, a network namespace, a control group. Pure.

Hooks are programs of the host that the engine names in its bundle. casemate-vm runs them, not hostd: in the engine's
own environment, with the state document on standard input (runtime.md, "Lifecycle"; config.md, "POSIX-platform Hooks").
"""

from __future__ import annotations

import functools
import json
import operator
import re
import struct
from collections.abc import Mapping, Sequence

import msgspec

from casemate.host.cgroups import check_path
from casemate.isolation.microvm import bundles, frames
from casemate.isolation.microvm.errors import BundleUnsupported
from casemate.isolation.microvm.frames import Field, Tag
from casemate.isolation.microvm.oci import Config, Hook, Hooks

#: casemate-vm makes a new network namespace, or stays where it is.
NEW, NONE = "new", ""
MAX_HOOKS = 64
#: The runtime specification that states and features speak of: as in shim/shim.h.
OCI_VERSION = "1.1.0"
#: Those that the guest runs: as in guest/agent/agent.h.
MAX_START_HOOKS = 16
INHERITED = 0xFFFF_FFFF
_CLONE = {"cgroup": 0x0200_0000, "uts": 0x0400_0000, "ipc": 0x0800_0000}
_NAMESPACES = frozenset(("pid", "network", "mount", "ipc", "uts", "cgroup", "user"))
#: sysctl names and the namespaces that they are of (ipc_namespaces(7), uts_namespaces(7), network_namespaces(7)).
_SYSCTL_OF = {
    "kernel.domainname": "uts",
    **dict.fromkeys((f"kernel.{name}" for name in ("msgmax", "msgmnb", "msgmni", "sem")), "ipc"),
    **dict.fromkeys((f"kernel.{name}" for name in ("shmall", "shmmax", "shmmni", "shm_rmid_forced")), "ipc"),
}
_SYSCTLS_BELOW = (("fs.mqueue.", "ipc"), ("net.", "network"))
_OF_PROCESS = re.compile(r"/proc/(\d{1,10})/ns/\w{1,20}\Z")
_DEFAULT_TIMEOUT_S = 120


def netns(config: Config) -> str:
    """The network namespace of the container's waiter: a path, :data:`NEW`, or :data:`NONE` for our own pods."""
    if config.annotations.get(bundles.NETWORK) or config.annotations.get(bundles.POD):
        return NONE
    for one in config.linux.namespaces:
        if one.type == "network":
            return one.path or NEW
    raise BundleUnsupported(
        "the bundle has no network namespace: a virtual machine cannot share the host's network; "
        "choose another network (`--network bridge`, `--network none`)"
    )


def cgroup_path(config: Config, default: str = "") -> str:
    """The container's cgroup on the host, below the hierarchy's root; empty for our own pods, which name folders.

    *default*: for a bundle that names none. A systemd driver writes ``slice:prefix:name``, which stands for a scope in
    that slice (runc's systemd driver).
    """
    text = config.linux.cgroups_path
    if config.annotations.get(bundles.POD):
        return ""
    if not text:
        return check_path(default) if default and netns(config) != NONE else ""
    parts = text.split(":")
    if len(parts) == 3:
        slices = parts[0].removesuffix(".slice").split("-") if parts[0] else ["system"]
        folders = ["-".join(slices[: count + 1]) + ".slice" for count in range(len(slices))]
        text = "/".join([*folders, f"{parts[1]}-{parts[2]}.scope" if parts[1] else f"{parts[2]}.scope"])
    return check_path(text.strip("/"))


def check_hooks(hooks: Hooks | None) -> Hooks:
    """*hooks*, few enough and with absolute paths. :class:`BundleUnsupported`."""
    found = hooks or Hooks()
    on_host = (*found.prestart, *found.create_runtime, *found.create_container, *found.poststart, *found.poststop)
    every = (*on_host, *found.start_container)
    if len(every) > MAX_HOOKS or len(found.start_container) > MAX_START_HOOKS:
        raise BundleUnsupported(
            f"{len(every)} hooks, {len(found.start_container)} of them startContainer; "
            f"allowed are {MAX_HOOKS}, {MAX_START_HOOKS} of them startContainer"
        )
    for one in every:
        if not one.path.startswith("/") or any("\0" in word for word in (one.path, *one.args, *(one.env or ()))):
            raise BundleUnsupported(f"hook {one.path[:200]!r} is no absolute path")
    return found


def hook_fields(hooks: Sequence[Hook], tag: Tag = Tag.HOOK) -> list[Field]:
    """u32 seconds, arguments, variables; then path, arguments, variables, each text ended by 0.

    :data:`INHERITED` as the number of variables: casemate-vm's own.
    """
    found = []
    for one in hooks:
        env = one.env or ()
        count = INHERITED if one.env is None else len(env)
        head = struct.pack("<III", one.timeout or _DEFAULT_TIMEOUT_S, len(one.args), count)
        words = b"".join(word.encode("utf-8", "surrogateescape") + b"\0" for word in (one.path, *one.args, *env))
        found.append(Field(tag, head + words))
    return found


def state_head(name: str, bundle: str, config: Config) -> str:
    """The state document up to the pid and the status, which casemate-vm writes."""
    document = {"ociVersion": OCI_VERSION, "id": name, "bundle": bundle, "annotations": config.annotations}
    return json.dumps(document)[:-1] + ", "


def start_hooks(name: str, bundle: str, config: Config, pid: int) -> list[Field]:
    """What the guest runs in the container before its program, and the document that it reads."""
    hooks = check_hooks(config.hooks).start_container
    if not hooks:
        return []
    state = f'{state_head(name, bundle, config)}"pid": {pid}, "status": "created"}}'
    # The guest has no variables that an engine set.
    known = [msgspec.structs.replace(one, env=one.env or ()) for one in hooks]
    return [frames.text(Tag.STATE, state), *hook_fields(known, Tag.START_HOOK)]


def check_namespaces(config: Config) -> dict[str, str]:
    """Of each type but the network the path that the bundle names. :class:`BundleUnsupported`."""
    found: dict[str, str] = {}
    for one in config.linux.namespaces:
        if one.type not in _NAMESPACES:
            raise BundleUnsupported(f"a namespace of type {one.type[:40]!r}; a virtual machine has none of its own")
        if one.type in found:
            raise BundleUnsupported(f"two namespaces of type {one.type}")
        found[one.type] = one.path
    return {kind: path for kind, path in found.items() if path and kind != "network"}


def check_sysctls(config: Config) -> None:
    """Kernel settings are of namespaces that the bundle asks for: those of another would change what it shares.
    What belongs to no namespace is the guest's own. :class:`BundleUnsupported`."""
    listed = {one.type for one in config.linux.namespaces}
    for name in config.linux.sysctl:
        dotted = name.replace("/", ".")
        if dotted == "kernel.hostname":
            raise BundleUnsupported(f"sysctl {name}: the host name is the bundle's `hostname`")
        kind = _SYSCTL_OF.get(dotted) or next((of for head, of in _SYSCTLS_BELOW if dotted.startswith(head)), "")
        if kind and kind not in listed:
            raise BundleUnsupported(
                f"sysctl {name[:80]} wants a namespace of type {kind}, which the bundle does not have"
            )


def check_resources(config: Config) -> None:
    """What can be held nowhere, by name: a guest's packets bear no class and no priority of the host's, since no socket
    of the host sends them; it has one node of memory, and none of the host's devices. :class:`BundleUnsupported`."""
    linux = config.linux
    for name, wanted in (
        ("netDevices", linux.net_devices),
        ("memoryPolicy", linux.memory_policy),
        ("intelRdt", linux.intel_rdt),
    ):
        if wanted:
            raise BundleUnsupported(f"linux.{name}: a virtual machine has none of the host's")
    network = config.linux.resources.network
    if network is not None and (network.class_id or network.priorities):
        raise BundleUnsupported("resources.network: packets of a guest have no class and no priority of the host's")


def shared_with(paths: Mapping[str, str], waiters: Mapping[int, str]) -> str:
    """The container of the same machine whose processes are shared (empty: none); *waiters* are the machine's.

    Host name and message queues are the machine's, so its containers have them in common whether or not they ask. Any
    other namespace of the host cannot be entered from a virtual machine. :class:`BundleUnsupported`.
    """
    joined = ""
    for kind, path in paths.items():
        match = _OF_PROCESS.match(path)
        container = waiters.get(int(match[1])) if match else None
        if container is not None and kind in ("pid", "ipc", "uts"):
            joined = container if kind == "pid" else joined
        elif match or not waiters or kind not in ("ipc", "uts"):
            raise BundleUnsupported(
                f"the {kind} namespace {path[:200]} is of the host; a virtual machine shares those of containers in "
                "the same machine: let both be of one pod, or of one network (`--network container:NAME`)"
            )
        # Else an engine's own name for what its pod has in common, the network of which led to this machine.
    return joined


def _clone_flags(config: Config) -> int:
    """Namespaces that the container has to itself: its waiter is in new ones on the host, too, where tools compare."""
    own = (_CLONE.get(one.type, 0) for one in config.linux.namespaces if not one.path)
    return functools.reduce(operator.or_, own, 0)


def prepared(name: str, bundle: str, config: Config) -> list[Field]:
    """The answer to PREPARE: where the waiter belongs, and what runs before the container is made."""
    hooks = check_hooks(config.hooks)
    check_namespaces(config)
    if netns(config) != NONE:
        check_sysctls(config)
        check_resources(config)
    return [
        frames.text(Tag.TEXT, state_head(name, bundle, config)),
        frames.text(Tag.NETNS, netns(config)),
        frames.u32(Tag.FLAGS, 4 if config.process.terminal else 0),
        frames.u32(Tag.NAMESPACES, _clone_flags(config)),
        *hook_fields((*hooks.prestart, *hooks.create_runtime)),
        *hook_fields(hooks.create_container, Tag.START_HOOK),
    ]
