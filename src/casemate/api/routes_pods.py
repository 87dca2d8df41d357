"""Routes of pods and volumes."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from casemate.api.routing import Call, Project, Row
from casemate.api.scopes import IN_BODY, IN_QUERY
from casemate.node import podlife, pods, volumes
from casemate.spec import api as schema
from casemate.spec.errors import InvalidArgument


class FilterQuery(Project, frozen=True, forbid_unknown_fields=True):
    """*filter* is ``key=value`` with key name, id, status or label."""

    filter: Annotated[tuple[str, ...], Meta(max_length=64)] = ()


class ForceQuery(Project, frozen=True, forbid_unknown_fields=True):
    force: bool = False


class AllQuery(Project, frozen=True, forbid_unknown_fields=True):
    all: bool = False


def takes(row: object, filters: tuple[str, ...]) -> bool:
    """Whether *row* has all that *filters* say; raises :class:`InvalidArgument` for an unknown key."""
    for text in filters:
        key, equals, value = text.partition("=")
        if not equals or key not in ("name", "id", "status", "label", "anonymous"):
            raise InvalidArgument(f"filter {text[:80]!r} is not name=, id=, status=, label= or anonymous=")
        seen = getattr(row, key, None)
        if key == "label":
            name, has_value, wanted = value.partition("=")
            labels: dict[str, str] = getattr(row, "labels", {})
            if name not in labels or (has_value and labels[name] != wanted):
                return False
        elif key == "name":
            if value not in str(seen):
                return False
        elif key == "id":
            if not str(seen).startswith(value):
                return False
        elif str(seen).lower() != value.lower():
            return False
    return True


async def list_pods(call: Call) -> object:
    query: FilterQuery = call.query
    found = await pods.listing(call.core, call.project)
    return schema.PodList(tuple(row for row in found.pods if takes(row, query.filter)))


async def create_pod(call: Call) -> object:
    return await pods.create(call.core, call.body, call.caller)


async def inspect_pod(call: Call) -> object:
    return await pods.inspect(call.core, call.reference, call.project)


async def remove_pod(call: Call) -> None:
    query: ForceQuery = call.query
    await podlife.remove(call.core, call.reference, call.project, call.caller, force=query.force)


async def start_pod(call: Call) -> None:
    await podlife.start(call.core, call.reference, call.project, call.caller)


async def stop_pod(call: Call) -> None:
    await podlife.stop(call.core, call.reference, call.project, call.body, call.caller)


async def list_volumes(call: Call) -> object:
    query: FilterQuery = call.query
    found = await volumes.listing(call.core, call.project)
    return schema.VolumeList(tuple(row for row in found.volumes if takes(row, query.filter)))


async def create_volume(call: Call) -> object:
    return await volumes.create(call.core, call.body, call.caller)


async def inspect_volume(call: Call) -> object:
    return await volumes.inspect(call.core, call.project, call.path["name"])


async def remove_volume(call: Call) -> None:
    query: ForceQuery = call.query
    await volumes.remove(call.core, call.project, call.path["name"], call.caller, force=query.force)


async def prune_volumes(call: Call) -> object:
    query: AllQuery = call.query
    return await volumes.prune(call.core, call.project, call.caller, everything=query.all)


_POD = "/v1/pods/{ref}"
ROWS = (
    Row("GET", "/v1/pods", list_pods, "List pods", FilterQuery, answer=schema.PodList, scope=IN_QUERY),
    Row("POST", "/v1/pods", create_pod, "Create a pod", body=schema.PodRequest, answer=schema.PodSummary, status=201,
        errors=(409,), scope=IN_BODY),
    Row("GET", _POD, inspect_pod, "Inspect a pod", answer=schema.PodDetail, errors=(404,), scope=IN_QUERY),
    Row("DELETE", _POD, remove_pod, "Remove a pod", ForceQuery, status=204, errors=(404, 409), scope=IN_QUERY),
    Row("POST", f"{_POD}/start", start_pod, "Start a pod's containers", status=204, errors=(403, 404, 409),
        scope=IN_QUERY),
    Row("POST", f"{_POD}/stop", stop_pod, "Stop a pod's containers", body=schema.StopRequest, optional_body=True,
        status=204, errors=(404,), scope=IN_QUERY),
    Row("GET", "/v1/volumes", list_volumes, "List volumes", FilterQuery, answer=schema.VolumeList, scope=IN_QUERY),
    Row("POST", "/v1/volumes", create_volume, "Create a volume", body=schema.VolumeRequest,
        answer=schema.VolumeSummary, status=201, errors=(409,), scope=IN_BODY),
    Row("POST", "/v1/volumes/prune", prune_volumes, "Remove volumes that nobody uses", AllQuery,
        answer=schema.Removed, scope=IN_QUERY),
    Row("GET", "/v1/volumes/{name}", inspect_volume, "Inspect a volume", answer=schema.VolumeSummary, errors=(404,),
        scope=IN_QUERY),
    Row("DELETE", "/v1/volumes/{name}", remove_volume, "Remove a volume", ForceQuery, status=204, errors=(404, 409),
        scope=IN_QUERY),
)  # fmt: skip
