"""Who may enter a container: a privilege that somebody was granted is not lent to everybody else.

Whoever executes in a container, types into it or reads and writes its files acts with what the container was given:
a host path bound by root, a device, a namespace of the host. hostd checks the grant of the person who makes the
container; here the same grants are asked of each person who enters it. Reading its log and its state, stopping and
removing it remain every member's, as they are in the field.
"""

from __future__ import annotations

import sqlite3

from casemate.node import pods
from casemate.node.core import Caller
from casemate.node.resolve import grants_needed
from casemate.node.rows import ContainerRow, PodRow
from casemate.spec.errors import GrantMissing


def check(db: sqlite3.Connection, row: ContainerRow, caller: Caller) -> None:
    """Raises :class:`GrantMissing` unless *caller* holds every grant that the container and its pod were made with."""
    _need(row.name, {*grants_needed(row.the_request()), *_of_pod(pods.of(db, row))}, caller)


def check_pod(pod: PodRow, caller: Caller) -> None:
    """The same for a container that is to join *pod*."""
    _need(pod.name, set(_of_pod(pod)), caller)


def _of_pod(pod: PodRow) -> tuple[str, ...]:
    asked = pod.the_request()
    shares = asked.host_pid or asked.host_ipc or asked.network.mode == "host"
    return ("host_namespaces",) if shares else ()


def _need(name: str, needed: set[str], caller: Caller) -> None:
    missing = sorted(needed - caller.grants()) if needed else []
    if missing:
        raise GrantMissing(
            f"{name} was made with the grant {missing[0]!r}, which {caller.who} does not hold",
            remedy=f"The administrator names the user, or @group, in grants.{missing[0]} of casemate.toml.",
            grant=missing[0],
        )
