"""Templates: a guest booted once, saved when its agent is ready, cloned ever after.

A template is keyed by everything that goes into it. Its files are verified while they are copied into sealed memory,
from which all clones are mapped: what is verified cannot change any more, not even by a monitor that was broken into.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

from casemate.host import durable
from casemate.host.netns import in_own_thread
from casemate.isolation.microvm import argv, configuring, disks, sparse, warming
from casemate.isolation.microvm.errors import TemplateFailed
from casemate.isolation.microvm.frames import Kind
from casemate.isolation.microvm.kernel import GuestKernel
from casemate.isolation.microvm.monitor import Launch, Monitor
from casemate.isolation.microvm.sparse import TemplateDamaged
from casemate.spec.errors import CasemateError, DiskFull, LimitExceeded

FORMAT = 5
_AT_A_TIME = 2
#: 7 s under emulation on an idle host, several times that on a loaded one.
BOOT_TIMEOUT_S, SAVE_TIMEOUT_S = 90.0, 30.0
_SETTLE_S = 0.5
#: Below the run folder, the sockets of monitors whose guest becomes a template.
SOCKETS = "template-*.sock"
#: Of what is rehearsed: far from those that a clone begins with.
_CHANNELS = (0xFFFE, 0xFFFF)
#: Of a manifest (300 bytes), and of a machine's state without its memory (100 kB).
_MANIFEST_BYTES, _STATE_BYTES = 64 << 10, 64 << 20


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what a template is. *qemu_version* and *tsc_khz* change with the host."""

    kernel: GuestKernel
    qemu_version: str
    accelerator: argv.Accelerator
    memory_bytes: int
    cpus: int = 1
    tsc_khz: int | None = None
    #: Whose it is, where each project has its own; empty: everybody's.
    owner: str = ""
    #: Network cards: a clone has as many as its template.
    cards: int = 1

    def key(self) -> str:
        """The template's name: a digest of all of it."""
        # The counter's rate is measured: rounded to 0.1 %, so that a restart finds its template.
        khz = None if self.tsc_khz is None else round(self.tsc_khz, -4)
        parts = [
            FORMAT,
            self.kernel.digest,
            self.qemu_version,
            self.memory_bytes,
            self.cpus,
            khz,
            argv.argv("qemu", self.switches(0)),
            argv.kernel_command_line(khz, self.cpus),
            *([self.owner] if self.owner else ()),
            *([["cards", self.cards]] if self.cards > 1 else ()),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def switches(self, memory_fd: int, *, shared: bool = True) -> tuple[argv.Switch, ...]:
        """What template and clone have in common, in this order: QEMU's devices must be the same."""
        memory = argv.Memory(self.memory_bytes, memory_fd, shared, self.cpus)
        return (argv.Machine(), self.accelerator, memory, argv.Plain())


@dataclass(frozen=True, slots=True)
class Template:
    """One in memory: sealed descriptors of the guest's memory and of the machine's state."""

    recipe: Recipe
    memory_fd: int
    state_fd: int

    def close(self) -> None:
        os.close(self.memory_fd)
        os.close(self.state_fd)


class Templates:
    """The templates of one host, below *folder*. Made on first need, two at a time at most."""

    def __init__(
        self, folder: Path, run: Path, *, shim: str, qemu: str, uid: int, program: Callable[[], bytes] = bytes
    ) -> None:
        """*program*: the seccomp filter of the container that is rehearsed in a template."""
        self._program = program
        self._folder, self._run, self._shim, self._qemu, self._uid = folder, run, shim, qemu, uid
        self._loaded: dict[str, Template] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        #: A template and the one with a rehearsal are wanted together: each boots on a processor of its own.
        self._slots = asyncio.Semaphore(_AT_A_TIME)
        self._making, self._held = 0, -1

    async def get(self, recipe: Recipe) -> Template:
        """The template of *recipe*, made when there is none. Raises :class:`TemplateFailed`, :class:`DiskFull`."""
        key = recipe.key()
        if key in self._loaded:
            # Whoever has its template does not wait for another one to be made.
            return self._loaded[key]
        async with self._locks.setdefault(key, asyncio.Lock()), self._slots:
            if key in self._loaded:
                return self._loaded[key]
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._between_processes():
                try:
                    template = await in_own_thread(lambda: self._load(recipe, key), timeout_s=SAVE_TIMEOUT_S)
                except (OSError, TemplateDamaged):
                    shutil.rmtree(self._folder / key, ignore_errors=True)
                    await self._build(recipe, key)
                    template = await in_own_thread(lambda: self._load(recipe, key), timeout_s=SAVE_TIMEOUT_S)
            self._loaded[key] = template
            return template

    def exists(self, recipe: Recipe) -> bool:
        """Whether there is a template of *recipe*, read or not."""
        key = recipe.key()
        return key in self._loaded or (self._folder / key / "manifest.json").is_file()

    def ready(self, recipe: Recipe) -> Template | None:
        """The template of *recipe* if it is in memory."""
        return self._loaded.get(recipe.key())

    def names(self) -> list[str]:
        """The keys of the templates on disk."""
        return sorted(path.name for path in self._folder.glob("*") if (path / "manifest.json").is_file())

    def prune(self) -> list[str]:
        """Remove every template; what runs keeps its memory. Answers what went."""
        gone = self.names()
        for name in gone:
            shutil.rmtree(self._folder / name, ignore_errors=True)
        for leftover in self._folder.glob(".*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        for template in self._loaded.values():
            template.close()
        self._loaded.clear()
        return gone

    @contextlib.contextmanager
    def _between_processes(self) -> Generator[None, None, None]:
        """Of several processes one makes templates; it holds the file until the last of its own is made."""
        if not self._making:
            number = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(number)
                raise TemplateFailed("another process makes a template now") from error
            except BaseException:
                os.close(number)
                raise
            self._held = number
        self._making += 1
        try:
            yield
        finally:
            self._making -= 1
            if not self._making:
                os.close(self._held)

    def _load(self, recipe: Recipe, key: str) -> Template:
        folder = self._folder / key
        try:
            manifest = json.loads(durable.read_bounded(folder / "manifest.json", _MANIFEST_BYTES))
            wanted = {name: manifest[name] for name in ("memory", "state")}
        except (ValueError, KeyError, TypeError, RecursionError, LimitExceeded) as error:
            raise TemplateDamaged(f"template {key}: {error}") from error
        opened: list[int] = []
        try:
            for name, digest in wanted.items():
                most = recipe.memory_bytes if name == "memory" else _STATE_BYTES
                opened.append(sparse.sealed(folder / name, digest, most))
        except BaseException:
            for number in opened:
                os.close(number)
            raise
        return Template(recipe, opened[0], opened[1])

    async def _build(self, recipe: Recipe, key: str) -> None:
        """Boot, wait for the agent, save; written beside and renamed, so that half a template is never seen."""
        memory = os.memfd_create("casemate-template", os.MFD_CLOEXEC)
        state = os.memfd_create("casemate-state", os.MFD_CLOEXEC)
        try:
            os.ftruncate(memory, recipe.memory_bytes)
            await self._boot(recipe, key, memory, state)
            await in_own_thread(lambda: self._write(key, memory, state), timeout_s=SAVE_TIMEOUT_S)
        except OSError as error:
            raise DiskFull(f"template {key}: {error.strerror}") from error
        finally:
            os.close(memory)
            os.close(state)

    async def _boot(self, recipe: Recipe, key: str, memory: int, state: int) -> None:
        first = argv.FIRST_PASSED_FD
        layer = await warming.make_layer(self._folder, Path(self._shim))
        kernel = os.open(recipe.kernel.kernel, os.O_RDONLY | os.O_CLOEXEC)
        initramfs = os.open(recipe.kernel.initramfs, os.O_RDONLY | os.O_CLOEXEC)
        jail = self._run / "jail"
        jail.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Empty while it boots, when the guest looks for partitions, and as large as a clone's, which it asks for once.
        device = os.memfd_create("casemate-rehearsed", os.MFD_CLOEXEC)
        os.ftruncate(device, argv.DISK_SECTORS * disks.SECTOR_BYTES)
        launch = Launch(
            shim=self._shim,
            qemu=self._qemu,
            switches=_switches(recipe, first),
            fds={first: memory, first + 1: kernel, first + 2: initramfs, first + 3: device},
            socket=self._run / SOCKETS.replace("*", key[:8]),
            uid=self._uid,
            gid=self._uid,
            jail=jail,
            writes=True,
            kvm=recipe.accelerator.kind == "kvm",
        )
        try:
            monitor = await Monitor.start(launch)
        except BaseException:
            os.close(device)
            raise
        finally:
            os.close(kernel)
            os.close(initramfs)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(monitor.serve())
                try:
                    await _until_ready(monitor)
                    await self._rehearse(monitor, device, layer.read_bytes())
                    if recipe.cpus > 1:
                        fields = warming.rehearsal(self._program())
                        await monitor.ask(Kind.REHEARSE, fields, error=TemplateFailed)
                    await asyncio.sleep(_SETTLE_S)
                    await _save(monitor, state)
                finally:
                    monitor.quit()
                    await monitor.wait(5.0)
                    launch.socket.unlink(missing_ok=True)
        except ExceptionGroup as errors:
            # What went wrong, and not that it did so among tasks: who asked is told it.
            raise errors.exceptions[0] from errors
        finally:
            os.close(device)

    async def _rehearse(self, monitor: Monitor, device: int, layer: bytes) -> None:
        """Run a container of ours over *layer*, put on *device*: what the kernel makes when it does something for the
        first time (slabs, percpu chunks, patched branches) is then in the template, and no clone makes it."""
        os.pwrite(device, layer, 0)
        extent = disks.extents([(device, len(layer))])[0]
        for channel in _CHANNELS:
            await monitor.ask(Kind.CONFIGURE, configuring.fields("casemate", warming.NETWORK))
            await warming.run(monitor, channel, extent, self._program())

    def _write(self, key: str, memory: int, state: int) -> None:
        temporary = self._folder / f".{key}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(mode=0o700)
        manifest: dict[str, object] = {"format": FORMAT, "made_at": time.time()}
        try:
            for name, number in (("memory", memory), ("state", state)):
                manifest[name] = sparse.copy_out(number, temporary / name)
            durable.write_atomic(temporary / "manifest.json", json.dumps(manifest).encode())
            temporary.rename(self._folder / key)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        durable.sync_folder(self._folder)


def _switches(recipe: Recipe, first: int) -> tuple[argv.Switch, ...]:
    """Of a boot: from *first* on the descriptors of memory, kernel, initramfs and the layers' device."""
    return (
        *recipe.switches(first),
        argv.Kernel(first + 1, first + 2, argv.kernel_command_line(recipe.tsc_khz, recipe.cpus)),
        argv.Layers(disks.layer_node(disks.Extent(0, argv.DISK_SECTORS, first + 3))),
        argv.Scratch(disks.no_scratch()),
        argv.Port(),
        argv.Network(),
        argv.Shares(),
        *(argv.Network(number=number) for number in range(1, recipe.cards)),
    )


async def _until_ready(monitor: Monitor) -> None:
    try:
        async with asyncio.timeout(BOOT_TIMEOUT_S), asyncio.TaskGroup() as group:
            ready, ended = group.create_task(monitor.ready.wait()), group.create_task(monitor.ended.wait())
            await asyncio.wait((ready, ended), return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()
            ended.cancel()
    except TimeoutError as error:
        tail = await monitor.tail()
        raise TemplateFailed(f"no word of the agent within {BOOT_TIMEOUT_S:g} s; console: {tail}") from error
    if not monitor.ready.is_set():
        raise TemplateFailed(f"the guest ended while it booted; console: {await monitor.tail()}")


async def _save(monitor: Monitor, state: int) -> None:
    """The device state into *state*; memory is in the shared file already (capability x-ignore-shared)."""
    await qmp(monitor, "qmp_capabilities")
    capability = {"capability": "x-ignore-shared", "state": True}
    await qmp(monitor, "migrate-set-capabilities", {"capabilities": [capability]})
    await qmp(monitor, "getfd", {"fdname": "state"}, [state])
    # Not stopped before: the state would say "paused", and every clone would wait to be told to go on.
    await qmp(monitor, "migrate", {"uri": "fd:state"})
    async with asyncio.timeout(SAVE_TIMEOUT_S):
        while True:
            answer = await qmp(monitor, "query-migrate")
            match answer.get("status"):
                case "completed":
                    return
                case "failed" | "cancelled":
                    raise TemplateFailed(f"QEMU could not save the machine: {answer.get('error-desc', '')}")
                case _:
                    pass  # "setup", "active", "device": it goes on
            await asyncio.sleep(0.05)


async def qmp(
    monitor: Monitor, command: str, arguments: Mapping[str, object] | None = None, fds: list[int] | None = None
) -> dict[str, object]:
    """One QMP command and its answer; events and the greeting are passed over. Used with trusted guests only."""
    body: dict[str, object] = {"execute": command}
    if arguments is not None:
        body["arguments"] = dict(arguments)
    monitor.send_qmp(json.dumps(body).encode(), fds or ())
    pending = b""
    try:
        async with asyncio.timeout(SAVE_TIMEOUT_S):
            while True:
                pending += await monitor.qmp.get()
                *lines, pending = pending.split(b"\n")
                for line in lines:
                    answer = json.loads(line) if line.strip() else {}
                    if "error" in answer:
                        raise TemplateFailed(f"QEMU refused {command}: {str(answer['error'])[:300]}")
                    if "return" in answer:
                        value = answer["return"]
                        return value if isinstance(value, dict) else {}
    except TimeoutError as error:
        raise TemplateFailed(f"QEMU did not answer {command}") from error
    except (ValueError, RecursionError, AttributeError) as error:
        raise TemplateFailed(f"QEMU answered {command} with what is no JSON") from error


__all__ = ["CasemateError", "Recipe", "Template", "TemplateDamaged", "Templates"]
