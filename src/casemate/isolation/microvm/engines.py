"""What engines expect of an OCI runtime beside the container itself: hooks, a network namespace, a control group. Pure.

Hooks are programs of the host that the engine names in its bundle. casemate-vm runs them, not hostd: in the engine's
own environment, with the state document on standard input (runtime.md, "Lifecycle"; config.md, "POSIX-platform Hooks").
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence

from casemate.host.cgroups import check_path
from casemate.isolation.microvm import bundles, frames
from casemate.isolation.microvm.errors import BundleUnsupported
from casemate.isolation.microvm.frames import Field, Tag
from casemate.isolation.microvm.oci import Config, Hook, Hooks

#: casemate-vm makes a new network namespace, or stays where it is.
NEW, NONE = "new", ""
MAX_HOOKS = 64
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


def cgroup_path(config: Config) -> str:
    """The container's cgroup on the host, below the hierarchy's root; empty for our own pods, which name folders.

    A systemd driver writes ``slice:prefix:name``, which stands for a scope in that slice (runc's systemd driver).
    """
    text = config.linux.cgroups_path
    if config.annotations.get(bundles.POD) or not text:
        return ""
    parts = text.split(":")
    if len(parts) == 3:
        slices = parts[0].removesuffix(".slice").split("-") if parts[0] else ["system"]
        folders = ["-".join(slices[: count + 1]) + ".slice" for count in range(len(slices))]
        text = "/".join([*folders, f"{parts[1]}-{parts[2]}.scope" if parts[1] else f"{parts[2]}.scope"])
    return check_path(text.strip("/"))


def check_hooks(hooks: Hooks | None) -> Hooks:
    """*hooks*, none of which would have to run inside the container. :class:`BundleUnsupported`."""
    found = hooks or Hooks()
    if found.create_container or found.start_container:
        raise BundleUnsupported("hooks createContainer and startContainer would run inside the virtual machine")
    every = (*found.prestart, *found.create_runtime, *found.poststart, *found.poststop)
    if len(every) > MAX_HOOKS:
        raise BundleUnsupported(f"{len(every)} hooks, allowed are {MAX_HOOKS}")
    for one in every:
        if not one.path.startswith("/") or any("\0" in word for word in (one.path, *one.args, *one.env)):
            raise BundleUnsupported(f"hook {one.path[:200]!r} is no absolute path")
    return found


def hook_fields(hooks: Sequence[Hook]) -> list[Field]:
    """For casemate-vm: u32 seconds, arguments, variables; then path, arguments, variables, each text ended by 0."""
    found = []
    for one in hooks:
        head = struct.pack("<III", one.timeout or _DEFAULT_TIMEOUT_S, len(one.args), len(one.env))
        words = b"".join(word.encode("utf-8", "surrogateescape") + b"\0" for word in (one.path, *one.args, *one.env))
        found.append(Field(Tag.HOOK, head + words))
    return found


def state_head(name: str, bundle: str, config: Config) -> str:
    """The state document up to the pid and the status, which casemate-vm writes."""
    document = {"ociVersion": "1.0.2", "id": name, "bundle": bundle, "annotations": config.annotations}
    return json.dumps(document)[:-1] + ", "


def prepared(name: str, bundle: str, config: Config) -> list[Field]:
    """The answer to PREPARE: where the waiter belongs, and what runs before the container is made."""
    hooks = check_hooks(config.hooks)
    return [
        frames.text(Tag.TEXT, state_head(name, bundle, config)),
        frames.text(Tag.NETNS, netns(config)),
        frames.u32(Tag.FLAGS, 4 if config.process.terminal else 0),
        *hook_fields((*hooks.prestart, *hooks.create_runtime)),
    ]
