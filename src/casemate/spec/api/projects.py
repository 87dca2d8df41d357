"""Projects: the units of ownership and policy."""

from __future__ import annotations

from casemate.spec.api.fields import Labels
from casemate.spec.workload import Project, Value


class ProjectRequest(Value, frozen=True):
    """A new project. *labels* are what policy's selectors of projects see (Kubernetes' namespace labels)."""

    name: Project
    labels: Labels = {}


class ProjectLabels(Value, frozen=True):
    """Labels that are set, and names of labels that go."""

    put: Labels = {}
    remove: tuple[str, ...] = ()


class ProjectRow(Value, frozen=True):
    """A project and how much is in it. *documents*: of policy, the operator's aside."""

    name: str
    created_at: str
    created_by: str = ""
    labels: dict[str, str] = {}
    containers: int = 0
    pods: int = 0
    volumes: int = 0
    documents: int = 0


class ProjectList(Value, frozen=True):
    projects: tuple[ProjectRow, ...]
