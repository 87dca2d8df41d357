"""Platforms: that of this host, the one that was asked for, and what this host can run."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from casemate.image import manifest
from casemate.image.records import Platform
from casemate.node.errors import PlatformForeign, PlatformOther
from casemate.spec.errors import InvalidArgument

#: Architectures in Go's words, by the kernel's (uname -m); those after the first run on the same processor.
_NATIVE = {
    "x86_64": ("amd64", "386"),
    "i686": ("386",),
    "aarch64": ("arm64", "arm"),
    "armv7l": ("arm",),
    "ppc64le": ("ppc64le",),
    "s390x": ("s390x",),
    "riscv64": ("riscv64",),
}
#: QEMU's names where they are not Go's.
_QEMU = {"amd64": "x86_64", "386": "i386", "arm64": "aarch64"}
BINFMT = Path("/proc/sys/fs/binfmt_misc")


def parse_platform(text: str | None) -> Platform:
    """``linux/arm64/v8``, ``arm64``; None is this host's."""
    if text is None:
        machine = os.uname().machine
        return Platform(architecture=_NATIVE.get(machine, (machine,))[0])
    wanted = manifest.parse_platform(text)
    if wanted.os != "linux":
        raise InvalidArgument(f"platform {text[:64]!r} is not linux/ARCHITECTURE[/VARIANT]")
    return wanted


def check_asked(found: Platform, asked: str | None, reference: str) -> None:
    """Raises :class:`PlatformOther` when *asked* names another platform than the image's; None takes any.

    Variants are not compared: a pull takes the highest one that the asked one can run.
    """
    if asked is None:
        return
    wanted = parse_platform(asked)
    if (wanted.os, wanted.architecture) != (found.os, found.architecture):
        raise PlatformOther(
            f"the image that {reference} names here is for {found}, not {wanted}",
            remedy=f"`casemate pull --platform {wanted} {reference}` fetches that one; the name is then its.",
            platform=str(found), wanted=str(wanted),
        )  # fmt: skip


async def check_runs(found: Platform, reference: str, folder: Path = BINFMT) -> None:
    """Raises :class:`PlatformForeign` when this host's kernel cannot execute the image's programs."""
    machine = os.uname().machine
    if found.os == "linux" and found.architecture in _NATIVE.get(machine, (machine,)):
        return
    if found.os == "linux" and await asyncio.to_thread(_is_emulated, folder, found.architecture):
        return
    raise PlatformForeign(
        f"{reference} is for {found}; this host is {parse_platform(None)}, and no interpreter is registered for it",
        platform=str(found),
    )


def _is_emulated(folder: Path, architecture: str) -> bool:
    """Whether binfmt_misc has an interpreter that the kernel holds open (flag F): containers have none inside."""
    try:
        lines = (folder / f"qemu-{_QEMU.get(architecture, architecture)}").read_text().splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags:")), "")
    return lines[:1] == ["enabled"] and "F" in flags
