"""What hostd asks of a gVisor sandbox beside the OCI's commands.

runsc's words are not the guest's: a program of the host prints them. But what stands in them (a command's name) the
container chose, so every size is bounded and another form is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import re
import shutil
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from casemate.host import cgroups, durable, programs, syscalls
from casemate.host.netns import in_own_thread
from casemate.isolation.bundle import BundleInput
from casemate.isolation.gvisor import driver
from casemate.isolation.launcher import Launcher
from casemate.isolation.level import InnerProcess, InnerUsage, LevelUnavailable, Runtime, SandboxPaused, is_lone
from casemate.spec.errors import CasemateError, Corrupt
from casemate.spec.workload import ContainerSpec, PodSpec, Resources

_STATE_BYTES = 4 << 20
_CLONE_FS = 0x200  # sched.h
_MAX_ROWS, _MAX_COMMAND = 1000, 512
_MAX_STOPPED = 64
_COLUMNS = ("UID", "PID", "PPID", "C", "TTY", "STIME", "TIME", "CMD")
_ANSWER_BYTES, _TIMEOUT_S = 1 << 20, 20.0
#: A process takes 5 KiB and its arguments, its environment and the names of its files.
_DUMP_BYTES = 8 << 20
_TIME = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?\Z")


class Launch(Protocol):
    """Gives the launcher for runsc's ``start``, or for its other commands."""

    def __call__(self, *, starting: bool) -> Launcher: ...


@dataclass(frozen=True, slots=True)
class Rest:
    """What sandboxes of several need: *folder* for their bundles, *program*, casemate-vm, which rests in them,
    *pids*, how many processes one has room for (its pod may have less)."""

    folder: Path
    program: Path
    launcher: Launch
    pids: int


class AnswerBroken(Corrupt):
    code = "isolation.gvisor_answer"
    title = "runsc answered what nobody understands"
    remedy = "Another version of runsc may: see runtime.gvisor; `casemate system doctor` shows the one in use."


