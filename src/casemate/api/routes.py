"""The table of all routes; the OpenAPI document is generated from it.

``python -m casemate.api.routes`` writes the document to standard output; docs/reference/openapi.json is that, and a
test fails when it is stale.
"""

from __future__ import annotations

import sys

import msgspec
from starlette.responses import Response

from casemate.api import (
    attach,
    routes_containers,
    routes_files,
    routes_flows,
    routes_holds,
    routes_images,
    routes_kernels,
    routes_metrics,
    routes_pods,
    routes_policy,
    routes_projects,
    routes_referrals,
    routes_scan,
    routes_signatures,
    routes_system,
    routes_trust,
)
from casemate.api.routing import Call, NoQuery, Row
from casemate.api.scopes import OPEN


async def _openapi(call: Call) -> object:  # noqa: ARG001 - a handler
    return Response(openapi_bytes(), media_type="application/json")


ROUTES = (
    *routes_system.ROWS,
    *routes_containers.ROWS,
    *routes_files.ROWS,
    *routes_pods.ROWS,
    *routes_images.ROWS,
    *routes_kernels.ROWS,
    *routes_policy.ROWS,
    *routes_projects.ROWS,
    *routes_referrals.ROWS,
    *routes_flows.ROWS,
    *routes_holds.ROWS,
    *routes_signatures.ROWS,
    *routes_scan.ROWS,
    *routes_trust.ROWS,
    *routes_metrics.ROWS,
    Row("GET", "/v1/openapi.json", _openapi, "This document", NoQuery, answer="application/json", scope=OPEN),
)
SOCKETS = attach.SOCKETS


def openapi_bytes() -> bytes:
    """The OpenAPI document of the table, as JSON."""
    from casemate.api.openapi import document  # noqa: PLC0415 - asked for rarely, and not small

    return msgspec.json.encode(document(ROUTES, SOCKETS))


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.format(openapi_bytes(), indent=1).decode() + "\n")
