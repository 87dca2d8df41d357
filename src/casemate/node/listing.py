"""The list of containers: filters, pages, and a row for each without reading its whole record."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from casemate.node import imagestore, lookup
from casemate.node.addresses import address_text
from casemate.node.clock import rfc3339
from casemate.node.core import Core
from casemate.node.errors import ContainerNotFound, PodNotFound
from casemate.node.rows import ALIVE
from casemate.spec.api import ContainerList, ContainerSummary, PortRequest
from casemate.spec.errors import CasemateError, InvalidArgument

_KEYS = ("name", "id", "status", "label", "ancestor", "pod", "exited")
_STATUSES = "created starting running paused stopping restarting exited removing broken".split()  # noqa: SIM905
_COLUMNS = (
    "id, name, project, pod, image, image_digest, command, status, created_at, started_at, finished_at, exit_code, "
    "labels, restarts"
)
#: Above so many rows all pods are read at once: a scan is far cheaper than as many look-ups.
_SCAN_ROWS = 500


_NO_PORTS = msgspec.Raw(b"[]")
_moment = datetime.fromtimestamp
_PORTS = msgspec.json.Decoder(tuple[PortRequest, ...])
#: Of a pod: name, level, published ports as JSON, address.
_PodBrief = tuple[str, str | None, str | None, int | None]
_LABELS = msgspec.json.Decoder(dict[str, str])


class _Raw(msgspec.Struct, frozen=True, gc=False):
    """A :class:`ContainerSummary` on its way to JSON, field by field the same: what the store has as JSON stays JSON,
    and moments are written by the encoder. Twice as fast, and a whole list has thousands.
    """

    id: str
    name: str
    project: str
    pod: str
    pod_name: str
    image: str
    image_digest: str
    command: str
    level: str
    status: str
    created_at: datetime | str
    started_at: datetime | str
    finished_at: datetime | str
    exit_code: int | None
    ports: msgspec.Raw
    labels: msgspec.Raw
    address: str
    restarts: int
    identity: int


@dataclass(frozen=True, slots=True)
class Page:
    """At most *limit* rows (0: all), beginning after the container *after*."""

    limit: int = 0
    after: str = ""


@dataclass(frozen=True, slots=True)
class Filter:
    """Values of one key are alternatives, keys must all hold; labels must all hold."""

    values: dict[str, tuple[str, ...]]
    everything: bool

    @classmethod
    def parse(cls, texts: tuple[str, ...], *, everything: bool) -> Filter:
        """``key=value`` texts; raises :class:`InvalidArgument` for an unknown key or status."""
        values: dict[str, tuple[str, ...]] = {}
        for text in texts:
            key, equals, value = text.partition("=")
            if not equals or key not in _KEYS:
                raise InvalidArgument(f"filter {text[:80]!r} is not KEY=VALUE with KEY one of {', '.join(_KEYS)}")
            if key == "status" and value not in _STATUSES:
                raise InvalidArgument(f"status {value[:40]!r} is not one of {', '.join(_STATUSES)}")
            if key == "exited" and not (value.isascii() and value.isdigit() and len(value) <= 3):
                raise InvalidArgument(f"exited={value[:40]!r} is not an exit code")
            values[key] = (*values.get(key, ()), value)
        # Who asks for a status or an exit code means all containers, as in Docker.
        return cls(values, everything or "status" in values or "exited" in values)

    def takes(self, row: ContainerSummary) -> bool:
        """Whether the row is wanted (ancestor and pod are looked up before)."""
        if not self.values:
            return True
        get = self.values.get
        if "name" in self.values and not any(value in row.name for value in get("name", ())):
            return False
        if "id" in self.values and not any(row.id.startswith(value) for value in get("id", ())):
            return False
        if "status" in self.values and row.status not in get("status", ()):
            return False
        if "exited" in self.values and (row.status != "exited" or str(row.exit_code) not in get("exited", ())):
            return False
        return all(_has_label(row.labels, value) for value in get("label", ()))


async def containers(core: Core, project: str, wanted: Filter, page: Page) -> ContainerList:
    """The containers of *project*, the newest first."""
    numbers = core.policy.number if core.policy.planner is not None else nobody
    return await core.db.read(lambda db: select_summaries(db, project, wanted, page, numbers))


def nobody(_pod: str) -> int:
    """The identity of a pod where no policy holds."""
    return 0


def select_summaries(
    db: sqlite3.Connection, project: str, wanted: Filter, page: Page, numbers: Callable[[str], int] = nobody
) -> ContainerList:
    where, values = ["project=?"], [project]
    if not wanted.everything:
        where.append(f"status IN ({', '.join(repr(s) for s in sorted(ALIVE | {'restarting'}))})")
    for key, column, find in (("ancestor", "image_digest", _image), ("pod", "pod", _pod)):
        if key in wanted.values:
            found = [find(db, value, project) for value in wanted.values[key]]
            where.append(f"{column} IN ({', '.join('?' * len(found))})")
            values += found
    if page.after:
        try:
            last = lookup.container(db, page.after, project)
        except ContainerNotFound as error:
            raise InvalidArgument(f"after={page.after[:80]!r} names no container; begin again") from error
        where.append("(created_at, id) < (?, ?)")
        values += [last.created_at, last.id]  # type: ignore[list-item]
    query = (
        f"SELECT {_COLUMNS} FROM containers WHERE {' AND '.join(where)} "  # noqa: S608
        "ORDER BY created_at DESC, id DESC"
    )
    pods = _Pods(db, project, everything=wanted.everything and not page.limit and not wanted.values, numbers=numbers)
    if not wanted.values and not page.limit:
        # The encoder does not look at the declared type; a test holds that both forms say the same.
        return ContainerList(tuple([_raw(raw, pods) for raw in db.execute(query, values)]))  # type: ignore[misc]
    rows: list[ContainerSummary] = []
    for raw in db.execute(query, values):
        row = _summary(raw, pods)
        if not wanted.takes(row):
            continue
        if page.limit and len(rows) == page.limit:
            return ContainerList(tuple(rows), rows[-1].id)
        rows.append(row)
    return ContainerList(tuple(rows))


class _Pods:
    """What rows show of pods: looked up one by one at first, all at once when there are many."""

    def __init__(
        self, db: sqlite3.Connection, project: str, *, everything: bool, numbers: Callable[[str], int]
    ) -> None:
        self.identity = numbers
        self._db = db
        self._project = project
        self._single = 0 if everything else _SCAN_ROWS
        self._known: dict[str, _PodBrief] = {}

    def get(self, pod: str) -> _PodBrief:
        found = self._known.get(pod)
        if found is None:
            query = "SELECT id, name, level, published, address FROM pods WHERE "
            if len(self._known) < self._single:
                rows = self._db.execute(f"{query} id=?", (pod,))
            else:
                rows = self._db.execute(f"{query} project=?", (self._project,))
            self._known.update((row[0], row[1:]) for row in rows)
            found = self._known[pod]
        return found


def _summary(raw: tuple, pods: _Pods) -> ContainerSummary:  # type: ignore[type-arg]
    (id_, name, project, pod, image, digest, command, status, created, started, finished, code, labels,
     restarts) = raw  # fmt: skip
    pod_name, level, published, address = pods.get(pod)
    return ContainerSummary(
        id_, name, project, pod, pod_name, image, digest, command, level or "namespace", status, rfc3339(created),
        rfc3339(started), rfc3339(finished), code, _PORTS.decode(published) if published is not None else (),
        _LABELS.decode(labels) if labels != b"{}" else {}, address_text(address), restarts, pods.identity(pod),
    )  # fmt: skip


def _raw(row: tuple, pods: _Pods) -> _Raw:  # type: ignore[type-arg]
    (id_, name, project, pod, image, digest, command, status, created, started, finished, code, labels,
     restarts) = row  # fmt: skip
    pod_name, level, published, address = pods.get(pod)
    return _Raw(
        id_, name, project, pod, pod_name, image, digest, command, level or "namespace", status,
        _moment(created, UTC), _moment(started, UTC) if started else "", _moment(finished, UTC) if finished else "",
        code, _NO_PORTS if published is None or published == "[]" else _published(published), msgspec.Raw(labels),
        address_text(address), restarts, pods.identity(pod),
    )  # fmt: skip


def _published(text: str) -> msgspec.Raw:
    """Ports as the API shows them: what the pod's specification leaves to a default stands there too."""
    return msgspec.Raw(msgspec.json.encode(_PORTS.decode(text)))


def _has_label(labels: dict[str, str], wanted: str) -> bool:
    key, equals, value = wanted.partition("=")
    return key in labels and (not equals or labels[key] == value)


def _image(db: sqlite3.Connection, text: str, _project: str) -> str:
    try:
        return imagestore.find(db, text).manifest_digest
    except CasemateError:
        return ""  # no container has it


def _pod(db: sqlite3.Connection, text: str, project: str) -> str:
    try:
        return lookup.pod(db, text, project).id
    except PodNotFound:
        return ""
