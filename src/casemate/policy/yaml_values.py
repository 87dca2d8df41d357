"""YAML (and JSON, which is YAML) to plain values, strictly and within bounds.

PyYAML's parser gives events; values are built here, so that what makes YAML dangerous or surprising is refused at the
event: aliases and anchors (an alias bomb grows by copying), tags, duplicate keys, keys that are no strings, depth.
Plain scalars follow YAML 1.2's core schema: ``no`` and ``on`` are strings, and ``1:30`` is no number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from casemate.policy.errors import PolicyInvalid, PolicyTooLarge

#: A Kubernetes policy nests 12 levels deep; more is no policy.
MAX_DEPTH = 24
MAX_NODES = 4_000_000
MAX_DOCUMENTS = 10_000
MAX_KEY = 4096

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None,
          "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}  # fmt: skip
#: Besides lines' ends and tabs, YAML 1.2's printable characters begin at a space.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def read(data: bytes, origin: str, max_scalar: int) -> list[Any]:
    """As :func:`casemate.policy.source.load_documents`, whose bound on *data* holds already."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PolicyInvalid(f"{origin} is not UTF-8: byte {error.start}") from error
    if found := _CONTROL.search(text):
        raise PolicyInvalid(f"{origin} holds the control character {found.group()!r} at character {found.start()}")
    builder = _Builder(origin, max_scalar)
    try:
        return list(builder.documents(yaml.parse(text, Loader=Loader)))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{origin}:{mark.line + 1}:{mark.column + 1}" if mark else origin
        raise PolicyInvalid(f"{where}: not YAML: {getattr(error, 'problem', None) or 'cannot be read'}") from error
    except (ValueError, RecursionError) as error:
        raise PolicyInvalid(f"{origin}: not YAML: {str(error)[:200]}") from error


class _Builder:
    def __init__(self, origin: str, max_scalar: int) -> None:
        self._origin = origin
        self._max_scalar = max_scalar
        self._nodes = 0

    def documents(self, events: Iterator[Any]) -> Iterator[Any]:
        count = 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                count += 1
                if count > MAX_DOCUMENTS:
                    raise PolicyTooLarge(f"{self._origin} has more than {MAX_DOCUMENTS} documents")
                value = self._value(next(events), events, 0)
                if value is not None:
                    yield value

    def _value(self, event: Any, events: Iterator[Any], depth: int) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise PolicyTooLarge(f"{self._where(event)}: more than {MAX_NODES} values")
        if depth > MAX_DEPTH:
            raise PolicyTooLarge(f"{self._where(event)}: nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise PolicyInvalid(f"{self._where(event)}: anchors and aliases are not allowed in a policy")
        if event.tag is not None:
            raise PolicyInvalid(f"{self._where(event)}: the tag {event.tag[:60]!r} is not allowed in a policy")
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(events, depth)
        return self._mapping(events, depth)

    def _sequence(self, events: Iterator[Any], depth: int) -> list[Any]:
        out: list[Any] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            out.append(self._value(event, events, depth + 1))
        return out

    def _mapping(self, events: Iterator[Any], depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise PolicyInvalid(f"{self._where(event)}: a key must be a string")
            if event.anchor is not None or event.tag is not None or len(event.value) > MAX_KEY:
                raise PolicyInvalid(f"{self._where(event)}: a key is a string without anchor and tag")
            key = event.value
            if key in out:
                raise PolicyInvalid(f"{self._where(event)}: the key {key[:60]!r} is there twice")
            self._nodes += 1
            out[key] = self._value(next(events), events, depth + 1)
        return out

    def _scalar(self, event: Any) -> Any:
        text: str = event.value
        if len(text) > self._max_scalar:
            raise PolicyTooLarge(
                f"{self._where(event)}: a value of {len(text)} characters, allowed are {self._max_scalar}"
            )
        if event.style:  # None or '' for a plain scalar, by loader
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _INTEGER.match(text):
            return int(text)
        return float(text) if _FLOAT.match(text) and len(text) < 40 else text

    def _where(self, event: Any) -> str:
        mark = event.start_mark
        return f"{self._origin}:{mark.line + 1}:{mark.column + 1}"
