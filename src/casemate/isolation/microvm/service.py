"""What casemate-vm asks: the OCI runtime operations over the machines. One message, one answer; root's alone."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Callable, Coroutine, Generator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from casemate.host import cgroups, hierarchy, seqpacket
from casemate.isolation.microvm import (
    bundles,
    config,
    copying,
    engines,
    frames,
    guestrows,
    reports,
    seccomp_oci,
    shares,
    takeover,
)
from casemate.isolation.microvm.errors import (
    AgentFailed,
    BundleUnsupported,
    MachineMissing,
    MonitorFailed,
    NetworkFailed,
)
from casemate.isolation.microvm.frames import Field, Kind, Message, Tag
from casemate.isolation.microvm.inside import limit_fields
from casemate.isolation.microvm.kernelsignals import number_of
from casemate.isolation.microvm.machine import Machine
from casemate.isolation.microvm.machines import Machines
from casemate.isolation.microvm.oci import Config, Process, User, read_process
from casemate.isolation.microvm.records import SAME_IDS, ContainerRecord, Ids
from casemate.isolation.seccomp_compile import Compiler
from casemate.spec.errors import CasemateError, Conflict

FORCE, ALL, TERMINAL = 1, 2, 4
_MAX_CLIENTS = 64
_KILL = 9
#: Longer answers (a list of many containers) are cut to what one message holds.
_MAX_ANSWER_BYTES = 100 << 10


class Service:
    """Answers casemate-vm on one socket."""

    def __init__(self, machines: Machines, compiler: Compiler | None) -> None:
        self._machines = machines
        self._compiler = compiler
        self._programs: dict[str, bytes] = {}
        self._answers: dict[Kind, Callable[[Message, list[int]], Coroutine[Any, Any, str | list[Field]]]] = {
            Kind.ASK_PREPARE: self._prepare,
            Kind.ASK_EVENTS: self._events,
            Kind.ASK_UPDATE: self._update,
            Kind.ASK_CREATE: self._create,
            Kind.ASK_START: self._start,
            Kind.ASK_STATE: self._state,
            Kind.ASK_KILL: self._kill,
            Kind.ASK_DELETE: self._delete,
            Kind.ASK_EXEC: self._exec,
            Kind.ASK_LIST: self._list,
            Kind.ASK_PS: self._ps,
            Kind.ASK_PAUSE: self._pause,
            Kind.ASK_RESUME: self._resume,
        }

    async def serve(self, server: socket.socket) -> None:
        """Answer at *server* for ever; any peer but root is closed unheard."""
        await seqpacket.serve(server, self._handle, accepts=lambda peer: peer.uid == 0, max_connections=_MAX_CLIENTS)

    async def _handle(self, channel: seqpacket.Channel) -> None:
        try:
            while (message := await channel.receive()) is not None:
                try:
                    channel.send(await self._answer(message.data, message.fds))
                finally:
                    message.close()
        except CasemateError:
            return

    async def _answer(self, data: bytes, fds: list[int]) -> bytes:
        more: list[Field] = []
        number, words = errno.EIO, ""
        try:
            ask = frames.decode(data, frames.ASK_KINDS, frames.MAX_HOST_FIELDS)
            answer = await self._answers[ask.kind](ask, fds)
            words, more = (answer, []) if isinstance(answer, str) else ("", answer)
            number = 0
        except CasemateError as error:
            words = f"{error.detail} ({error.code})"
        except OSError as error:
            number, words = error.errno or errno.EIO, str(error)
        text = words.encode("utf-8", "replace")[:_MAX_ANSWER_BYTES]
        return frames.encode(Kind.REPLY, 1, [frames.u32(Tag.ERRNO, number), *(more or [Field(Tag.TEXT, text)])])

    def _place(self, ask: Message) -> tuple[Machine, ContainerRecord]:
        name = ask.text(Tag.CONTAINER)
        machine = self._machines.find(name)
        one = machine.container(name) if machine is not None else None
        if machine is None or one is None:
            raise MachineMissing(f"container {name!r} does not exist", container=name)
        return machine, one

    async def _prepare(self, ask: Message, _fds: list[int]) -> list[Field]:
        name, bundle = config.check_id(ask.text(Tag.CONTAINER)), ask.text(Tag.CWD, 4096)
        return engines.prepared(name, bundle, bundles.read(Path(bundle)))

    async def _create(self, ask: Message, fds: list[int]) -> str:
        name = config.check_id(ask.text(Tag.CONTAINER))
        bundle = Path(ask.text(Tag.CWD, 4096))
        if self._machines.find(name) is not None or self._machines.get(name) is not None:
            raise Conflict(f"container {name} exists")
        wanted = bundles.read(bundle)
        engines.check_hooks(wanted.hooks)
        cgroup = engines.cgroup_path(wanted)
        try:
            await self._make(ask, fds, wanted, cgroup)
        except BaseException:
            await _end_cgroup(cgroup)
            raise
        return ""

    async def _make(self, ask: Message, fds: list[int], wanted: Config, cgroup: str) -> None:
        name, bundle = ask.text(Tag.CONTAINER), Path(ask.text(Tag.CWD, 4096))
        if bool(ask.number_of(Tag.FLAGS) & TERMINAL) != wanted.process.terminal or len(fds) not in (2, 4):
            raise BundleUnsupported("process.terminal and the descriptors do not agree")
        contents = bundles.contents(wanted, bundle)
        layers, (shared, names) = bundles.layers(wanted), bundles.shared(wanted, bundle, name)
        program = self._seccomp(wanted)
        with contextlib.ExitStack() as stack:
            tap_fd, netns, waiter = None, 0, ask.number_of(Tag.STATUS)
            if takes_network := engines.netns(wanted) != engines.NONE:
                netns_fd = _netns_fd(stack, waiter)
                netns = os.fstat(netns_fd).st_ino
            below = bundles.root_is_below(wanted)
            machine = await self._living(wanted, netns)
            joined = machine is not None
            host_cgroups = bundles.cgroups(wanted) or _join_cgroup(cgroup, waiter)
            if machine is not None:
                _check_same_ids(machine, bundles.ids(wanted))
                takes_network = False
                await self._machines.join(machine, name, layers, shared=shared, below=below)
            else:
                if takes_network:
                    tap_fd = await takeover.open_tap(netns_fd)
                    stack.callback(os.close, tap_fd)
                machine = await self._machines.create(
                    name,
                    layers,
                    hostname=wanted.hostname,
                    memory_bytes=bundles.memory(wanted, self._machines.settings.memory_bytes),
                    network=bundles.network(wanted),
                    cgroups=host_cgroups,
                    ids=bundles.ids(wanted),
                    shared=shared,
                    below=below,
                    given_tap_fd=tap_fd,
                    pod=wanted.annotations.get(bundles.POD, ""),
                    more=wanted.annotations.get(bundles.MORE) == "1",
                )
                machine.set_netns(netns)
        try:
            await _restore(machine, name, wanted.annotations.get(bundles.WRITABLE, ""))
            channel = machine.next_channel()
            machine.monitor.attach(channel, fds)
            fields = config.create_fields(wanted, name, channel, contents=contents, seccomp=program, shared=names)
            try:
                await machine.monitor.ask(Kind.CREATE, fields)
            except AgentFailed as error:
                raise _command_error(error) from error
            created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            record = ContainerRecord(
                name,
                str(bundle),
                waiter,
                "created",
                channel,
                created=created,
                annotations=wanted.annotations,
                takes_network=takes_network,
                cgroup=cgroup,
                shares=tuple(one.name for one in shared),
            )
            machine.put(record)
        except BaseException:
            if joined:
                await _leave(machine, name, [one.name for one in shared])
            else:
                await self._machines.end(machine)
            raise

    async def _living(self, wanted: Config, netns: int) -> Machine | None:
        """The machine of the bundle's pod, if it runs: the one that is named, or has taken over the same network.

        So the containers of a pod of Kubernetes' or Podman's share one, and those of ``--network container:NAME``.
        """
        machine = self._machines.get(wanted.annotations.get(bundles.POD, ""))
        if netns:
            machine = next((one for one in self._machines.all() if one.record.netns == netns), None)
        if machine is not None and machine.monitor.ended.is_set():
            # It broke down with all that was in it, whose ends are known.
            await self._machines.end(machine)
            return None
        return machine

    def _seccomp(self, wanted: Config) -> bytes:
        profile = wanted.linux.seccomp
        if not profile:
            return b""
        if self._compiler is None:
            raise BundleUnsupported("the bundle has a seccomp profile, and the host has no libseccomp2 to compile it")
        key = json.dumps(profile, sort_keys=True)
        if key not in self._programs:
            if len(self._programs) >= 16:
                self._programs.clear()
            self._programs[key] = self._compiler.compile(seccomp_oci.normalised(profile))
        return self._programs[key]

    async def _start(self, ask: Message, _fds: list[int]) -> list[Field]:
        machine, one = self._place(ask)
        if one.status != "created":
            raise Conflict(f"container {one.id} is {one.status}, not created")
        if one.takes_network:
            await _take_network(machine, one)
        # Before: an end that is reported at once must find it running.
        machine.set_status(one.id, "running")
        try:
            await machine.monitor.ask(Kind.START, [frames.text(Tag.CONTAINER, one.id)])
        except AgentFailed as error:
            machine.set_status(one.id, "created")
            raise _command_error(error) from error
        return _hooks_after(one, "poststart")

    async def _exec(self, ask: Message, fds: list[int]) -> str:
        machine, one = self._place(ask)
        if one.status != "running":
            raise Conflict(f"container {one.id} is {one.status}, not running")
        document = next((field.value for field in ask.fields if field.tag == Tag.PROCESS), None)
        process = read_process(document) if document is not None else _plain_process(ask)
        terminal = bool(ask.number_of(Tag.FLAGS) & TERMINAL)
        if len(fds) != (2 if terminal else 4) or (process.terminal and not terminal):
            raise BundleUnsupported("process.terminal and the descriptors do not agree")
        process = msgspec.structs.replace(process, terminal=terminal)
        channel = machine.next_channel()
        machine.monitor.attach(channel, fds)
        fields = [
            *config.process_fields(process, channel),
            frames.text(Tag.CONTAINER, one.id),
            frames.text(Tag.PROCESS, f"x{channel}"),
            frames.u32(Tag.NAMESPACES, config.EXEC_NAMESPACES),
        ]
        wanted = bundles.read(Path(one.bundle))
        if program := self._seccomp(wanted):
            fields.append(Field(Tag.SECCOMP, program))
        try:
            await machine.monitor.ask(Kind.EXEC, fields)
        except AgentFailed as error:
            raise _command_error(error) from error
        return ""

    async def _state(self, ask: Message, _fds: list[int]) -> str:
        _, one = self._place(ask)
        return json.dumps(_state(one))

    async def _list(self, ask: Message, _fds: list[int]) -> str:
        found = [one for machine in self._machines.all() for one in machine.record.containers]
        if ask.text(Tag.TEXT) == "json":
            return json.dumps([_state(one) | {"created": one.created} for one in found])
        rows = [f"{one.id}\t{one.pid}\t{one.status}\t{one.bundle}\t{one.created}" for one in found]
        return "\n".join(["ID\tPID\tSTATUS\tBUNDLE\tCREATED", *rows])

    async def _kill(self, ask: Message, _fds: list[int]) -> str:
        machine, one = self._place(ask)
        number = number_of(ask.text(Tag.SIGNAL))
        every = ask.number_of(Tag.FLAGS) & ALL
        if one.status == "stopped":
            if every:
                return ""
            # containerd's shim takes these words for "gone already", and any others for a failure.
            raise Conflict(f"container {one.id} is stopped: container not running")
        flags = config.ALL_PROCESSES if every else 0
        fields = [frames.text(Tag.CONTAINER, one.id), frames.u32(Tag.SIGNAL, number), frames.u32(Tag.FLAGS, flags)]
        if number == _KILL and one.status == "paused":
            await machine.monitor.ask(Kind.THAW, [frames.text(Tag.CONTAINER, one.id)])
        await machine.monitor.ask(Kind.SIGNAL, fields)
        return ""

    async def _delete(self, ask: Message, _fds: list[int]) -> str | list[Field]:
        force = ask.number_of(Tag.FLAGS) & FORCE
        try:
            machine, one = self._place(ask)
        except MachineMissing:
            if force:
                return ""
            raise
        if one.status in ("running", "paused") and not force:
            raise Conflict(f"container {one.id} is {one.status}; stop it first, or use --force")
        after = _hooks_after(one, "poststop")
        machine.drop(one.id)
        if not machine.record.containers:
            await self._machines.end(machine)
        else:
            await _leave(machine, one.id, one.shares)
        await _end_cgroup(one.cgroup)
        return after

    async def _pause(self, ask: Message, _fds: list[int]) -> str:
        machine, one = self._place(ask)
        if one.status != "running":
            raise Conflict(f"container {one.id} is {one.status}, not running")
        await machine.monitor.ask(Kind.FREEZE, [frames.text(Tag.CONTAINER, one.id)])
        machine.set_status(one.id, "paused")
        return ""

    async def _resume(self, ask: Message, _fds: list[int]) -> str:
        machine, one = self._place(ask)
        if one.status != "paused":
            raise Conflict(f"container {one.id} is {one.status}, not paused")
        await machine.monitor.ask(Kind.THAW, [frames.text(Tag.CONTAINER, one.id)])
        machine.set_status(one.id, "running")
        return ""

    async def _events(self, ask: Message, _fds: list[int]) -> str:
        machine, one = self._place(ask)
        reply = await machine.monitor.ask(Kind.STATS, [frames.text(Tag.CONTAINER, one.id)])
        return reports.event(one.id, guestrows.usage(reply))

    async def _update(self, ask: Message, _fds: list[int]) -> str:
        machine, one = self._place(ask)
        document = ask.text(Tag.PROCESS, 64 << 10)
        limits = limit_fields(reports.wanted(document, ask.texts(Tag.LIMIT)))
        if limits:
            await machine.monitor.ask(Kind.LIMITS, [frames.text(Tag.CONTAINER, one.id), *limits])
        return ""

    async def _ps(self, ask: Message, _fds: list[int]) -> str:
        machine, one = self._place(ask)
        reply = await machine.monitor.ask(Kind.STATS, [frames.text(Tag.CONTAINER, one.id)])
        pids = [int(word) for word in _stat(reply, "cgroup.procs").split() if word.isdigit()][:4096]
        if ask.text(Tag.TEXT) == "json":
            return json.dumps(pids)
        return "\n".join(["PID", *(str(pid) for pid in pids)])


async def _leave(machine: Machine, container: str, names: Sequence[str]) -> None:
    """Take *container* out of a machine that goes on with others, or has just ended with them."""
    if machine.monitor.ended.is_set():
        return
    with contextlib.suppress(AgentFailed, MonitorFailed):
        await machine.monitor.ask(Kind.REMOVE, [frames.text(Tag.CONTAINER, container)])
    await shares.detach(machine.qemu, names)


async def _restore(machine: Machine, container: str, path: str) -> None:
    """Put back what the container wrote before it was stopped, before anything of it runs."""
    if not path:
        return
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        await copying.copy(machine, container, "restore", "/", number)
    finally:
        os.close(number)


def _netns_fd(stack: contextlib.ExitStack, pid: int) -> int:
    """The network namespace of the waiter *pid*, which must not be our own."""
    try:
        number = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NetworkFailed(f"the network namespace of process {pid}: {error.strerror}") from error
    stack.callback(os.close, number)
    if os.fstat(number).st_ino == Path("/proc/self/ns/net").stat().st_ino:
        raise BundleUnsupported("the bundle's network namespace is the host's, which a virtual machine cannot share")
    return number


def _check_same_ids(machine: Machine, ids: Ids | None) -> None:
    """Containers that share a machine share its map of users."""
    if machine.record.ids is not None and machine.record.ids != (ids or SAME_IDS):
        raise BundleUnsupported("the container's id mappings are not those of the machine that it would join")


def _join_cgroup(path: str, waiter: int) -> tuple[str, ...]:
    """The engine's cgroup on the host, with the waiter in it: where its figures are read. What the machine joins."""
    if not path:
        return ()
    found = hierarchy.detect()
    found.create(path)
    found.join(path, waiter)
    return tuple(found.folders(path))


