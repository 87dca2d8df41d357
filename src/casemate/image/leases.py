"""Leases: what a running job needs stays, whatever garbage collection thinks of it.

A lease is a file in ``leases/`` that names its holder (pid and start time, so that a pid used anew is not taken
for the holder) and then one digest a line. A digest is leased *before* its presence is looked at, under the
shared lock ``gc``; garbage collection holds that lock alone while it looks at the leases and removes.
The holder is the worker's parent, casemated: the lease outlives the worker until the image is recorded.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
from collections.abc import Iterable
from pathlib import Path

from casemate.image.store import Store

_NAME = re.compile(r"([0-9]{1,10})-([0-9]{1,20})-[0-9a-f]{16}\Z")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
GC_LOCK = "gc"


def start_time(pid: int) -> int | None:
    """The process's start time in clock ticks since boot (proc(5), field 22 of stat), or None when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(b")")[2].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


class Lease:
    """One job's lease; *add* may be called from any thread."""

    def __init__(self, store: Store, holder_pid: int) -> None:
        self._store = store
        self._held: set[str] = set()
        self._guard = threading.Lock()
        self.name = f"{holder_pid}-{start_time(holder_pid) or 0}-{secrets.token_hex(8)}"

    def add(self, digests: Iterable[str]) -> None:
        """Keep *digests* from now on, whether or not they are here yet."""
        with self._guard:
            fresh = [digest for digest in digests if digest not in self._held]
            if not fresh:
                return
            with self._store.lock(GC_LOCK, shared=True):
                path = self._store.root / "leases" / self.name
                descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    os.write(descriptor, "".join(f"{digest}\n" for digest in fresh).encode())
                finally:
                    os.close(descriptor)
            self._held.update(fresh)

    def drop(self) -> None:
        """End the lease (the job failed, or its result is recorded)."""
        release(self._store, self.name)


def release(store: Store, name: str) -> None:
    """End the lease *name*; one that is already gone is fine."""
    if name and _NAME.match(name):
        (store.root / "leases" / name).unlink(missing_ok=True)


def leased_digests(store: Store) -> tuple[frozenset[str], tuple[str, ...]]:
    """Every digest under a live lease, and the names of leases whose holder is gone."""
    live: set[str] = set()
    dead: list[str] = []
    for entry in sorted(os.scandir(store.root / "leases"), key=lambda item: item.name):
        match = _NAME.match(entry.name)
        if not match or start_time(int(match[1])) != int(match[2]):
            dead.append(entry.name)
            continue
        text = Path(entry.path).read_text(encoding="ascii", errors="replace")
        live.update(line for line in text.splitlines() if _DIGEST.match(line))
    return frozenset(live), tuple(dead)
