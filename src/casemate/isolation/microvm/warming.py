"""What a waiting machine runs before it waits: a container of ours, made, started and removed as a user's is.

The nearer it is to what a user's is by default (capabilities, seccomp, files, limits, an address), the more of the way
is translated (decision 0123). Its only program is casemate-vm itself, static, which says its version. Nothing of it
stays in the guest but pages of the kernel's code that the emulator has translated.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import shutil
import socket
import struct
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path

from casemate.host import programs
from casemate.isolation import oci, seccomp
from casemate.isolation.microvm import config, disks, frames
from casemate.isolation.microvm.errors import AgentFailed
from casemate.isolation.microvm.frames import Field, Kind, Message, Tag
from casemate.isolation.microvm.monitor import Monitor
from casemate.isolation.microvm.oci import (
    Config,
    Linux,
    MemoryLimit,
    Mount,
    Namespace,
    Pids,
    Process,
    Resources,
    User,
)
from casemate.isolation.microvm.tap import GuestNetwork
from casemate.spec import capabilities

#: The agent knows the name (guest/agent/rootfs.c).
NAME = "casemate.warm"
REHEARSAL = "casemate.rehearsal"
_TIMEOUT_S = 30.0
_MOUNTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "/proc": ("proc", ("nosuid", "noexec", "nodev")),
    "/dev": ("tmpfs", ("nosuid", "strictatime", "mode=755", "size=64k")),
    "/dev/pts": ("devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")),
    "/dev/shm": ("tmpfs", ("nosuid", "noexec", "nodev", "mode=1777", "size=67108864")),
    "/dev/mqueue": ("mqueue", ("nosuid", "noexec", "nodev")),
    "/sys": ("sysfs", ("nosuid", "noexec", "nodev", "ro")),
    "/sys/fs/cgroup": ("cgroup", ("nosuid", "noexec", "nodev", "relatime", "ro")),
}
_SETS = ("bounding", "effective", "permitted")
WANTED = Config(
    process=Process(
        args=("warm", "--version"),
        env=("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",),
        cwd="/",
        user=User(),
        capabilities=dict.fromkeys(_SETS, capabilities.DEFAULT_SET),
        no_new_privileges=True,
        oom_score_adj=0,
    ),
    mounts=tuple(Mount(target, kind, kind, options) for target, (kind, options) in _MOUNTS.items()),
    hostname="casemate",
    linux=Linux(
        namespaces=tuple(Namespace(kind) for kind in ("pid", "ipc", "uts", "mount", "cgroup")),
        masked=oci.MASKED_PATHS,
        read_only=oci.READONLY_PATHS,
        resources=Resources(pids=Pids(4096), memory=MemoryLimit(32 << 20)),
        seccomp=seccomp.profile(frozenset(capabilities.DEFAULT_SET), "x86_64"),
    ),
)
_FILES = tuple(config.Content(f"/etc/{name}", 0o644, b"\n") for name in ("hosts", "resolv.conf", "hostname"))
#: Of a network for documentation (RFC 5737); the agent takes it away when the container is removed.
NETWORK = GuestNetwork(
    "", ipaddress.IPv4Interface("192.0.2.2/32"), ipaddress.IPv4Address("192.0.2.1"), "02:00:00:00:00:02"
)


async def make_layer(folder: Path, program: Path) -> Path:
    """The layer with *program* as ``/bin/warm``, below *folder*, made when it is not there."""
    status = os.stat(program)  # noqa: PTH116 - one look at a local file
    path = folder / f"warm2-{status.st_size}-{status.st_mtime_ns}.sqfs"
    if os.access(path, os.R_OK):
        return path
    os.makedirs(folder, exist_ok=True, mode=0o700)  # noqa: PTH103
    with tempfile.TemporaryDirectory(dir=folder) as text:
        root = Path(text) / "root"
        for name in ("proc", "dev", "sys", "etc", "bin"):
            (root / name).mkdir(parents=True)
        (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n", "ascii")
        shutil.copyfile(program, root / "bin/casemate-vm")
        (root / "bin/casemate-vm").chmod(0o755)
        # By a link, as most of an image's programs are found.
        (root / "bin/warm").symlink_to("casemate-vm")
        made = Path(text) / "warm.sqfs"
        argv = ["gensquashfs", "-q", "-c", "lz4", "--all-root", "--pack-dir", str(root), str(made)]
        await programs.run(argv, timeout_s=_TIMEOUT_S, max_output_bytes=4096)
        made.rename(path)
    return path


async def run(monitor: Monitor, channel: int, layer: disks.Extent, program: bytes) -> None:
    """Run the container over the layer at *layer* on *channel* and remove it; *program*: the seccomp filter of
    :data:`WANTED`. Raises the error of the step that failed.
    """
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def hear(message: Message) -> None:
        if message.kind is Kind.EXITED and message.text(Tag.CONTAINER) == NAME and not ended.done():
            ended.set_result(None)

    place = Field(Tag.LAYER, struct.pack("<QQ", layer.start, layer.sectors))
    container = frames.text(Tag.CONTAINER, NAME)
    before, monitor.on_event = monitor.on_event, hear
    try:
        await monitor.ask(Kind.ROOTFS, [container, place])
        with _files(monitor, channel):
            fields = config.create_fields(WANTED, NAME, channel, contents=_FILES, seccomp=program)
            await monitor.ask(Kind.CREATE, fields)
            await monitor.ask(Kind.START, [container])
            async with asyncio.timeout(_TIMEOUT_S):
                await ended
        await monitor.ask(Kind.REMOVE, [container])
        # What the pool asks of it before it is given away.
        await monitor.ask(Kind.PROCESSES, [])
    except TimeoutError as error:
        raise AgentFailed(f"the warming container did not end within {_TIMEOUT_S:g} s") from error
    finally:
        monitor.on_event = before


def rehearsal(program: bytes) -> list[Field]:
    """The container of a rehearsal (guest/agent/rehearsal.c): the same, under another name and on nobody's channel."""
    return config.create_fields(WANTED, REHEARSAL, 1, contents=_FILES, seccomp=program)


@contextlib.contextmanager
def _files(monitor: Monitor, channel: int) -> Generator[None]:
    """Standard files that nobody reads, and a socket for the exit code."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    with ours:
        try:
            monitor.attach(channel, (null, null, null, theirs.fileno()))
        finally:
            os.close(null)
            theirs.close()
        yield
