"""Projects: made, listed, labelled, and removed when nothing is in them any more.

Policy selects by them, so making them is the operator's. A name that is given again is the same project to the walls'
history, which goes by ``project/name``.
"""

from __future__ import annotations

import sqlite3

import msgspec

from casemate.node import audit, events
from casemate.node.clock import rfc3339
from casemate.node.core import Caller, Core
from casemate.node.errors import ProjectExists, ProjectInUse, ProjectNotFound
from casemate.node.policy import rights
from casemate.node.policy.endpoints import selectable
from casemate.node.rows import encode
from casemate.spec.api.projects import ProjectLabels, ProjectList, ProjectRequest, ProjectRow
from casemate.spec.errors import InvalidArgument, LimitExceeded

DEFAULT = "default"
MAX_PROJECTS = 10_000
#: A project's own name is given as these; nobody else gives them.
RESERVED = ("kubernetes.io/metadata.name", "casemate/")
_LABELS = msgspec.json.Decoder(dict[str, str])
_COUNTED = ("containers", "pods", "volumes")


def _checked(labels: dict[str, str]) -> dict[str, str]:
    """*labels*, when selectors can name each. Raises :class:`InvalidArgument`."""
    for key in labels:
        if key.startswith(RESERVED):
            raise InvalidArgument(f"label {key[:100]!r}: {' and '.join(RESERVED)} are given by Casemate")
    if selectable(labels) != labels:
        odd = next(iter(labels.keys() - selectable(labels).keys()))
        raise InvalidArgument(
            f"label {odd[:100]!r} is none that a selector can name (Kubernetes' grammar, 128 at most)"
        )
    return labels


async def create(core: Core, request: ProjectRequest, caller: Caller) -> ProjectRow:
    """A new project. Raises :class:`GrantMissing`, :class:`ProjectExists`."""
    rights.demand(caller, f"to make the project {request.name}")
    labels, at = _checked(request.labels), core.clock()

    def work(db: sqlite3.Connection) -> ProjectRow:
        if db.execute("SELECT count(*) FROM projects").fetchone()[0] >= MAX_PROJECTS:
            raise LimitExceeded(f"{MAX_PROJECTS} projects are there already")
        if _find(db, request.name) is not None:
            raise ProjectExists(f"project {request.name!r} is there already", project=request.name)
        db.execute("INSERT INTO projects VALUES (?, ?, ?, ?)", (request.name, at, caller.who, encode(labels)))
        _note(db, at, caller, ("create", request.name), labels)
        return _row(db, (request.name, at, caller.who, encode(labels)))

    row = await core.db.write(work)
    core.events.wake()
    return row


async def listing(core: Core, caller: Caller) -> ProjectList:
    """Those that are open to *caller*."""

    def work(db: sqlite3.Connection) -> ProjectList:
        found = db.execute("SELECT name, created_at, created_by, labels FROM projects ORDER BY name").fetchall()
        return ProjectList(tuple(_row(db, one) for one in found if caller.sees(one[0])))

    return await core.db.read(work)


async def inspect(core: Core, name: str) -> ProjectRow:
    return await core.db.read(lambda db: _row(db, _demand(db, name)))


async def label(core: Core, name: str, request: ProjectLabels, caller: Caller) -> ProjectRow:
    """Other labels; every workload of the project comes under the rules that select them, at once."""
    rights.demand(caller, f"to label the project {name}")
    put, at = _checked(request.put), core.clock()

    def work(db: sqlite3.Connection) -> tuple[ProjectRow, list[str]]:
        held = _LABELS.decode(_demand(db, name)[3])
        labels = _checked({key: text for key, text in held.items() if key not in request.remove} | put)
        db.execute("UPDATE projects SET labels=? WHERE name=?", (encode(labels), name))
        _note(db, at, caller, ("label", name), labels)
        pods = [row[0] for row in db.execute("SELECT id FROM pods WHERE project=?", (name,))]
        return _row(db, _demand(db, name)), pods

    row, pods = await core.db.write(work)
    core.events.wake()
    await core.policy.relabelled(pods)
    return row


async def remove(core: Core, name: str, caller: Caller) -> None:
    """An empty project goes. Raises :class:`ProjectInUse`, naming what is in it."""
    rights.demand(caller, f"to remove the project {name}")
    if name == DEFAULT:
        raise ProjectInUse("the project default stays: what names no project is in it", project=name)
    at = core.clock()

    def work(db: sqlite3.Connection) -> None:
        row = _row(db, _demand(db, name))
        counts = {"containers": row.containers, "pods": row.pods, "volumes": row.volumes, "documents": row.documents}
        held = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        if held:
            raise ProjectInUse(f"project {name!r} has {held}", project=name)
        db.execute("DELETE FROM projects WHERE name=?", (name,))
        _note(db, at, caller, ("remove", name))

    await core.db.write(work)
    core.events.wake()


def check(db: sqlite3.Connection, project: str) -> None:
    """Raises :class:`ProjectNotFound` when there is no such project."""
    if db.execute("SELECT 1 FROM projects WHERE name=?", (project,)).fetchone() is None:
        raise ProjectNotFound(f"project {project!r} is not there", project=project)


def _find(db: sqlite3.Connection, name: str) -> tuple[str, float, str, bytes] | None:
    found: tuple[str, float, str, bytes] | None = db.execute(
        "SELECT name, created_at, created_by, labels FROM projects WHERE name=?", (name,)
    ).fetchone()
    return found


def _demand(db: sqlite3.Connection, name: str) -> tuple[str, float, str, bytes]:
    check(db, name)
    found = _find(db, name)
    assert found is not None
    return found


def _row(db: sqlite3.Connection, held: tuple[str, float, str, bytes]) -> ProjectRow:
    name, at, who, labels = held
    counts = [
        int(db.execute(f"SELECT count(*) FROM {table} WHERE project=?", (name,)).fetchone()[0])  # noqa: S608 - our own
        for table in (*_COUNTED, "policy_documents")
    ]
    return ProjectRow(name, rfc3339(at), who, _LABELS.decode(labels), *counts)


def _note(
    db: sqlite3.Connection, at: float, caller: Caller, what: tuple[str, str], labels: dict[str, str] | None = None
) -> None:  # fmt: skip
    action, name = what
    events.add(db, at, "project", name, action, project=name, name=name)
    audit.append(db, at, caller.who, f"project.{action}", name, labels=labels or {})