class GvisorInside:
    """The sandboxes of one host. *group*: a container's cgroup by its pod's id and its own."""

    def __init__(self, runtime: Runtime, hierarchy: cgroups.Cgroups, parent: str, rest: Rest | None = None) -> None:
        self._runtime, self._cgroups, self._parent, self._rest = runtime, hierarchy, parent, rest
        #: What ran in sandboxes that were then stopped as a whole, the latest last.
        self._stopped: dict[str, list[InnerProcess]] = {}

    def _state(self, container: str) -> Path:
        root = Path(self._runtime.root)
        alone = root / f"{container}_sandbox:{container}.state"
        if alone.exists():
            return alone
        return next(iter(root.glob(f"{container}_sandbox:*.state")), alone)

    def knows(self, container: str) -> bool:
        found = self._read(container).get("sandbox")
        pid = found.get("pid") if isinstance(found, dict) else None
        name = found.get("id") if isinstance(found, dict) else None
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return words[0] == b"runsc-sandbox" and str(name).encode() in words

    def is_paused(self, container: str) -> bool:
        if (Path(self._runtime.root) / f"{container}.paused").exists():
            return True
        group = self._group(container)
        return group is not None and self._cgroups.exists(group) and self._cgroups.is_frozen(group)

    def _read(self, container: str) -> dict[str, Any]:
        try:
            value = json.loads(durable.read_bounded(self._state(container), _STATE_BYTES))
        except (OSError, ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    def _group(self, container: str) -> str | None:
        """The cgroup that the sandbox is in, as its bundle named it."""
        spec = self._read(container).get("spec")
        linux = spec.get("linux") if isinstance(spec, dict) else None
        path = linux.get("cgroupsPath") if isinstance(linux, dict) else None
        found = str(path).strip("/")
        if not isinstance(path, str) or not found.startswith(f"{self._parent}/"):
            return None
        return driver.sandbox_group(found.rpartition("/")[0]) if self._has_joined(container) else found

    def ending(self, container: str) -> str:
        group = self._group(container)
        if group is None or not self._cgroups.exists(group) or not self._cgroups.stats(group).pids_refused:
            return ""
        return (
            f"the host refused the sandbox more tasks than {self._cgroups.stats(group).pids_limit}: what ran in it "
            "started more processes than --pids-limit gives room for, and it ended as a whole"
        )

    def was_oom(self, container: str) -> bool:
        group = self._group(container)
        return bool(group and self._cgroups.exists(group) and self._cgroups.stats(group).oom_kills)

    async def reserve(self, pod: PodSpec, container: ContainerSpec | None, interface: str) -> str:  # noqa: ARG002
        """None waits."""
        return ""

    async def enter(self, given: BundleInput) -> None:
        """Make the sandbox of a pod of several, and start it, where it does not run."""
        rest, pod = self._rest, given.pod.id
        if rest is None or is_lone(given.pod, given.container):
            return
        if self.knows(pod):
            return
        self._forget(pod)
        folder = rest.folder / pod
        program = _rest_root(rest)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o711, parents=True)
        (folder / "config.json").write_text(json.dumps(driver.resting(given, str(program.parent), f"/{program.name}")))
        create = [self._runtime.program, *self._runtime.global_arguments, "create", "--bundle", str(folder), pod]
        try:
            await rest.launcher(starting=False).run(create)
            bound = driver.OWN_TASKS + driver.PROCESS_TASKS * rest.pids
            self._cgroups.set_limits(driver.sandbox_group(given.sandbox.cgroup), cgroups.Limits(pids=bound))
            await rest.launcher(starting=True).run(self._runtime.start(pod))
        except BaseException:
            await self.leave(given.pod, given.sandbox.cgroup)
            raise

    async def leave(self, pod: PodSpec, group: str) -> None:
        """End the sandbox of a pod of several, which none of them is in any more. May be repeated."""
        if self._rest is None or not (self._rest.folder / pod.id).exists():
            return
        await cgroups.end(self._cgroups, driver.sandbox_group(group))
        self._forget(pod.id)

    def _forget(self, pod: str) -> None:
        for path in self._runtime.state_files(pod):
            Path(path).unlink(missing_ok=True)
        if self._rest is not None:
            shutil.rmtree(self._rest.folder / pod, ignore_errors=True)

    async def created(self, container: ContainerSpec) -> None:
        """Make the root read-only where it is to be: in the gofer's mount namespace, from outside.

        runsc would do it by a remount that drops ``nodev``, which the kernel keeps a user namespace from doing.
        """
        if not container.read_only:
            return
        with self.files(container.id) as found:
            if found is None:
                raise LevelUnavailable(f"container {container.id[:12]}: its gofer ended while it was created")
            namespace, root = found
            await in_own_thread(lambda: _make_read_only(namespace, root))

    async def prepare(self, pod: PodSpec, container: ContainerSpec) -> list[str]:  # noqa: ARG002 - of the Protocol
        return []

    @contextlib.contextmanager
    def files(self, container: str) -> Generator[tuple[int, int] | None]:
        """Those of the gofer: it is what serves the container's files, with its volumes and binds."""
        pid = self._read(container).get("goferPid")
        opened: list[int] = []
        try:
            if isinstance(pid, int) and pid > 0:
                with contextlib.suppress(OSError):
                    opened.append(os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC))
                    opened.append(os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            # Looked at after opening: the descriptors are of that process, and of no later one with its number.
            is_ours = len(opened) == 2 and _is_gofer(pid, container)
            yield (opened[0], opened[1]) if is_ours else None
        finally:
            for number in opened:
                os.close(number)

    async def pausing(self, container: str) -> None:
        """A sandbox that is stopped as a whole answers nothing: what ran in it is what runs in it until it goes on."""
        self._stopped.pop(container, None)
        with contextlib.suppress(CasemateError):
            self._stopped[container] = await self.processes(container)
        while len(self._stopped) > _MAX_STOPPED:
            self._stopped.pop(next(iter(self._stopped)))

    def _is_stopped(self, container: str) -> bool:
        """Whether the whole sandbox is (its runsc would wait for ever), and not the one container in it."""
        group = self._group(container)
        return group is not None and self._cgroups.exists(group) and self._cgroups.is_frozen(group)

    async def processes(self, container: str) -> list[InnerProcess]:
        """With command lines where runsc has them (``trace procfs``, of 2022 and later) and they are not too long.

        Of a sandbox that is stopped, what ran when it was; :class:`SandboxPaused` where an earlier hostd stopped it.
        """
        if self._is_stopped(container):
            if container not in self._stopped:
                raise SandboxPaused(f"container {container[:12]} was paused before casemate-hostd started")
            return self._stopped[container]
        try:
            async with asyncio.TaskGroup() as group:
                rows = group.create_task(self._rows(container))
                lines = group.create_task(self._command_lines(container))
        except ExceptionGroup as errors:
            # What went wrong, and not that it did so among tasks: who asked is told it.
            raise errors.exceptions[0] from errors
        return named(rows.result(), lines.result())

    async def _rows(self, container: str) -> list[InnerProcess]:
        argv = [self._runtime.program, *self._runtime.global_arguments, "ps", "-format", "table", container]
        done = await programs.run(argv, timeout_s=_TIMEOUT_S, max_output_bytes=_ANSWER_BYTES)
        return read_processes(done.stdout, time.time())

    async def _command_lines(self, container: str) -> dict[int, str]:
        found = self._read(container).get("sandbox")
        sandbox = found.get("id") if isinstance(found, dict) else None
        argv = [self._runtime.program, *self._runtime.global_arguments, "trace", "procfs", str(sandbox)]
        try:
            done = await programs.run(argv, timeout_s=_TIMEOUT_S, max_output_bytes=_DUMP_BYTES)
        except CasemateError:
            return {}
        return read_command_lines(done.stdout)

    async def usage(self, container: str) -> InnerUsage:
        group = self._group(container)
        figures = self._cgroups.stats(group) if group else cgroups.Stats()
        inside = self._stopped.get(container, []) if self._is_stopped(container) else await self._rows(container)
        return InnerUsage(
            cpu_ns=figures.cpu_usage_ns or 0,
            memory_bytes=max(0, (figures.memory_bytes or 0) - (figures.memory_cache_bytes or 0)),
            memory_limit_bytes=figures.memory_limit_bytes or 0,
            pids=len(inside),
            pids_limit=max(0, ((figures.pids_limit or 0) - driver.OWN_TASKS) // driver.PROCESS_TASKS),
            read_bytes=figures.io_read_bytes or 0,
            write_bytes=figures.io_write_bytes or 0,
        )

    async def update(self, container: str, resources: Resources) -> list[str]:
        """Nothing to do beside the container's cgroup, which holds the whole sandbox; unless several share it."""
        return list(driver.not_its_own(resources)) if self._has_joined(container) else []

    def _has_joined(self, container: str) -> bool:
        return not self._state(container).name.endswith(f":{container}.state")


def _rest_root(rest: Rest) -> Path:
    """The program in a root of its own, beside nothing else; copied when it is not this one."""
    here = rest.folder / "root" / "casemate-vm"
    wanted = rest.program.stat()
    with contextlib.suppress(OSError):
        status = here.stat()
        if (status.st_size, status.st_mtime_ns) == (wanted.st_size, wanted.st_mtime_ns):
            return here
    for place in (rest.folder, here.parent):
        place.mkdir(mode=0o711, parents=True, exist_ok=True)
        place.chmod(0o755)
    new = here.with_suffix(".new")
    shutil.copy2(rest.program, new)
    new.chmod(0o755)
    new.rename(here)
    return here


def _make_read_only(namespace: int, root: int) -> None:
    """Runs in a thread of its own, which alone enters the namespace."""
    syscalls.unshare(_CLONE_FS)
    syscalls.setns(namespace, syscalls.CLONE_NEWNS)
    syscalls.mount_setattr(root, set_attributes=syscalls.MOUNT_ATTR_RDONLY)


def _is_gofer(pid: object, container: str) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return words[0] == b"runsc-gofer" and any(word.endswith(b"/" + container.encode()) for word in words)


def read_processes(data: bytes, now: float) -> list[InnerProcess]:
    """What ``runsc ps`` printed as a table; raises :class:`AnswerBroken` when it is none.

    A process's name is its own choice and may hold a line's end: what is no row is passed over.
    """
    lines = data.decode("utf-8", "replace").split("\n")
    if tuple(lines[0].split()) != _COLUMNS:
        raise AnswerBroken(f"runsc ps began with {lines[0][:200]!r}")
    found = []
    for line in lines[1 : _MAX_ROWS + 1]:
        words = line.split(None, len(_COLUMNS) - 1)
        with contextlib.suppress(ValueError):
            if len(words) == len(_COLUMNS):
                found.append(_process(words, now))
    return found


def read_command_lines(data: bytes) -> dict[int, str]:
    """Process id to arguments in what ``runsc trace procfs`` printed: an object on each line; others are passed over.

    The arguments are the container's own words: another form is no row, and no error.
    """
    found: dict[int, str] = {}
    for line in data.split(b"\n")[: 4 * _MAX_ROWS]:
        with contextlib.suppress(ValueError, RecursionError):
            one = json.loads(line)
            words, status = (one.get("args"), one.get("status")) if isinstance(one, dict) else (None, None)
            pid = status.get("pid") if isinstance(status, dict) else None
            if isinstance(words, list) and isinstance(pid, int) and all(isinstance(word, str) for word in words):
                # Half of a surrogate pair can stand in JSON, and in no answer of ours.
                found[pid] = " ".join(words)[:_MAX_COMMAND].encode("utf-8", "replace").decode()
    return found


def named(rows: list[InnerProcess], lines: dict[int, str]) -> list[InnerProcess]:
    """*rows* with their command lines, where they are known and not empty."""
    return [dataclasses.replace(one, command=lines.get(one.pid) or one.command) for one in rows]


def _process(words: list[str], now: float) -> InnerProcess:
    uid, pid, ppid, _cpu, tty, started, time_, command = words
    return InnerProcess(
        pid=_number(pid),
        ppid=_number(ppid),
        uid=_number(uid),
        cpu_ns=int(_seconds(time_) * 1e9),
        started_at=_started(started, now),
        tty=tty[:32],
        command=command[:_MAX_COMMAND],
    )


def _number(text: str) -> int:
    """A number of 32 bits; ``ValueError`` for anything else."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10) or int(text) > 0xFFFF_FFFF:
        raise ValueError(text)
    return int(text)


def _seconds(text: str) -> float:
    """Go's form of a duration: ``1h2m3s``, ``20ms``, ``0s``; 0 for another."""
    found = _TIME.match(text[:40])
    if found is None:
        return 0.0
    hours, minutes, seconds, milliseconds = (float(part) if part else 0.0 for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


def _started(text: str, now: float) -> float:
    """``15:04`` of the last 24 hours, UTC, as seconds since the epoch; *now* for another form."""
    found = re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)", text)
    if found is None:
        return now
    today = now - now % 86_400
    at = today + int(found[1]) * 3600 + int(found[2]) * 60
    return at if at <= now else at - 86_400


def default_root(run_folder: Path) -> str:
    """Where runsc keeps its state: short, since a socket's path is in it."""
    return os.fspath(run_folder / "runsc")
