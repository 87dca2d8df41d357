"""The JSON schema (2020-12) of Casemate's own policy documents, written from the bounds that the reader checks.

``docs/reference/policy-schema.json`` is this, and a test fails when it is stale. The schema is for editors: what it
takes the reader may still refuse (an unknown segment, a condition, a wall outside the operator's tier).
"""

from __future__ import annotations

from typing import Any

from casemate.policy.conditions import MAX_LENGTH
from casemate.policy.document import (
    API_VERSION,
    KIND,
    MAX_PEERS,
    MAX_QUARANTINE_S,
    MAX_SEGMENTS,
    MAX_TRIGGERS,
    MAX_WALLS,
)
from casemate.policy.fields import MAX_LABELS, MAX_RULES, MAX_VALUES
from casemate.policy.labels import Operator
from casemate.policy.windows import DAYS

_NAME = {"type": "string", "pattern": "^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"}
_VALUE = {"type": "string", "pattern": "^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$"}
_CLOCK = {"type": "string", "pattern": "^([01][0-9]|2[0-4]):[0-5][0-9]$", "description": "UTC"}
_WORDS = {"enum": ["allow", "deny", "refer"]}


def _object(properties: dict[str, Any], required: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "required": list(required),
        **more,
    }


def _list(items: dict[str, Any], most: int, least: int = 1) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}"}


_SELECT = {"select": _ref("selector"), "project": _NAME, "projects": _ref("selector")}


def _definitions() -> dict[str, Any]:
    return {**_ends(), **_segments_and_rules(), **_triggers_and_walls()}


def _ends() -> dict[str, Any]:
    """Who is at an end of a connection, and at which port."""
    requirement = {
        "key": {"type": "string", "maxLength": 317},
        "operator": {"enum": [operator.value for operator in Operator]},
        "values": _list(_VALUE, MAX_VALUES, 0),
    }
    workloads = [_object({"segment": _NAME}, ("segment",)), _object(_SELECT, ("select",))]
    outside = [
        _object({"cidr": {"type": "string"}, "except": _list({"type": "string"}, MAX_VALUES, 0)}, ("cidr",)),
        _object({"names": _list({"type": "string", "maxLength": 253}, 100)}, ("names",)),
    ]
    return {
        "selector": _object({
            "matchLabels": {"type": "object", "additionalProperties": _VALUE, "maxProperties": MAX_LABELS},
            "matchExpressions": _list(_object(requirement, ("key", "operator")), MAX_LABELS, 0),
        }),
        "workloads": {"oneOf": workloads},
        "peers": {"oneOf": [{"const": "any"}, _list({"oneOf": [*workloads, *outside]}, MAX_PEERS)]},
        "port": {
            "type": "string",
            "pattern": "^((tcp|udp|sctp)(/([0-9]{1,5}(-[0-9]{1,5})?|[a-z0-9-]*[a-z][a-z0-9-]*))?|icmp(/[0-9]{1,3})?)$",
        },
    }  # fmt: skip


def _segments_and_rules() -> dict[str, Any]:
    return {
        "segment": _object({
            **_SELECT,
            "default": {"oneOf": [_WORDS, _object({"ingress": _WORDS, "egress": _WORDS})]},
            "audit": {"type": "boolean"},
        }, ("select",)),
        "rule": _object({
            "name": {"type": "string", "minLength": 1, "maxLength": 100},
            "from": _ref("peers"),
            "to": _ref("peers"),
            "ports": _list(_ref("port"), MAX_VALUES),
            "action": {"enum": ["allow", "deny", "refer", "pass"]},
            "when": {"type": "string", "minLength": 1, "maxLength": MAX_LENGTH, "description": "CEL over the facts"},
            "during": _list(_object({"days": _list({"enum": list(DAYS)}, 7), "from": _CLOCK, "to": _CLOCK},
                                    ("from", "to")), 50),
            "audit": {"type": "boolean"},
        }, ("from", "to", "action")),
    }  # fmt: skip


def _triggers_and_walls() -> dict[str, Any]:
    return {
        "trigger": _object({
            "name": _NAME,
            "when": {"type": "string", "minLength": 1, "maxLength": MAX_LENGTH, "description": "CEL over flow facts"},
            "of": _list(_ref("workloads"), MAX_PEERS),
            "for": {"type": "integer", "minimum": 1, "maximum": MAX_QUARANTINE_S, "description": "seconds"},
            "reason": {"type": "string", "minLength": 1, "maxLength": 1000},
        }, ("name", "when")),
        "wall": _object({
            "name": _NAME,
            "members": {
                "type": "object",
                "minProperties": 2,
                "maxProperties": MAX_VALUES,
                "additionalProperties": _list(_ref("workloads"), MAX_PEERS),
            },
        }, ("name", "members")),
    }  # fmt: skip


def policy_schema() -> dict[str, Any]:
    """The schema of a ``casemate/v1`` document, as JSON values."""
    spec = {
        "tier": {"enum": ["operator", "project"], "default": "project"},
        "priority": {"type": "integer", "minimum": 0, "maximum": 1000, "default": 500},
        "segments": {"type": "object", "additionalProperties": _ref("segment"), "maxProperties": MAX_SEGMENTS},
        "rules": _list(_ref("rule"), MAX_RULES, 0),
        "walls": _list(_ref("wall"), MAX_WALLS, 0),
        "quarantine": _list(_ref("trigger"), MAX_TRIGGERS, 0),
    }
    pairs = {"type": "object", "additionalProperties": {"type": "string"}}
    meta = _object({"name": _NAME, "project": _NAME, "labels": pairs, "annotations": pairs}, ("name",))
    top = {"apiVersion": {"const": API_VERSION}, "kind": {"const": KIND}, "metadata": meta, "spec": _object(spec)}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Casemate policy",
        **_object(top, ("apiVersion", "kind", "metadata", "spec")),
        "$defs": _definitions(),
    }