async def _end_cgroup(path: str) -> None:
    if path:
        with contextlib.suppress(CasemateError):
            await cgroups.end(hierarchy.detect(), path)


async def _take_network(machine: Machine, one: ContainerRecord) -> None:
    with contextlib.ExitStack() as stack:
        found = await takeover.take(_netns_fd(stack, one.pid))
    # Nothing found: the guest's card goes down, and only loopback is left.
    await machine.monitor.ask(Kind.NETWORK, [] if found is None else found.fields(), error=NetworkFailed)


def _hooks_after(one: ContainerRecord, stage: Literal["poststart", "poststop"]) -> list[Field]:
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


def _stat(reply: Message, name: str) -> str:
    prefix = name.encode() + b"\0"
    for field in reply.fields:
        if field.tag == Tag.STAT and field.value.startswith(prefix):
            return field.value[len(prefix) :].decode("ascii", "replace")
    return ""


def _state(one: ContainerRecord) -> dict[str, object]:
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


def _plain_process(ask: Message) -> Process:
    """What ``exec ID COMMAND`` means without a document: root without capabilities, as runc does it."""
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    uid, _, gid = (ask.text(Tag.UID) or "0").partition(":")
    if not (uid.isdigit() and (gid or "0").isdigit() and len(uid) < 11 and len(gid) < 11):
        raise BundleUnsupported(f"user {ask.text(Tag.UID)!r}: --user takes UID or UID:GID")
    user = User(uid=int(uid), gid=int(gid or 0))
    env = (path, *ask.texts(Tag.ENV))
    return Process(args=tuple(ask.texts(Tag.ARG)), env=env, cwd=ask.text(Tag.CWD, 4096) or "/", user=user)


def _command_error(error: AgentFailed) -> CasemateError:
    """The words by which engines tell "not found" and "not executable" from other failures."""
    if error.facts.get("step") != "execve":
        return error
    number = error.facts.get("errno")
    assert isinstance(number, int)
    words = "executable file not found in $PATH" if number == errno.ENOENT else os.strerror(number).lower()
    return AgentFailed(f"exec: {words}", errno=number)


async def run(machines: Machines, compiler: Compiler | None, path: Path) -> None:
    """Recover, then serve until cancelled; the machines stay."""
    await machines.recover()
    try:
        with listening(path) as server:
            await Service(machines, compiler).serve(server)
    except asyncio.CancelledError:
        machines.forget()
        raise


@contextlib.contextmanager
def listening(path: Path) -> Generator[socket.socket]:
    """The service's socket at *path*, root's alone."""
    server = seqpacket.listen(path, mode=0o600)
    try:
        yield server
    finally:
        server.close()
