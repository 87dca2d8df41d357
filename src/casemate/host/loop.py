"""Loop devices: one for each image file, configured in one call and released by the kernel with its last user.

LOOP_CONFIGURE (Linux 5.8) sets file, flags and block size at once, so that no half-configured device is ever
seen by udev or by us after a crash; LO_FLAGS_AUTOCLEAR frees the device at the last close or unmount, so a
device that outlives its mount needs nobody to remember it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from casemate.spec.errors import HostLacks

_LOOP_CLR_FD, _LOOP_CONFIGURE, _LOOP_CTL_GET_FREE = 0x4C01, 0x4C0A, 0x4C82
_LO_FLAGS_READ_ONLY, _LO_FLAGS_AUTOCLEAR, _LO_FLAGS_DIRECT_IO = 1, 4, 16
#: struct loop_config: fd, block_size, struct loop_info64 (232 bytes), 8 reserved quads.
_INFO = "=QQQQQIIII64s64s32sQQ"
_CONFIG_BYTES = 8 + struct.calcsize(_INFO) + 64
#: Another process may take the device that LOOP_CTL_GET_FREE named; each try is a fresh one.
_TRIES = 64


class LoopMissing(HostLacks):
    code = "host.loop_missing"
    title = "The host offers no loop device"
    remedy = "Load the module: `modprobe loop`; in a container or VM, pass /dev/loop-control and /dev/loop*."


@dataclass(frozen=True, slots=True)
class LoopDevice:
    """A device in use: its path, the file behind it, and whether that file was unlinked since."""

    device: Path
    backing: str
    deleted: bool


def attach(image_fd: int, *, read_only: bool = True, direct_io: bool = False) -> tuple[int, str]:
    """A loop device over the file of *image_fd*: an open descriptor of it and its path.

    The device lives until that descriptor and every mount of it are closed. Raises :class:`LoopMissing`.
    """
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise LoopMissing(f"/dev/loop-control: {error.strerror}") from error
    flags = _LO_FLAGS_AUTOCLEAR
    flags |= _LO_FLAGS_READ_ONLY if read_only else 0
    flags |= _LO_FLAGS_DIRECT_IO if direct_io else 0
    info = struct.pack(_INFO, 0, 0, 0, 0, 0, 0, 0, 0, flags, b"", b"", b"", 0, 0)
    config = struct.pack("=II", image_fd, 0) + info
    config += bytes(_CONFIG_BYTES - len(config))
    try:
        for _ in range(_TRIES):
            path = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            try:
                device = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
            except OSError as error:
                if error.errno in (errno.EBUSY, errno.ENXIO):
                    continue
                raise LoopMissing(f"{path}: {error.strerror}") from error
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise
                continue
            return device, path
    finally:
        os.close(control)
    raise LoopMissing(f"no loop device became free in {_TRIES} tries")


def devices_below(folder: Path) -> list[LoopDevice]:
    """The loop devices whose backing file lies (or lay, if unlinked) below *folder*."""
    prefix = f"{folder}/"
    found: list[LoopDevice] = []
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            backing = entry.read_text().rstrip("\n")
        except OSError:
            continue  # released in between
        deleted = backing.endswith(" (deleted)")
        backing = backing.removesuffix(" (deleted)")
        if backing.startswith(prefix):
            found.append(LoopDevice(Path("/dev") / entry.parts[3], backing, deleted))
    return sorted(found, key=lambda one: str(one.device))


def detach(device: Path) -> bool:
    """Release *device*; False when it is in use (it then goes with its last user) or already free."""
    try:
        number = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.ioctl(number, _LOOP_CLR_FD)
    except OSError:
        return False
    finally:
        os.close(number)
    return True
