"""Rows of the store as frozen values, with their columns' names; what is JSON in the store stays bytes until asked."""

from __future__ import annotations

import sqlite3
from typing import Any, Literal, TypeVar

import msgspec

from casemate.spec.api import ContainerRequest, PodRequest
from casemate.spec.workload import ContainerSpec, PodSpec

Status = Literal["created", "starting", "running", "paused", "stopping", "restarting", "exited", "removing", "broken"]
Desired = Literal["created", "running", "stopped", "removed"]
#: What has (or may have) a process at hostd.
ALIVE: frozenset[str] = frozenset(("starting", "running", "paused", "stopping"))

_REQUEST = msgspec.json.Decoder(ContainerRequest)
_SPEC = msgspec.json.Decoder(ContainerSpec)
_POD_REQUEST = msgspec.json.Decoder(PodRequest)
_POD_SPEC = msgspec.json.Decoder(PodSpec)
_TEXTS = msgspec.json.Decoder(tuple[str, ...])
_LABELS = msgspec.json.Decoder(dict[str, str])


class ContainerRow(msgspec.Struct, frozen=True):
    id: str
    project: str
    name: str
    pod: str
    created_at: float
    request: bytes
    spec: bytes
    image: str
    image_digest: str
    command: str
    labels: bytes
    restart_name: str
    restart_maximum: int
    auto_remove: int
    stop_signal: int
    stop_timeout: int
    admission: bytes
    warnings: bytes
    desired: str
    status: str
    made: int = 0
    pid: int = 0
    conmon_pid: int = 0
    intent_at: float = 0.0
    started_at: float = 0.0
    finished_at: float = 0.0
    exit_code: int | None = None
    oom_killed: int = 0
    reason: str = ""
    restarts: int = 0
    failures: int = 0
    restart_at: float = 0.0

    def the_request(self) -> ContainerRequest:
        return _REQUEST.decode(self.request)

    def the_spec(self) -> ContainerSpec:
        return _SPEC.decode(self.spec)

    def the_labels(self) -> dict[str, str]:
        return _LABELS.decode(self.labels)

    def the_warnings(self) -> tuple[str, ...]:
        return _TEXTS.decode(self.warnings)


class PodRow(msgspec.Struct, frozen=True):
    id: str
    project: str
    name: str
    created_at: float
    request: bytes
    spec: bytes
    implicit: int
    address: int | None
    first_id: int = 0
    made: int = 0

    def the_request(self) -> PodRequest:
        return _POD_REQUEST.decode(self.request)

    def the_spec(self) -> PodSpec:
        return _POD_SPEC.decode(self.spec)


class ExecRow(msgspec.Struct, frozen=True):
    id: str
    container: str
    request: bytes
    process: bytes
    created_at: float
    status: str
    exit_code: int | None = None
    pid: int = 0


class VolumeRow(msgspec.Struct, frozen=True):
    project: str
    name: str
    created_at: float
    anonymous: int
    labels: bytes
    made: int = 0


class OperationRow(msgspec.Struct, frozen=True):
    id: str
    kind: str
    status: str
    created_at: float
    finished_at: float
    target: str
    result: bytes
    problem: bytes | None = None
    #: Who began it, as the audit log has them.
    who: str = ""


RowT = TypeVar("RowT", bound=msgspec.Struct)

_TABLES: dict[type[msgspec.Struct], str] = {
    ContainerRow: "containers",
    PodRow: "pods",
    ExecRow: "execs",
    VolumeRow: "volumes",
    OperationRow: "operations",
}


def columns(kind: type[RowT], prefix: str = "") -> str:
    """The columns of *kind* in the order of its fields, for a SELECT."""
    return ", ".join(f"{prefix}{name}" for name in kind.__struct_fields__)


def select(db: sqlite3.Connection, kind: type[RowT], rest: str, *values: object) -> list[RowT]:
    """Rows of *kind* from ``SELECT ... FROM its table`` and *rest* (our own text, never a caller's)."""
    query = f"SELECT {columns(kind)} FROM {_TABLES[kind]} {rest}"  # noqa: S608
    return [kind(*row) for row in db.execute(query, values)]


def select_one(db: sqlite3.Connection, kind: type[RowT], rest: str, *values: object) -> RowT | None:
    """The first such row, or None."""
    found = select(db, kind, f"{rest} LIMIT 1", *values)
    return found[0] if found else None


def insert(db: sqlite3.Connection, row: msgspec.Struct) -> None:
    """Add *row* to its table."""
    fields = row.__struct_fields__
    marks = ", ".join("?" * len(fields))
    query = f"INSERT INTO {_TABLES[type(row)]} ({', '.join(fields)}) VALUES ({marks})"  # noqa: S608
    db.execute(query, tuple(getattr(row, name) for name in fields))


def update(db: sqlite3.Connection, kind: type[RowT], id_: str, **values: Any) -> None:
    """Set columns of the row *id_*."""
    assignments = ", ".join(f"{name}=?" for name in values)
    db.execute(f"UPDATE {_TABLES[kind]} SET {assignments} WHERE id=?", (*values.values(), id_))  # noqa: S608


def encode(value: object) -> bytes:
    """*value* as the JSON that the store keeps."""
    return msgspec.json.encode(value)
