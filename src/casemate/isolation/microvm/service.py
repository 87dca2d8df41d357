"""What casemate-vm asks: the OCI runtime operations over the machines. One message, one answer; root's alone."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import socket
import traceback
import uuid
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from typing import Any

import msgspec

from casemate.host import seqpacket
from casemate.isolation import seccomp_ranges
from casemate.isolation.microvm import (
    answers,
    bundles,
    config,
    devicerules,
    engines,
    frames,
    guestrows,
    making,
    reports,
    resolver,
    seccomp_enosys,
    seccomp_oci,
)
from casemate.isolation.microvm.errors import (
    AgentFailed,
    BundleUnsupported,
    MachineMissing,
    MonitorFailed,
)
from casemate.isolation.microvm.frames import Field, Kind, Message, Tag
from casemate.isolation.microvm.inside import limit_fields
from casemate.isolation.microvm.kernelsignals import number_of
from casemate.isolation.microvm.machine import Machine
from casemate.isolation.microvm.machines import Machines
from casemate.isolation.microvm.oci import Config, read_config, read_process
from casemate.isolation.microvm.records import ContainerRecord
from casemate.isolation.seccomp_compile import Compiler
from casemate.spec.errors import CasemateError, Conflict

log = logging.getLogger("casemate.hostd")

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
        machines.filter = lambda wanted: b"" if compiler is None else self._seccomp(wanted)
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
            # In one line: of a runtime's words its supervisor's reader keeps the last.
            words = " | ".join(f"{error.detail} ({error.code})".splitlines())
        except OSError as error:
            number, words = error.errno or errno.EIO, str(error)
        except Exception as error:
            # A bundle that nobody thought of is its own engine's trouble, and not that of every other container.
            trace = uuid.uuid4().hex[:16]
            log.error("casemate-vm was not served, trace %s\n%s", trace, "".join(traceback.format_exception(error)))
            words = f"casemate-hostd failed; trace {trace} in its journal ({CasemateError.code})"
        text = words.encode("utf-8", "replace")[:_MAX_ANSWER_BYTES]
        return frames.encode(Kind.REPLY, 1, [frames.u32(Tag.ERRNO, number), *(more or [Field(Tag.TEXT, text)])])

    def _place(self, ask: Message) -> tuple[Machine, ContainerRecord]:
        name = ask.text(Tag.CONTAINER)
        machine = self._machines.find(name)
        if machine is not None:
            # An engine whose supervisor saw the container end may ask before the machine's own word is heard.
            machine.monitor.catch_up()
        one = machine.container(name) if machine is not None else None
        root = ask.text(Tag.ROOT, 4096)
        if machine is None or one is None or (root and one.root and one.root != root):
            raise MachineMissing(f"container {name!r} does not exist", container=name)
        return machine, one

    async def _prepare(self, ask: Message, _fds: list[int]) -> list[Field]:
        name, bundle = config.check_id(ask.text(Tag.CONTAINER)), ask.text(Tag.CWD, 4096)
        return engines.prepared(name, bundle, bundles.read(Path(bundle), ask.text(Tag.TEXT, 4096)))

    async def _create(self, ask: Message, fds: list[int]) -> str:
        name = config.check_id(ask.text(Tag.CONTAINER))
        bundle = Path(ask.text(Tag.CWD, 4096))
        if self._machines.find(name) is not None:
            raise Conflict(f"container {name} exists: container with given ID already exists")
        document = bundles.document(bundle, ask.text(Tag.TEXT, 4096))
        wanted = read_config(document)
        engines.check_hooks(wanted.hooks)
        cgroup = engines.cgroup_path(wanted, f"{self._machines.settings.cgroup_parent}/{name}")
        others = making.has_cgroup(self._machines, cgroup)
        if not others:
            making.check_cgroup(cgroup)
        try:
            if bool(ask.number_of(Tag.FLAGS) & TERMINAL) != wanted.process.terminal or len(fds) not in (2, 4):
                raise BundleUnsupported("process.terminal and the descriptors do not agree")
            waiter, program = ask.number_of(Tag.STATUS), self._seccomp(wanted)
            root = ask.text(Tag.ROOT, 4096)
            order = making.Order(name, bundle, wanted, waiter, fds, program, cgroup, root, document)
            await making.make(self._machines, order)
        except BaseException:
            if not others:
                await making.end_cgroup(cgroup, self._machines.settings.cgroup_parent)
            raise
        return ""

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
            known = seccomp_oci.normalised(profile)
            program = self._compiler.compile(known)
            if seccomp_enosys.applies(known):
                program = seccomp_enosys.before(program, self._compiler.largest(known))
            self._programs[key] = seccomp_ranges.shorter(program)
        return self._programs[key]

    async def _start(self, ask: Message, _fds: list[int]) -> list[Field]:
        machine, one = self._place(ask)
        if one.status != "created":
            raise Conflict(f"container {one.id} is {one.status}, not created")
        if one.takes_network:
            await making.take_network(machine, one)
            if resolver.is_asked(bundles.of(machine.folder, one.id, one.bundle), Path(one.bundle)):
                await resolver.begin(machine, one, self._machines.settings.shim)
        # Before: an end that is reported at once must find it running.
        machine.set_status(one.id, "running")
        try:
            await machine.monitor.ask(Kind.START, [frames.text(Tag.CONTAINER, one.id)])
        except AgentFailed as error:
            machine.set_status(one.id, "created")
            raise answers.command_error(error) from error
        except MonitorFailed as error:
            await machine.explain(error)
            raise
        return answers.hooks_after(machine.folder, one, "poststart")

    async def _exec(self, ask: Message, fds: list[int]) -> str:
        machine, one = self._place(ask)
        answers.check_can_exec(one, ignore_paused=bool(ask.number_of(Tag.FLAGS) & answers.IGNORE_PAUSED))
        wanted = bundles.of(machine.folder, one.id, one.bundle)
        document = next((field.value for field in ask.fields if field.tag == Tag.PROCESS), None)
        process = read_process(document) if document is not None else answers.plain_process(ask, wanted.process)
        terminal = bool(ask.number_of(Tag.FLAGS) & TERMINAL)
        if len(fds) != (2 if terminal else 4) or (process.terminal and not terminal):
            raise BundleUnsupported("process.terminal and the descriptors do not agree")
        process = msgspec.structs.replace(process, terminal=terminal)
        channel = machine.next_channel()
        machine.monitor.attach(channel, fds)
        fields = [
            *config.process_fields(process, channel, stdin=terminal or not answers.is_null(fds[0])),
            frames.text(Tag.CONTAINER, one.id),
            frames.text(Tag.PROCESS, f"x{channel}"),
            frames.u32(Tag.NAMESPACES, config.EXEC_NAMESPACES),
        ]
        if program := self._seccomp(wanted):
            fields += config.seccomp_fields(wanted.linux.seccomp, program)
        try:
            await machine.monitor.ask(Kind.EXEC, fields)
        except AgentFailed as error:
            machine.monitor.catch_up()
            raise answers.exec_error(error, machine.container(one.id) or one) from error
        return ""

    async def _state(self, ask: Message, _fds: list[int]) -> str:
        _, one = self._place(ask)
        return json.dumps(answers.state(one))

    async def _list(self, ask: Message, _fds: list[int]) -> str:
        found = [one for machine in self._machines.all() for one in machine.record.containers]
        root = ask.text(Tag.ROOT, 4096)
        return answers.listed([one for one in found if not root or one.root == root], ask.text(Tag.TEXT))

    async def _kill(self, ask: Message, _fds: list[int]) -> str:
        machine, one = self._place(ask)
        word = ask.text(Tag.SIGNAL)
        number = 0 if word == "0" else number_of(word)
        every = ask.number_of(Tag.FLAGS) & ALL
        if one.status == "stopped":
            return _nobody_left(one, every=bool(every))
        if not number:
            return ""  # kill(2): whether there is anybody
        flags = config.ALL_PROCESSES if every else 0
        fields = [frames.text(Tag.CONTAINER, one.id), frames.u32(Tag.SIGNAL, number), frames.u32(Tag.FLAGS, flags)]
        if number == _KILL and one.status == "paused":
            await machine.monitor.ask(Kind.THAW, [frames.text(Tag.CONTAINER, one.id)])
        try:
            await machine.monitor.ask(Kind.SIGNAL, fields)
        except CasemateError as error:
            if error.facts.get("errno") != errno.ESRCH and not machine.monitor.ended.is_set():
                raise
            # It ended, alone or with its machine, while this was on its way; its end is on the way to us.
            return _nobody_left(one, every=bool(every))
        return ""

    async def _delete(self, ask: Message, _fds: list[int]) -> str | list[Field]:
        force = ask.number_of(Tag.FLAGS) & FORCE
        try:
            machine, one = self._place(ask)
        except MachineMissing:
            if force:
                await self._machines.early.abandon(ask.text(Tag.CONTAINER))
                return ""
            raise
        if one.status in ("running", "paused") and not force:
            raise Conflict(f"container {one.id} is {one.status}; stop it first, or use --force (not stopped)")
        after = answers.hooks_after(machine.folder, one, "poststop")
        machine.drop(one.id)
        bundles.forget(machine.folder, one.id)
        if not machine.record.containers and not machine.starting:
            await self._machines.end(machine)
        else:
            await making.leave(machine, one.id, one.shares)
        # That of the first is the machine's, too, for as long as there is one.
        for cgroup in {machine.record.cgroup, one.cgroup}:
            if not making.has_cgroup(self._machines, cgroup):
                await making.end_cgroup(cgroup, self._machines.settings.cgroup_parent)
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
        # As it came: what ask.text would replace (the end of a line) is part of JSON.
        document = next((field.value for field in ask.fields if field.tag == Tag.PROCESS), b"")
        wanted = reports.resources(document, ask.texts(Tag.LIMIT))
        limits = [*limit_fields(reports.in_guest(wanted)), *config.file_fields(config.unified(wanted.unified))]
        if limits := [*limits, *devicerules.fields(wanted.devices, replace=True)]:
            await machine.monitor.ask(Kind.LIMITS, [frames.text(Tag.CONTAINER, one.id), *limits])
        if one.cgroup:
            await making.limit_on_host(one.cgroup, wanted, one.annotations)
        return ""

    async def _ps(self, ask: Message, _fds: list[int]) -> str:
        machine, one = self._place(ask)
        if ask.text(Tag.TEXT) == "json":
            # Engines look these up among the host's processes, where those of the guest are not.
            return "null" if one.status == "stopped" else json.dumps([one.pid])
        answers.check_form(ask.text(Tag.TEXT), "table")
        if one.status == "stopped":
            return answers.process_table([])
        reply = await machine.monitor.ask(Kind.TOP, [frames.text(Tag.CONTAINER, one.id)])
        return answers.process_table(guestrows.processes(reply))


def _nobody_left(one: ContainerRecord, *, every: bool) -> str:
    """The answer to a signal for a container that has ended: all of nobody have it, or :class:`Conflict`."""
    if every:
        return ""
    # containerd's shim takes these words for "gone already", and any others for a failure; so does our own driver.
    raise Conflict(f"container {one.id} is stopped: container not running")


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
