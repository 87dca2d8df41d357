"""The node: operations, events, the audit log, what the host has and lacks, disk usage."""

from __future__ import annotations

from typing import Literal

from casemate.spec.workload import Value


class Operation(Value, frozen=True):
    """Long work: 202 answers it, ``GET /v1/operations/{id}`` follows it."""

    id: str
    kind: str
    status: Literal["running", "done", "failed", "cancelled"]
    created_at: str
    finished_at: str = ""
    target: str = ""
    result: dict[str, object] = {}
    problem: dict[str, object] | None = None


class Progress(Value, frozen=True):
    """An event of an operation: *item* (a layer) has done *done* of *total* bytes in *phase* (total 0: not counted)."""

    item: str
    phase: str
    done: int = 0
    total: int = 0
    detail: str = ""


class EventRow(Value, frozen=True):
    """An event of the node: what happened to which subject, and why."""

    number: int
    at: str
    kind: str
    subject: str
    action: str
    project: str = "default"
    name: str = ""
    facts: dict[str, object] = {}


class AuditRow(Value, frozen=True):
    """A hash-chained record: *chain* is the sha256 over the previous row's chain and this row."""

    number: int
    at: str
    who: str
    action: str
    subject: str
    answer: str
    facts: dict[str, object]
    chain: str


class AuditList(Value, frozen=True):
    rows: tuple[AuditRow, ...]
    intact: bool


class VersionAnswer(Value, frozen=True):
    version: str
    api: str
    hostd: str
    python: str
    kernel: str


class CallerRights(Value, frozen=True):
    """Who asks, and what is open to them: every project to an *administrator*, otherwise *projects*."""

    who: str
    administrator: bool
    projects: tuple[str, ...] = ()
    grants: tuple[str, ...] = ()


class InfoAnswer(Value, frozen=True):
    version: str
    containers: int
    running: int
    images: int
    levels: dict[str, str]
    host: dict[str, str]
    settings: dict[str, object]
    warnings: tuple[str, ...] = ()
    caller: CallerRights | None = None


class FindingRow(Value, frozen=True):
    check: str
    severity: str
    detail: str
    remedy: str = ""
    left_over: bool = False


class DoctorAnswer(Value, frozen=True):
    findings: tuple[FindingRow, ...]
    healthy: bool


class DiskRow(Value, frozen=True):
    """A row of ``system df``; -1 bytes: not counted."""

    kind: str
    count: int
    active: int
    size_bytes: int
    reclaimable_bytes: int


class DiskAnswer(Value, frozen=True):
    rows: tuple[DiskRow, ...]


class PruneRequest(Value, frozen=True):
    #: Also remove images that no container uses (not only untagged ones).
    all_images: bool = False
    volumes: bool = False
    #: Only what a crash left behind, nothing that the user made.
    left_overs_only: bool = False
    dry_run: bool = False
