"""Who has which address: every pod's names, project and labels, kept in memory as the events of the store tell.

For those who must turn an address into a name, or a name into an address, many times a second: flow records and the
pods' resolver. It follows the store; it decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from casemate.node.addresses import address_text
from casemate.node.core import Core, report
from casemate.node.errors import TooMany
from casemate.node.events import last_number
from casemate.node.rows import ALIVE

#: Labels that are shown beside a name: as much as fits a line.
MAX_LABELS_CHARS = 256
_RETRY_S = 1.0
_QUERY = """
SELECT p.id, p.project, p.name, p.implicit, p.address, p.request, c.id, c.name, c.labels, c.status
FROM pods p LEFT JOIN containers c ON c.pod = p.id WHERE p.address IS NOT NULL
"""
_LABELS = msgspec.json.Decoder(dict[str, str])


class _PodLabels(msgspec.Struct):
    labels: dict[str, str] = {}


_POD = msgspec.json.Decoder(_PodLabels)


class Entry(NamedTuple):
    """A pod with an address. *name* is what people call it: its lone container's name, or its own.

    *names* are those of its containers that run, and its own: what the resolver answers to.
    """

    pod: str
    project: str
    name: str
    address: str
    names: tuple[str, ...]
    labels: tuple[tuple[str, str], ...]
    containers: tuple[str, ...]

    def labels_text(self) -> str:
        return ",".join(f"{key}={value}" for key, value in self.labels)[:MAX_LABELS_CHARS]


class Directory:
    """Pods by id and by address; *listeners* are told of each change: (old, new), either of which may be None."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.pods: dict[str, Entry] = {}
        self.by_address: dict[str, Entry] = {}
        self._by_container: dict[str, str] = {}
        self.listeners: list[Callable[[Entry | None, Entry | None], None]] = []

    async def load(self) -> None:
        """Read everything."""
        entries = await self._core.db.read(lambda db: _entries(db, _QUERY, ()))
        for pod in self.pods.keys() - {entry.pod for entry in entries}:
            self._set(pod, None)
        for entry in entries:
            self._set(entry.pod, entry)

    async def run(self) -> None:
        """Follow the store's events; never returns."""
        last = 0
        while True:
            try:
                # Before it is read: what happens meanwhile is looked at twice, not missed.
                last = max(last, await self._core.db.read(last_number))
                await self.load()
                async for row in self._core.events.watch(after=last, since=0.0, until=float("inf"), follow=True):
                    if row is None:
                        continue
                    last = row.number
                    if row.kind in ("container", "pod") and not row.action.startswith("exec"):
                        await self.refresh(row.subject)
            except TooMany:
                await asyncio.sleep(_RETRY_S)
            except Exception:
                # Stale names would mislead everybody: everything is read again.
                report("the directory of addresses failed, and begins anew")
                await asyncio.sleep(_RETRY_S)

    async def refresh(self, subject: str) -> None:
        """Read anew what the container or pod *subject* is part of."""
        pod = self._by_container.get(subject)
        wanted = f"{_QUERY} AND (p.id = ? OR p.id = (SELECT pod FROM containers WHERE id = ?))"  # noqa: S608
        entries = await self._core.db.read(lambda db: _entries(db, wanted, (pod or subject, subject)))
        if entries:
            for entry in entries:
                self._set(entry.pod, entry)
        elif (gone := pod or subject) in self.pods:
            self._set(gone, None)

    def _set(self, pod: str, entry: Entry | None) -> None:
        old = self.pods.get(pod)
        if old == entry:
            return
        if old is not None:
            if self.by_address.get(old.address) is old:
                del self.by_address[old.address]
            for container in old.containers:
                self._by_container.pop(container, None)
        if entry is None:
            self.pods.pop(pod, None)
        else:
            self.pods[pod] = entry
            self.by_address[entry.address] = entry
            self._by_container.update((container, pod) for container in entry.containers)
        for listener in self.listeners:
            listener(old, entry)


def _entries(db: sqlite3.Connection, query: str, values: Iterable[object]) -> list[Entry]:
    grouped: dict[str, list[tuple[object, ...]]] = {}
    for row in db.execute(query, tuple(values)):
        grouped.setdefault(row[0], []).append(row)
    return [_entry(rows) for rows in grouped.values()]


def _entry(rows: list[tuple[object, ...]]) -> Entry:
    pod, project, pod_name, implicit, address, request = rows[0][:6]
    labels: dict[str, str] = {}
    with contextlib.suppress(msgspec.MsgspecError):
        labels.update(_POD.decode(bytes(request)).labels)  # type: ignore[call-overload]
    containers, names = [], []
    name = str(pod_name)
    for row in rows:
        if row[6] is None:
            continue
        containers.append(str(row[6]))
        if implicit:
            name = str(row[7])
            with contextlib.suppress(msgspec.MsgspecError):
                labels.update(_LABELS.decode(bytes(row[8])))  # type: ignore[call-overload]
        if row[9] in ALIVE:
            names.append(str(row[7]))
    if names and not implicit:
        names.append(str(pod_name))
    return Entry(
        str(pod), str(project), name, address_text(int(str(address))), tuple(sorted(set(names))),
        tuple(sorted(labels.items())), tuple(containers),
    )  # fmt: skip
