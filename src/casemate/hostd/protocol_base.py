"""The bases of hostd's operations and answers; see :mod:`casemate.hostd.protocol`."""

from __future__ import annotations

from casemate.spec.workload import Value


class Operation(Value, frozen=True, tag_field="op"):
    """Base of the operations; the docstring of each says what it answers."""


class Answer(Value, frozen=True, tag_field="is"):
    """Base of the answers."""
