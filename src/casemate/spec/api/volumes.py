"""Volumes."""

from __future__ import annotations

from casemate.spec.api.fields import Labels
from casemate.spec.workload import Name, Project, Value


class VolumeRequest(Value, frozen=True):
    name: Name | None = None
    project: Project = "default"
    labels: Labels = {}


class VolumeSummary(Value, frozen=True):
    name: str
    project: str
    created_at: str
    size_bytes: int = -1
    anonymous: bool = False
    used_by: tuple[str, ...] = ()
    labels: dict[str, str] = {}


class VolumeList(Value, frozen=True):
    volumes: tuple[VolumeSummary, ...]
