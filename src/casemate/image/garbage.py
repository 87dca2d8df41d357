"""Garbage collection by reachability: look, plan, remove. Light; casemated runs it (in a thread: it only unlinks)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from casemate.image.leases import GC_LOCK, leased_digests, start_time
from casemate.image.store import FOLDERS, Store

#: A partial download is kept for a later pull this long.
INGEST_AGE_S = 24 * 3600
#: A staged file that hostd has not adopted is wanted still when its layer is; otherwise it goes after this.
UPLOAD_AGE_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class Removal:
    """One file that is to go, and why. *freed_bytes* as the file system counts."""

    path: Path
    reason: str
    freed_bytes: int

    def describe(self) -> str:
        return f"remove {self.path} ({self.freed_bytes} bytes): {self.reason}"


@dataclass(frozen=True, slots=True)
class Usage:
    """What the store takes, in bytes on disk."""

    blobs: int
    staging: int
    ingest: int
    other: int


def plan_garbage(store: Store, reachable: Iterable[str], now_s: float | None = None) -> list[Removal]:
    """What may go, given the digests (blobs and diff_ids) that images need; live leases count as need too."""
    leased, dead = leased_digests(store)
    keep = {digest[7:] for digest in reachable} | {digest[7:] for digest in leased}
    now = time.time() if now_s is None else now_s
    wanted_squashfs = set()
    removals = [Removal(store.root / "leases" / name, "its holder is gone", 0) for name in dead]
    for entry in _entries(store, "layers"):
        stem = entry.name.removesuffix(".json")
        if stem in keep:
            with suppress(Exception):  # a damaged record is verify's to report
                record = store.layer_record(f"sha256:{stem}")
                wanted_squashfs.add(record.squashfs_digest[7:] if record else "")
        elif not _temporary_alive(entry.name):
            removals.append(_removal(entry, "no image has this layer"))
    for entry in _entries(store, "blobs/sha256"):
        if entry.name not in keep and not _temporary_alive(entry.name):
            removals.append(_removal(entry, "no image needs this blob"))
    for entry in _entries(store, "evidence"):
        if entry.name.partition("-")[0] not in keep and not _temporary_alive(entry.name):
            removals.append(_removal(entry, "no image has these signatures"))
    for entry in _entries(store, "staging"):
        if entry.name.removesuffix(".sqfs") not in wanted_squashfs and not _temporary_alive(entry.name):
            removals.append(_removal(entry, "no layer has this squashfs file"))
    for entry in _entries(store, "ingest"):
        old = now - entry.stat(follow_symlinks=False).st_mtime > INGEST_AGE_S
        if entry.name not in {digest[7:] for digest in leased} and old and not _temporary_alive(entry.name):
            removals.append(_removal(entry, "a partial download of more than a day ago"))
    for entry in _entries(store, "uploads"):
        if not _temporary_alive(entry.name):
            removals.append(_removal(entry, "its writer is gone"))
        elif now - entry.stat(follow_symlinks=False).st_mtime > UPLOAD_AGE_S:
            removals.append(_removal(entry, "an upload of more than a day ago"))
    removals.extend(_idle_locks(store))
    return removals


def collect_garbage(store: Store, reachable: Iterable[str], now_s: float | None = None) -> list[Removal]:
    """Plan and remove while no lease can be added; what was removed. Safe while jobs run."""
    with store.lock(GC_LOCK):
        removals = plan_garbage(store, reachable, now_s)
        for removal in removals:
            if removal.path.parent.name == "locks":
                _remove_lock(store, removal.path.name)
            else:
                removal.path.unlink(missing_ok=True)
    return removals


def sweep_dead(store: Store) -> list[Path]:
    """Remove what a process that was killed was writing, and its leases; what was removed. For the daemon's start,
    when nothing that bears its own pid can be of its own making."""
    with store.lock(GC_LOCK):
        dead = [store.root / "leases" / name for name in leased_digests(store)[1]]
        for folder in FOLDERS:
            for entry in _entries(store, folder):
                if entry.name.startswith("tmp-") and (
                    entry.name.startswith(f"tmp-{os.getpid()}-") or not _temporary_alive(entry.name)
                ):
                    dead.append(Path(entry.path))
        for path in dead:
            path.unlink(missing_ok=True)
    return dead


def usage(store: Store) -> Usage:
    """Bytes on disk for each part of the store."""

    def total(folder: str) -> int:
        return sum(entry.stat(follow_symlinks=False).st_blocks * 512 for entry in _entries(store, folder))

    other = sum(total(folder) for folder in ("layers", "locks", "leases", "uploads", "evidence"))
    return Usage(total("blobs/sha256"), total("staging"), total("ingest"), other)


def _entries(store: Store, folder: str) -> list[os.DirEntry[str]]:
    try:
        return sorted(os.scandir(store.root / folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return []


def _removal(entry: os.DirEntry[str], reason: str) -> Removal:
    return Removal(Path(entry.path), reason, entry.stat(follow_symlinks=False).st_blocks * 512)


def _temporary_alive(name: str) -> bool:
    """Whether *name* is a temporary file whose writer runs."""
    parts = name.split("-")
    return parts[0] == "tmp" and len(parts) > 2 and parts[1].isdigit() and start_time(int(parts[1])) is not None


def _idle_locks(store: Store) -> list[Removal]:
    idle = []
    for entry in _entries(store, "locks"):
        if entry.name == GC_LOCK:
            continue
        descriptor = store.try_lock(entry.name)
        if descriptor is not None:
            os.close(descriptor)
            idle.append(Removal(Path(entry.path), "nobody holds this lock", 0))
    return idle


def _remove_lock(store: Store, name: str) -> None:
    descriptor = store.try_lock(name)
    if descriptor is not None:
        (store.root / "locks" / name).unlink(missing_ok=True)
        os.close(descriptor)
