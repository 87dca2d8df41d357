"""What a bundle on disk brings: its configuration, its layers, and the small files that are copied into the guest."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from casemate.host import durable
from casemate.isolation.microvm import tap
from casemate.isolation.microvm.config import MAX_FILE_BYTES, Content
from casemate.isolation.microvm.errors import BundleUnsupported
from casemate.isolation.microvm.oci import MAX_CONFIG_BYTES, Config, read_config
from casemate.isolation.microvm.tap import GuestNetwork
from casemate.spec.errors import LimitExceeded

#: Layers as squashfs files, the uppermost first, separated by colons: what our own driver writes.
LAYERS = "org.casemate.layers"
#: The pod: containers that name the same one share a machine.
POD = "org.casemate.pod"
#: Bytes of guest memory.
MEMORY = "org.casemate.memory"
#: The pod's tap and the guest's end of it (:func:`casemate.isolation.microvm.tap.parse`); without it: loopback alone.
NETWORK = "org.casemate.network"
MAX_LAYERS = 127


def read(bundle: Path) -> Config:
    """The bundle's configuration. :class:`BundleUnsupported`."""
    try:
        return read_config(durable.read_bounded(bundle / "config.json", MAX_CONFIG_BYTES))
    except (OSError, LimitExceeded) as error:
        raise BundleUnsupported(f"{bundle}/config.json: {error}") from error


def layers(config: Config) -> tuple[Path, ...]:
    """The container's layers, uppermost first. Checked to be absolute paths; opened by the caller."""
    text = config.annotations.get(LAYERS, "")
    found = tuple(Path(part) for part in text.split(":") if part)
    if not found:
        raise BundleUnsupported(f"the bundle has no annotation {LAYERS}: a root folder of the host is not shared yet")
    if len(found) > MAX_LAYERS or not all(path.is_absolute() for path in found):
        raise BundleUnsupported(f"{LAYERS}: {len(found)} layers, allowed are {MAX_LAYERS} absolute paths")
    return found


def network(config: Config) -> GuestNetwork | None:
    """The guest's network, when the bundle names one. :class:`BundleUnsupported`."""
    text = config.annotations.get(NETWORK, "")
    return tap.parse(text) if text else None


def contents(config: Config, bundle: Path) -> list[Content]:
    """The bind mounts of small regular files, as their content. A folder is refused: :class:`BundleUnsupported`."""
    found = []
    for mount in config.mounts:
        if mount.type != "bind" and "bind" not in mount.options and "rbind" not in mount.options:
            continue
        found.append(_content(bundle / mount.source, mount.destination))
    return found


def _content(source: Path, target: str) -> Content:
    try:
        number = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BundleUnsupported(f"bind mount of {source} at {target}: {error.strerror}") from error
    try:
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
            what = "is larger than 64 KiB" if stat.S_ISREG(status.st_mode) else "is no regular file"
            raise BundleUnsupported(f"bind mount at {target}: {source} {what}; volumes are not shared yet")
        return Content(target, stat.S_IMODE(status.st_mode), os.read(number, MAX_FILE_BYTES))
    finally:
        os.close(number)
