"""Layers for tests: made by the same program that makes real ones (``tar2sqfs``)."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest


def entry(
    name: str, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, **fields: object
) -> tuple[tarfile.TarInfo, bytes]:
    """A tar entry with the given TarInfo fields."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def make_tar(entries: Sequence[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """An uncompressed tar of *entries*."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def stage_layer(staging: Path, entries: Sequence[tuple[tarfile.TarInfo, bytes]]) -> str:
    """A squashfs file in *staging* named by its digest, which is returned."""
    if shutil.which("tar2sqfs") is None:
        pytest.skip("missing: tar2sqfs (squashfs-tools-ng)")
    staging.mkdir(parents=True, exist_ok=True)
    path = staging / "new.sqfs"
    subprocess.run(["tar2sqfs", "-q", "-c", "lz4", str(path)], input=make_tar(entries), check=True, timeout=60)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.rename(staging / f"{digest}.sqfs")
    return digest
