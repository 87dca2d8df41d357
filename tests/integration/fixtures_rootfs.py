"""A small root file system for tests that run containers: Debian's static busybox as one squashfs layer.

`busybox_layer` answers the path of the squashfs file and its sha256; built once for each user of this machine and
kept below the temporary folder (2 MiB). Skips, naming what is missing, where neither the package nor apt is there.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

#: Not split() of a literal: the linter would write one long line.
_NAMES = """
    [ arch ash cat chmod chown cp cut date dd df dmesg echo env expr false find grep head hostname httpd id ifconfig ip
    kill ln ls mkdir mkfifo mknod mount mv nc netstat nslookup od ping printf ps pwd readlink rm route sed seq sh sleep
    sort stat stty sync tail tar tee test top touch tr true tty umount uname unshare wc wget which yes
"""
_APPLETS = _NAMES.split()
_FILES = {
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\nalice:x:1000:1000::/home/alice:/bin/sh\n"
    ),
    "etc/group": "root:x:0:\ntty:x:5:\nalice:x:1000:\nnobody:x:65534:\n",
    "data/seed": "from the image\n",
    "bin/notexec": "plain text\n",
}
_FOLDERS = ("bin", "data", "dev", "etc", "home", "home/alice", "proc", "root", "run", "sys", "tmp", "usr", "var")


def _cache() -> Path:
    place = Path(tempfile.gettempdir()) / f"casemate-test-rootfs-{os.getuid()}"
    place.mkdir(exist_ok=True, mode=0o755)
    return place


@functools.cache
def busybox() -> Path:
    """The static busybox of Debian's package ``busybox-static``."""
    kept = _cache() / "busybox"
    if kept.exists():
        return kept
    if shutil.which("apt-get") is None:
        pytest.skip("busybox-static: no apt-get to get it with")
    with tempfile.TemporaryDirectory(dir=_cache()) as scratch:
        done = subprocess.run(["apt-get", "download", "busybox-static"], cwd=scratch, capture_output=True, check=False)
        packages = list(Path(scratch).glob("busybox-static_*.deb"))
        if not packages:
            pytest.skip(f"busybox-static cannot be downloaded: {done.stderr.decode()[-200:]}")
        subprocess.run(["dpkg-deb", "-x", str(packages[0]), f"{scratch}/x"], check=True)
        part = kept.with_suffix(f".{os.getpid()}")
        shutil.copy(f"{scratch}/x/bin/busybox", part)
        part.rename(kept)
    return kept


def root_tar() -> bytes:
    """A tar of the root file system, owned by root but for alice's home."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in _FOLDERS:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            entry.uid = entry.gid = 1000 if name.endswith("alice") else 0
            tar.addfile(entry)
        data = busybox().read_bytes()
        entry = tarfile.TarInfo("bin/busybox")
        entry.size, entry.mode = len(data), 0o755
        tar.addfile(entry, io.BytesIO(data))
        for name in _APPLETS:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        for name, text in _FILES.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text), 0o644
            tar.addfile(entry, io.BytesIO(text.encode()))
    return out.getvalue()


@functools.cache
def busybox_layer() -> tuple[Path, str]:
    """(squashfs file, sha256 in hexadecimal) of the layer."""
    if shutil.which("tar2sqfs") is None:
        pytest.skip("tar2sqfs is not installed (Debian package squashfs-tools-ng)")
    tar = root_tar()
    kept = _cache() / f"{hashlib.sha256(tar).hexdigest()[:16]}.sqfs"
    if not kept.exists():
        part = kept.with_suffix(f".{os.getpid()}")
        command = ["tar2sqfs", "--quiet", "--compressor", "lz4", "--force", str(part)]
        subprocess.run(command, input=tar, check=True, capture_output=True)
        part.rename(kept)
    return kept, hashlib.sha256(kept.read_bytes()).hexdigest()
