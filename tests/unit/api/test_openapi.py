"""The checked-in OpenAPI document is what the table of routes says."""

from __future__ import annotations

import json
from pathlib import Path

from casemate.api import openapi
from casemate.api.routes import ROUTES, SOCKETS, openapi_bytes

CHECKED_IN = Path(__file__).resolve().parents[3] / "docs/reference/openapi.json"


def test_it_is_not_stale() -> None:
    remedy = "PYTHONPATH=src python -m casemate.api.routes > docs/reference/openapi.json"
    assert json.loads(CHECKED_IN.read_text()) == json.loads(openapi_bytes()), remedy


def test_every_route_is_in_it_and_every_reference_leads_somewhere() -> None:
    whole = openapi.document(ROUTES, SOCKETS)
    for row in ROUTES:
        assert row.method.lower() in whole["paths"][row.path]
    for socket in SOCKETS:
        assert "101" in whole["paths"][socket.path]["get"]["responses"]
    text = json.dumps(whole)
    for part in text.split('"$ref": "')[1:]:
        name = part.partition('"')[0].rpartition("/")[2]
        assert name in whole["components"]["schemas"], name


def test_operation_ids_are_unique() -> None:
    ids = [op["operationId"] for path in openapi.document(ROUTES, SOCKETS)["paths"].values() for op in path.values()]
    assert len(ids) == len(set(ids))
