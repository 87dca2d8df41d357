"""Pods: a sandbox with one network identity and its containers."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from casemate.spec.api.fields import Labels, NetworkRequest, PortRequest
from casemate.spec.workload import Level, Name, Project, Resources, Template, Value


class PodRequest(Value, frozen=True):
    name: Name | None = None
    project: Project = "default"
    level: Level | None = None
    hostname: Annotated[str, Meta(max_length=64)] | None = None
    labels: Labels = {}
    network: NetworkRequest = NetworkRequest()
    resources: Resources = Resources()
    host_pid: bool = False
    host_ipc: bool = False
    template: Template | None = None


class PodSummary(Value, frozen=True):
    id: str
    name: str
    project: str
    level: str
    status: str
    created_at: str
    address: str
    containers: tuple[str, ...]
    labels: dict[str, str] = {}
    ports: tuple[PortRequest, ...] = ()
    #: Made for a lone container, and removed with it.
    implicit: bool = False


class PodList(Value, frozen=True):
    pods: tuple[PodSummary, ...]


class PodDetail(Value, frozen=True):
    summary: PodSummary
    request: PodRequest
    first_id: int = 0
