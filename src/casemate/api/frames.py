"""Frames of a WebSocket: what their first byte says. Described in :mod:`casemate.spec.api`."""

from __future__ import annotations

import msgspec

from casemate.spec.api import Control

STDIN, CONTROL = 0, 3


def control(**values: object) -> bytes:
    """A control frame."""
    return bytes((CONTROL,)) + msgspec.json.encode(Control(**values))  # type: ignore[arg-type]
