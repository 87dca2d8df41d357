"""A workload gets another name: what is known of it by name goes along."""

from __future__ import annotations

import sqlite3

from casemate.node.core import Core
from casemate.node.policy import walling
from casemate.node.policy.endpoints import read_workload
from casemate.node.rows import ContainerRow


def work(db: sqlite3.Connection, core: Core, row: ContainerRow, name: str, who: str) -> None:
    """In the transaction of the rename: the history of walls and the quarantine.

    Raises :class:`casemate.policy.errors.WallBreached` where the new name's history says otherwise.
    """
    workload = read_workload(db, row.pod)  # with the new name already
    if workload is None or workload.container != row.id:
        return
    old, new = f"{row.project}/{row.name}", f"{row.project}/{name}"
    walling.renamed(db, core, (old, new), who)
    db.execute("UPDATE quarantines SET workload=? WHERE workload=? AND released_at=0", (new, old))


async def done(core: Core, pod: str) -> None:
    """After the commit: what is kept in memory."""
    core.walls.bound = await core.db.read(walling.read_bound)
    await core.policy.renamed(pod)
