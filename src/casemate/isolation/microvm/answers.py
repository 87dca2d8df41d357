"""What casemate-vm is told: states, hooks of later stages, errors in engines' words; a plain exec's process."""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from casemate.isolation.level import InnerProcess
from casemate.isolation.microvm import bundles, engines, frames
from casemate.isolation.microvm.errors import AgentFailed, BundleUnsupported
from casemate.isolation.microvm.frames import Field, Message, Tag
from casemate.isolation.microvm.oci import Process, User
from casemate.isolation.microvm.records import ContainerRecord
from casemate.spec import capabilities
from casemate.spec.errors import CasemateError, Conflict

#: Flags of an exec, as in shim/shim.h.
NO_NEW_PRIVS, IGNORE_PAUSED = 8, 16
_MOST_ID = (1 << 32) - 2
#: The guest's clock may say anything; the year 9999.
_LAST_TIME = 253_402_300_799.0
#: What a guest says (errno, words; guest/agent/process.c) of a process for a container that has just ended.
_ENDED_MEANWHILE = ((errno.ENOENT, "no such container, or it does not run"), (errno.ESRCH, "namespaces"))


def hooks_after(folder: Path, one: ContainerRecord, stage: Literal["poststart", "poststop"]) -> list[Field]:
    """The hooks of a later stage, for casemate-vm. A bundle of ours that is gone by now has none any more."""
    try:
        wanted = bundles.of(folder, one.id, one.bundle)
        hooks = engines.check_hooks(wanted.hooks)
    except BundleUnsupported:
        return []
    found = hooks.poststart if stage == "poststart" else hooks.poststop
    if not found:
        return []
    head = frames.text(Tag.TEXT, engines.state_head(one.id, one.bundle, wanted))
    return [head, frames.u32(Tag.FLAGS, one.pid), *engines.hook_fields(found)]


def state(one: ContainerRecord) -> dict[str, object]:
    """The state document of the OCI runtime specification (runtime.md, "State")."""
    return {
        "ociVersion": engines.OCI_VERSION,
        "id": one.id,
        "pid": _pid(one),
        "status": one.status,
        "bundle": one.bundle,
        "rootfs": one.rootfs,
        "created": one.created,
        "annotations": one.annotations,
        "owner": "",
    }


def listed(found: Sequence[ContainerRecord], form: str) -> str:
    """What ``list`` says, in the form *form*."""
    if form == "json":
        return json.dumps([state(one) for one in found], separators=(",", ":")) if found else "null"
    if form == "quiet":
        return "\n".join(one.id for one in found)
    check_form(form, "table")
    rows = [(one.id, str(_pid(one)), one.status, one.bundle, one.created, "root") for one in found]
    return _table([("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"), *rows])


def process_table(rows: Sequence[InnerProcess]) -> str:
    """What ``ps`` says, in the form of ps(1) with -ef: the processes as the guest numbers them, times of UTC."""
    found = []
    for one in rows:
        began = time.strftime("%H:%M", time.gmtime(min(max(one.started_at, 0), _LAST_TIME)))
        seconds = one.cpu_ns // 1_000_000_000
        spent = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        user = str(one.uid) if one.uid else "root"
        found.append((user, str(one.pid), str(one.ppid), "0", began, one.tty, spent, one.command))
    return _table([("UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"), *found], least=4)


def check_form(form: str, *allowed: str) -> None:
    if form not in allowed:
        raise BundleUnsupported(f"invalid format option {form[:40]!r}; allowed are json, {', '.join(allowed)}")


def _table(rows: Sequence[tuple[str, ...]], least: int = 12) -> str:
    widths = [max(least, *(len(row[column]) + 3 for row in rows)) for column in range(len(rows[0]) - 1)]
    return "\n".join(
        "".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    )


def _pid(one: ContainerRecord) -> int:
    return 0 if one.status == "stopped" else one.pid


def check_can_exec(one: ContainerRecord, *, ignore_paused: bool) -> None:
    """A process may join a container that is made; a paused one would let it wait until somebody resumes it."""
    if one.status == "paused" and not ignore_paused:
        raise Conflict(f"cannot exec in a paused container (use --ignore-paused to override): {one.id}")
    if one.status == "stopped":
        raise _stopped(one)


def exec_error(error: AgentFailed, one: ContainerRecord) -> CasemateError:
    """Why a process could not join *one*: it has ended by now, or its end is on its way to us; or what the guest said.

    A process that joins goes down with the container's first one, whatever it had come to.
    """
    if one.status == "stopped" or (error.facts.get("errno"), error.facts.get("step")) in _ENDED_MEANWHILE:
        return _stopped(one)
    return command_error(error)


def _stopped(one: ContainerRecord) -> Conflict:
    return Conflict(f"cannot exec in a stopped container: {one.id} is stopped, container not running")


def plain_process(ask: Message, first: Process) -> Process:
    """What ``exec ID COMMAND`` means without a document: as the container's own, but for what the flags say."""
    words = ask.text(Tag.UID)
    uid, _, gid = words.partition(":")
    if words and not (_is_id(uid) and _is_id(gid or "0")):
        raise BundleUnsupported(f"user {words[:80]!r}: --user takes UID or UID:GID")
    extra = ask.texts(Tag.GROUP)
    if not all(_is_id(one) for one in extra):
        raise BundleUnsupported(f"--additional-gids {', '.join(extra)[:80]!r}: numbers are taken")
    user = User(int(uid), int(gid or 0), first.user.umask) if words else first.user
    user = msgspec.structs.replace(user, groups=(*user.groups, *(int(one) for one in extra)))
    # A program takes the first of two variables of one name.
    given = ask.texts(Tag.ENV)
    named = {one.partition("=")[0] for one in given}
    sets = dict(first.capabilities or {})
    for name in ask.texts(Tag.CAPABILITIES):
        # Not the inheritable one, and so not the ambient one: CVE-2022-29162.
        for kind in ("bounding", "effective", "permitted"):
            sets[kind] = (*sets.get(kind, ()), _capability(name))
    return msgspec.structs.replace(
        first,
        args=tuple(ask.texts(Tag.ARG)),
        env=(*(one for one in first.env if one.partition("=")[0] not in named), *given),
        cwd=ask.text(Tag.CWD, 4096) or first.cwd,
        user=user,
        capabilities=sets,
        terminal=False,
        no_new_privileges=first.no_new_privileges or bool(ask.number_of(Tag.FLAGS) & NO_NEW_PRIVS),
    )


def is_null(number: int) -> bool:
    """Whether the descriptor is ``/dev/null``, of which the guest has one of its own."""
    status = os.fstat(number)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 3)


def _is_id(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) < 11 and int(word) <= _MOST_ID


def _capability(name: str) -> str:
    word = name.upper() if name.upper().startswith("CAP_") else f"CAP_{name.upper()}"
    if word not in capabilities.ALL:
        raise BundleUnsupported(f"--cap {name[:40]!r} is no capability of capabilities(7)")
    return word


def command_error(error: AgentFailed) -> CasemateError:
    """The words by which engines tell "not found" and "not executable" from other failures."""
    if error.facts.get("step") != "execve":
        return error
    number = error.facts.get("errno")
    assert isinstance(number, int)
    words = "executable file not found in $PATH" if number == errno.ENOENT else os.strerror(number).lower()
    return AgentFailed(f"exec: {words}", errno=number)
