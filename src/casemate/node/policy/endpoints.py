"""Pods of the store as endpoints of policy: who they are is what Casemate knows, not what an image says.

Labels are those that the user gave to the container or the pod. An image's own labels are left out: its author must
not be able to place it in a segment. Labels that begin with ``casemate/`` are Casemate's alone.
"""

from __future__ import annotations

import ipaddress
import re
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import msgspec

from casemate.node.rows import ContainerRow, PodRow, select
from casemate.policy.addresses import Address
from casemate.policy.identity import Endpoint
from casemate.policy.labels import Labels, labels
from casemate.policy.ports import NamedPort, Protocol
from casemate.spec.api import Admission, ContainerRequest, PodRequest

OWN = "casemate/"
LEVEL = "casemate/level"
GRADE = "casemate/grade"
#: Where admission wants the workload (the trust policy's ``segment``).
SEGMENT = "casemate/segment"
QUARANTINE = "casemate/quarantine"
WALL = "casemate/wall."
#: What Kubernetes calls a namespace by; a project is a namespace here.
NAMESPACE_NAME = "kubernetes.io/metadata.name"
#: A port that a container calls by a name: ``-l casemate.port/web=8080``, or ``8080/udp``.
PORT = "casemate.port/"
_KEY = re.compile(r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?\Z")
_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?\Z")
_PORT_NUMBER = re.compile(r"([0-9]{1,5})(?:/(tcp|udp|sctp))?\Z")
_PORT_NAME = re.compile(r"[a-z0-9-]{1,15}\Z")
#: Of one workload; Kubernetes' own bound on a document is the same.
MAX_LABELS = 128
MAX_PORTS = 64

_POD_REQUEST = msgspec.json.Decoder(PodRequest)
_REQUEST = msgspec.json.Decoder(ContainerRequest)
_LABELS = msgspec.json.Decoder(dict[str, str])
_ADMISSION = msgspec.json.Decoder(Admission)


@dataclass(frozen=True, slots=True)
class Workload:
    """A pod as policy sees it. *pod* is its id; *endpoint* has the name by which histories know it."""

    pod: str
    container: str
    endpoint: Endpoint
    made: bool

    @property
    def name(self) -> str:
        return self.endpoint.name


def selectable(given: Mapping[str, str]) -> dict[str, str]:
    """The labels of *given* that a selector can name (Kubernetes' grammar), Casemate's own left out."""
    out: dict[str, str] = {}
    for key in sorted(given):
        value = given[key]
        if key.startswith(OWN) or key.startswith(PORT) or not _KEY.match(key) or not _VALUE.match(value):
            continue
        if len(out) < MAX_LABELS:
            out[key] = value
    return out


def named_ports(given: Mapping[str, str]) -> tuple[NamedPort, ...]:
    found: list[NamedPort] = []
    for key in sorted(given):
        name = key.removeprefix(PORT)
        match = _PORT_NUMBER.match(given[key]) if key.startswith(PORT) else None
        if match is None or not _PORT_NAME.match(name) or not 0 < int(match[1]) < 65536:
            continue
        found.append(NamedPort(name, Protocol[(match[2] or "tcp").upper()], int(match[1])))
    return tuple(found[:MAX_PORTS])


def project_labels(project: str, given: Mapping[str, str] | None = None) -> Labels:
    """What selectors of projects see: its name, and the labels that it was *given*."""
    return labels({**(given or {}), NAMESPACE_NAME: project, "casemate/project": project})


def workload_name(project: str, pod: PodRow, container: str) -> str:
    """``project/container`` for a lone container, ``project/pod/name`` for a pod: stable over restarts."""
    return f"{project}/{container}" if pod.implicit and container else f"{project}/pod/{pod.name}"


def workload_of(
    pod: PodRow, inside: Iterable[ContainerRow], of_project: Mapping[str, str] | None = None
) -> Workload | None:  # fmt: skip
    """The workload of a pod and its containers; None where it has no address of its own (host network, none).

    *of_project*: its project's labels.
    """
    if pod.address is None:
        return None
    rows = list(inside)
    given: dict[str, str] = {}
    for row in rows:
        given |= _REQUEST.decode(row.request).labels
    given |= _POD_REQUEST.decode(pod.request).labels
    own = selectable(given)
    own[LEVEL] = pod.the_spec().level
    grades = sorted({_grade(row) for row in rows})
    if grades:
        # Several images in one pod: the pod is what the least trusted of them is, and says so.
        own[GRADE] = grades[0] if len(grades) == 1 else "mixed"
    segments = sorted({segment for row in rows if (segment := _segment(row))})
    if segments:
        own[SEGMENT] = segments[0] if len(segments) == 1 else "mixed"
    lone = rows[0] if pod.implicit and rows else None
    name = workload_name(pod.project, pod, lone.name if lone else "")
    endpoint = Endpoint(
        name, pod.project, labels(own), project_labels(pod.project, of_project), named_ports(given), addresses_of(pod)
    )
    return Workload(pod.id, lone.id if lone else "", endpoint, bool(pod.made))


def _grade(row: ContainerRow) -> str:
    """What admission answered, as a label's value."""
    try:
        admission = _ADMISSION.decode(row.admission)
    except msgspec.MsgspecError:
        return "unknown"
    grade = getattr(admission, "grade", "") or admission.answer
    return grade if _VALUE.match(grade) else "unknown"


def _segment(row: ContainerRow) -> str:
    """The segment that admission named, as a label's value; empty where it named none."""
    try:
        segment = _ADMISSION.decode(row.admission).segment
    except msgspec.MsgspecError:
        return "unknown"
    return segment if _VALUE.match(segment) else "unknown"


def addresses_of(pod: PodRow) -> tuple[Address, ...]:
    found: list[Address] = []
    if pod.address is not None:
        found.append(ipaddress.IPv4Address(pod.address))
    spec = pod.the_spec().network
    second = getattr(spec, "address6", "")
    if second:
        found.append(ipaddress.IPv6Address(second))
    return tuple(found)


def with_labels(endpoint: Endpoint, more: Mapping[str, str]) -> Endpoint:
    """*endpoint* with Casemate's own labels *more* (quarantine, walls) in addition."""
    return replace(endpoint, labels=labels({**dict(endpoint.labels), **more})) if more else endpoint


def read_workloads(db: sqlite3.Connection, where: str = "", *values: object) -> list[Workload]:
    """The workloads of the pods that *where* (our own text) selects, with an address."""
    pods = select(db, PodRow, where, *values)
    inside: dict[str, list[ContainerRow]] = {}
    query = f"WHERE pod IN (SELECT id FROM pods {where}) ORDER BY created_at, id"  # noqa: S608
    for row in select(db, ContainerRow, query, *values):
        inside.setdefault(row.pod, []).append(row)
    held = {name: _LABELS.decode(raw) for name, raw in db.execute("SELECT name, labels FROM projects")}
    found = (workload_of(pod, inside.get(pod.id, ()), held.get(pod.project)) for pod in pods)
    return [workload for workload in found if workload is not None]


def read_workload(db: sqlite3.Connection, pod: str) -> Workload | None:
    found = read_workloads(db, "WHERE id=?", pod)
    return found[0] if found else None
