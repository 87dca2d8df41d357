"""What casemate-vm is told: states, hooks of later stages, errors in engines' words; a plain exec's process."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Literal

from casemate.isolation.microvm import bundles, engines, frames
from casemate.isolation.microvm.errors import AgentFailed, BundleUnsupported
from casemate.isolation.microvm.frames import Field, Message, Tag
from casemate.isolation.microvm.oci import Process, User
from casemate.isolation.microvm.records import ContainerRecord
from casemate.spec.errors import CasemateError


def hooks_after(one: ContainerRecord, stage: Literal["poststart", "poststop"]) -> list[Field]:
    """The hooks of a later stage, for casemate-vm. A bundle that is gone by now has none any more."""
    try:
        wanted = bundles.read(Path(one.bundle))
        hooks = engines.check_hooks(wanted.hooks)
    except BundleUnsupported:
        return []
    found = hooks.poststart if stage == "poststart" else hooks.poststop
    if not found:
        return []
    head = frames.text(Tag.TEXT, engines.state_head(one.id, one.bundle, wanted))
    return [head, frames.u32(Tag.FLAGS, one.pid), *engines.hook_fields(found)]


def stat(reply: Message, name: str) -> str:
    prefix = name.encode() + b"\0"
    for field in reply.fields:
        if field.tag == Tag.STAT and field.value.startswith(prefix):
            return field.value[len(prefix) :].decode("ascii", "replace")
    return ""


def state(one: ContainerRecord) -> dict[str, object]:
    """The state document of the OCI runtime specification (runtime.md, "State")."""
    pid = 0 if one.status == "stopped" else one.pid
    return {
        "ociVersion": "1.0.2",
        "id": one.id,
        "status": one.status,
        "pid": pid,
        "bundle": one.bundle,
        "annotations": one.annotations,
    }


def plain_process(ask: Message) -> Process:
    """What ``exec ID COMMAND`` means without a document: root without capabilities, as runc does it."""
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    uid, _, gid = (ask.text(Tag.UID) or "0").partition(":")
    if not (uid.isdigit() and (gid or "0").isdigit() and len(uid) < 11 and len(gid) < 11):
        raise BundleUnsupported(f"user {ask.text(Tag.UID)!r}: --user takes UID or UID:GID")
    user = User(uid=int(uid), gid=int(gid or 0))
    env = (path, *ask.texts(Tag.ENV))
    return Process(args=tuple(ask.texts(Tag.ARG)), env=env, cwd=ask.text(Tag.CWD, 4096) or "/", user=user)


def command_error(error: AgentFailed) -> CasemateError:
    """The words by which engines tell "not found" and "not executable" from other failures."""
    if error.facts.get("step") != "execve":
        return error
    number = error.facts.get("errno")
    assert isinstance(number, int)
    words = "executable file not found in $PATH" if number == errno.ENOENT else os.strerror(number).lower()
    return AgentFailed(f"exec: {words}", errno=number)
