"""Whether KVM boots a guest here: found by booting one, in the jail, for at most three seconds.

That /dev/kvm is there says little: on hosts that are guests themselves QEMU starts with it and the guest never leaves
its firmware, or spins for ever. The answer is kept in hostd's run folder for this boot, this kernel, this QEMU and this
guest kernel; whatever is wrong, machines are emulated, and the reason is said wherever a level is described.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from casemate.host import durable
from casemate.isolation import observe
from casemate.isolation.microvm import argv, disks
from casemate.isolation.microvm.kernel import GuestKernel
from casemate.isolation.microvm.monitor import Launch, Monitor
from casemate.spec.errors import CasemateError

DEVICE = Path("/dev/kvm")
#: Of the probe's monitor, below the run folder.
SOCKET = "kvm-probe.sock"
#: A guest boots with working KVM in 0.3 s.
PROBE_TIMEOUT_S, _END_WAIT_S = 3.0, 1.0
_KEPT_BYTES = 16 << 10
_MEMORY_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class Accelerated:
    """How machines run, and why so."""

    accelerator: argv.Accelerator
    reason: str


@dataclass(frozen=True, slots=True)
class Probe:
    """What a probe needs: hostd's *run* folder, casemate-vm, QEMU, the guest's kernel, and a *uid* for the jail."""

    run: Path
    shim: str
    qemu: str
    kernel: GuestKernel
    uid: int
    timeout_s: float = PROBE_TIMEOUT_S
    device: Path = DEVICE


async def choose(wanted: str, probe: Probe) -> Accelerated:
    """The accelerator for ``microvm.accelerator`` = *wanted* (auto, kvm or tcg). Never raises, never hangs."""
    if wanted == "tcg":
        return Accelerated(argv.Accelerator("tcg"), "microvm.accelerator is tcg")
    if wanted == "kvm":
        return Accelerated(argv.Accelerator("kvm"), "microvm.accelerator is kvm, so it was not tried")
    if not probe.device.exists():
        return Accelerated(argv.Accelerator("tcg"), f"there is no {probe.device}")
    key = _key(probe)
    kept = probe.run / "accelerator.json"
    failure = _load(kept, key)
    if failure is None:
        failure = await _try(probe)
        durable.write_atomic(kept, json.dumps({"key": key, "failure": failure}).encode(), sync=False)
    if failure:
        return Accelerated(argv.Accelerator("tcg"), failure)
    return Accelerated(argv.Accelerator("kvm"), "a guest booted with it")


def _key(probe: Probe) -> list[str]:
    """What makes a kept answer void when it changes."""
    status = Path(probe.qemu).stat()
    qemu = f"{probe.qemu} {status.st_ino} {status.st_size} {status.st_mtime_ns}"
    return [observe.boot_id(), os.uname().release, qemu, probe.kernel.digest]


def _load(kept: Path, key: list[str]) -> str | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, CasemateError):
        document = json.loads(durable.read_bounded(kept, _KEPT_BYTES))
        if document["key"] == key and isinstance(document["failure"], str):
            return document["failure"]
    return None


async def _try(probe: Probe) -> str:
    """Boot a guest with KVM; empty when its agent said that it is ready, else what happened instead."""
    opened: list[int] = []
    try:
        memory = os.memfd_create("casemate-kvm-probe", os.MFD_CLOEXEC)
        opened.append(memory)
        os.ftruncate(memory, _MEMORY_BYTES)
        for path in (probe.kernel.kernel, probe.kernel.initramfs):
            opened.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        monitor = await Monitor.start(_launch(probe, opened))
    except (OSError, CasemateError) as error:
        return f"the probe of KVM could not be started: {error}"
    finally:
        for number in opened:
            os.close(number)
    async with asyncio.TaskGroup() as group:
        group.create_task(monitor.serve())
        try:
            return await _watch(monitor, probe.timeout_s)
        finally:
            # The monitor is QEMU's parent and takes it along; a guest that spins ends by KILL.
            monitor.quit()
            await monitor.wait(_END_WAIT_S)
            monitor.leave()


async def _watch(monitor: Monitor, timeout_s: float) -> str:
    async with asyncio.TaskGroup() as group:
        both = [group.create_task(one.wait()) for one in (monitor.ready, monitor.ended)]
        await asyncio.wait(both, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for one in both:
            one.cancel()
    if monitor.ready.is_set():
        return ""
    tail = (await monitor.tail())[-200:]
    if monitor.ended.is_set():
        return f"QEMU ended with KVM before a guest had booted; it said {tail}"
    return f"with KVM no guest booted within {timeout_s:g} s; its console: {tail}"


def _launch(probe: Probe, opened: list[int]) -> Launch:
    first = argv.FIRST_PASSED_FD
    jail = probe.run / "jail"
    jail.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Launch(
        shim=probe.shim,
        qemu=probe.qemu,
        switches=(
            argv.Machine(),
            argv.Accelerator("kvm"),
            argv.Memory(_MEMORY_BYTES, first, shared=True),
            argv.Plain(),
            argv.Kernel(first + 1, first + 2, argv.kernel_command_line(None)),
            argv.Layers(disks.null_node()),
            argv.Port(),
            argv.Network(),
        ),
        fds={first + index: number for index, number in enumerate(opened)},
        socket=probe.run / SOCKET,
        uid=probe.uid,
        gid=probe.uid,
        jail=jail,
        writes=True,
        kvm=True,
    )
