"""Taps: interfaces whose other end is a descriptor (Linux, Documentation/networking/tuntap.rst)."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

_TUNSETIFF, _TUNSETPERSIST = 0x4004_54CA, 0x4004_54CB
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
DEVICE = "/dev/net/tun"


def open_tap(name: str) -> int:
    """A descriptor of the tap *name*, made when it is not there; the caller closes it. Raises ``OSError``.

    A tap that was made here goes with its last descriptor, unless :func:`make_tap` made it.
    """
    number = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(number, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    except BaseException:
        os.close(number)
        raise
    return number


def is_tap(name: str) -> bool:
    """Whether the interface *name* is a tap (or a tun): the kernel shows its flags in sysfs."""
    return Path(f"/sys/class/net/{name}/tun_flags").exists()


def make_tap(name: str) -> None:
    """Make the tap *name*, to stay until it is deleted: whoever opens it later finds it configured. ``OSError``."""
    number = open_tap(name)
    try:
        fcntl.ioctl(number, _TUNSETPERSIST, 1)
    finally:
        os.close(number)
