"""The bases of hostd's operations, answers and events: what tells one kind of value from another on the wire."""

from __future__ import annotations

from casemate.spec.workload import Value


class Operation(Value, frozen=True, tag_field="op"):
    """Base of the operations; the docstring of each says what it answers."""


class Answer(Value, frozen=True, tag_field="is"):
    """Base of the answers."""


class Event(Value, frozen=True, tag_field="event"):
    """Base of what hostd sends unasked."""
