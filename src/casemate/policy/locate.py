"""Where in the text a field stands: for errors that know a field's path, and people who look for a line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from casemate.policy.yaml_values import Loader

_PATH = re.compile(r"(?P<origin>.*?)\[(?P<number>\d+)\](?P<rest>.*)\Z", re.DOTALL)
_STEP = re.compile(r"\.(?P<key>[^.\[\]]+)|\[(?P<index>\d+)\]")


def line_of(text: str, path: str) -> int | None:
    """The line (from 1) of the field *path* (``policy[0].spec.rules[3].ports``) in *text*.

    Where the field itself is not there, the line of what should have held it. None where *path* is of no document.
    """
    found = _PATH.match(path)
    if found is None:
        return None
    keys = [step["key"] if step["key"] is not None else int(step["index"]) for step in _STEP.finditer(found["rest"])]
    try:
        return _Walk(yaml.parse(text, Loader=Loader)).find(int(found["number"]), keys)
    except (yaml.YAMLError, StopIteration, RecursionError):
        return None


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


class _Walk:
    """One pass over the parser's events; nothing is built."""

    def __init__(self, events: Iterator[Any]) -> None:
        self._events = events

    def find(self, number: int, keys: list[str | int]) -> int | None:
        at = -1
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                first = next(self._events)
                if isinstance(first, yaml.ScalarEvent) and first.value in ("", "~", "null") and not first.style:
                    continue  # an empty document is none
                at += 1
                if at == number:
                    return self._descend(first, keys)
                self._skip(first)
        return None

    def _descend(self, event: Any, keys: list[str | int]) -> int:
        line = _line(event)
        if not keys:
            return line
        wanted, rest = keys[0], keys[1:]
        if isinstance(event, yaml.MappingStartEvent):
            while not isinstance(key := next(self._events), yaml.MappingEndEvent):
                value = next(self._events)
                if isinstance(key, yaml.ScalarEvent) and key.value == wanted:
                    return self._descend(value, rest) if rest else _line(key)
                self._skip(value)
        elif isinstance(event, yaml.SequenceStartEvent):
            place = 0
            while not isinstance(item := next(self._events), yaml.SequenceEndEvent):
                if place == wanted:
                    return self._descend(item, rest)
                self._skip(item)
                place += 1
        return line

    def _skip(self, event: Any) -> None:
        depth = int(isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent))
        while depth:
            event = next(self._events)
            depth += isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent)
            depth -= isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent)
