"""What a waiting machine runs before it waits: a container of ours, made, started and removed as a user's is.

Its only program is casemate-vm itself, static, which says its version. Nothing of it stays in the guest but pages of
the kernel's code that the emulator has translated.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import struct
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path

from casemate.host import programs
from casemate.isolation.microvm import config, disks, frames
from casemate.isolation.microvm.errors import AgentFailed
from casemate.isolation.microvm.frames import Field, Kind, Message, Tag
from casemate.isolation.microvm.machine import Machine
from casemate.isolation.microvm.oci import Config, Linux, Mount, Namespace, Process, User

#: The agent knows the name (guest/agent/rootfs.c).
NAME = "casemate.warm"
_TIMEOUT_S = 30.0
_MOUNTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "/proc": ("proc", ("nosuid", "noexec", "nodev")),
    "/dev": ("tmpfs", ("nosuid", "strictatime", "mode=755", "size=64k")),
    "/dev/pts": ("devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")),
    "/dev/shm": ("tmpfs", ("nosuid", "noexec", "nodev", "mode=1777", "size=67108864")),
    "/dev/mqueue": ("mqueue", ("nosuid", "noexec", "nodev")),
    "/sys": ("sysfs", ("nosuid", "noexec", "nodev", "ro")),
}
_WANTED = Config(
    process=Process(args=("/warm", "--version"), cwd="/", user=User()),
    mounts=tuple(Mount(target, kind, kind, options) for target, (kind, options) in _MOUNTS.items()),
    hostname="casemate",
    linux=Linux(
        namespaces=tuple(Namespace(kind) for kind in ("pid", "ipc", "uts", "mount", "cgroup")),
        masked=("/proc/kcore", "/proc/keys"),
        read_only=("/proc/sys",),
    ),
)


async def make_layer(folder: Path, program: Path) -> Path:
    """The layer with *program* as ``/warm``, below *folder*, made when it is not there."""
    status = os.stat(program)  # noqa: PTH116 - one look at a local file
    path = folder / f"warm-{status.st_size}-{status.st_mtime_ns}.sqfs"
    if os.access(path, os.R_OK):
        return path
    os.makedirs(folder, exist_ok=True, mode=0o700)  # noqa: PTH103
    with tempfile.TemporaryDirectory(dir=folder) as text:
        root = Path(text) / "root"
        for name in ("proc", "dev", "sys", "etc"):
            (root / name).mkdir(parents=True)
        shutil.copyfile(program, root / "warm")
        (root / "warm").chmod(0o755)
        made = Path(text) / "warm.sqfs"
        argv = ["gensquashfs", "-q", "-c", "lz4", "--all-root", "--pack-dir", str(root), str(made)]
        await programs.run(argv, timeout_s=_TIMEOUT_S, max_output_bytes=4096)
        made.rename(path)
    return path


async def run(machine: Machine, layer: disks.Extent) -> None:
    """Run the container over the layer at *layer* and remove it. Raises the error of the step that failed."""
    monitor = machine.monitor
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def hear(message: Message) -> None:
        if message.kind is Kind.EXITED and message.text(Tag.CONTAINER) == NAME and not ended.done():
            ended.set_result(None)

    place = Field(Tag.LAYER, struct.pack("<QQ", layer.start, layer.sectors))
    container = frames.text(Tag.CONTAINER, NAME)
    before, monitor.on_event = monitor.on_event, hear
    try:
        await monitor.ask(Kind.ROOTFS, [container, place])
        channel = machine.next_channel()
        with _files(machine, channel):
            fields = config.create_fields(_WANTED, NAME, channel, contents=(), seccomp=b"")
            await monitor.ask(Kind.CREATE, fields)
            await monitor.ask(Kind.START, [container])
            async with asyncio.timeout(_TIMEOUT_S):
                await ended
        await monitor.ask(Kind.REMOVE, [container])
    except TimeoutError as error:
        raise AgentFailed(f"the warming container did not end within {_TIMEOUT_S:g} s") from error
    finally:
        monitor.on_event = before


@contextlib.contextmanager
def _files(machine: Machine, channel: int) -> Generator[None]:
    """Standard files that nobody reads, and a socket for the exit code."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    with ours:
        try:
            machine.monitor.attach(channel, (null, null, null, theirs.fileno()))
        finally:
            os.close(null)
            theirs.close()
        yield
