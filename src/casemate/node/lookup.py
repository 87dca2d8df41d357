"""Finding a container, pod or exec by what a person types: the id, a name, or the beginning of an id."""

from __future__ import annotations

import re
import sqlite3
from typing import TypeVar

from casemate.node.errors import ContainerNotFound, ExecNotFound, PodNotFound, ReferenceAmbiguous
from casemate.node.rows import ContainerRow, ExecRow, PodRow, select
from casemate.spec.errors import NotFound

RowT = TypeVar("RowT", ContainerRow, PodRow)
_HEX = re.compile(r"[0-9a-f]{1,64}\Z")


def container(db: sqlite3.Connection, reference: str, project: str) -> ContainerRow:
    """The container; raises :class:`ContainerNotFound` or :class:`ReferenceAmbiguous`."""
    return _find(db, ContainerRow, reference, project, missing=ContainerNotFound)


def pod(db: sqlite3.Connection, reference: str, project: str) -> PodRow:
    """The pod; raises :class:`PodNotFound` or :class:`ReferenceAmbiguous`."""
    return _find(db, PodRow, reference, project, missing=PodNotFound)


def exec_(db: sqlite3.Connection, reference: str) -> ExecRow:
    """The exec with exactly this id."""
    found = select(db, ExecRow, "WHERE id=?", reference)
    if not found:
        raise ExecNotFound(f"exec {reference[:80]!r} is not there", reference=reference[:80])
    return found[0]


def project_of(db: sqlite3.Connection, id_: str) -> str:
    """The project of the container with exactly this id; "", which is nobody's, when it is gone."""
    row = db.execute("SELECT project FROM containers WHERE id=?", (id_,)).fetchone()
    return str(row[0]) if row else ""


def _find(db: sqlite3.Connection, kind: type[RowT], reference: str, project: str, *, missing: type[NotFound]) -> RowT:
    what = missing.code.partition(".")[0]
    is_hex = bool(_HEX.match(reference))
    if is_hex and len(reference) == 64:
        found = select(db, kind, "WHERE id=? AND project=?", reference, project)
        if found:
            return found[0]
    found = select(db, kind, "WHERE project=? AND name=?", project, reference)
    if found:
        return found[0]
    if is_hex:
        # "g" sorts after every hexadecimal digit: the ids that begin with *reference*.
        found = select(db, kind, "WHERE id>=? AND id<? AND project=? LIMIT 3", reference, reference + "g", project)
        if len(found) > 1:
            raise ReferenceAmbiguous(f"{reference} begins the ids of more than one {what}", reference=reference)
        if found:
            return found[0]
    raise missing(f"{what} {reference[:140]!r} is not there", reference=reference[:140])
