"""What a container may do with devices (``linux.resources.devices``), as the rules that the agent is told. Pure.

Every group of a guest has the program of the rules that every runtime gives (guest/agent/devices.c). Those here are
of a bundle that says otherwise, so that a usual start sends none and loads nothing. The agent makes the program, since
that of the usual rules is in the template, before any host has spoken to it (decision 0143).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from casemate.isolation.microvm.errors import BundleUnsupported
from casemate.isolation.microvm.frames import Field, Tag
from casemate.isolation.microvm.oci import DeviceRule

#: As in guest/agent/devices.h. An engine writes one for each `--device`.
MAX_RULES = 128
MAKE, READ, WRITE = 1, 2, 4
ANY = -1
_ACCESS = {"m": MAKE, "r": READ, "w": WRITE}
_ALL = MAKE | READ | WRITE
_MOST_NUMBER = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Rule:
    """*kind*: ``c``, ``b`` or ``a``; *access*: a set of bits; *major* and *minor*: numbers, or :data:`ANY`."""

    allow: bool
    kind: str
    access: int
    major: int = ANY
    minor: int = ANY

    def covers(self, other: Rule) -> bool:
        """Whether whatever *other* is of, this one is of as well."""
        return (
            self.kind in ("a", other.kind)
            and not other.access & ~self.access
            and self.major in (ANY, other.major)
            and self.minor in (ANY, other.minor)
        )


#: As in guest/agent/devices.c: what no bundle's word changes.
USUAL = (
    Rule(True, "c", MAKE),
    Rule(True, "b", MAKE),
    *(Rule(True, "c", _ALL, 1, minor) for minor in (3, 5, 7, 8, 9)),
    *(Rule(True, "c", _ALL, 5, minor) for minor in (0, 1, 2)),
    Rule(True, "c", _ALL, 136),
    Rule(True, "c", _ALL, 10, 200),
)


def reduced(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """*rules* without those that decide nothing; empty where they say no more than :data:`USUAL`."""
    found: list[Rule] = []
    for rule in rules:
        if rule.allow and any(one.covers(rule) for one in USUAL):
            continue
        found = [one for one in found if not rule.covers(one)]
        # What nobody has allowed needs no denial.
        if rule.allow or any(one.allow for one in found):
            found.append(rule)
    return tuple(found)


def read(rule: DeviceRule) -> Rule:
    """:class:`BundleUnsupported` says what is no rule."""
    if rule.type not in ("a", "b", "c", "u", "") or set(rule.access) - set(_ACCESS):
        raise BundleUnsupported(f"a rule for devices of type {rule.type[:10]!r} and access {rule.access[:10]!r}")
    numbers = [ANY if one is None or one < 0 else one for one in (rule.major, rule.minor)]
    if max(numbers) > _MOST_NUMBER:
        raise BundleUnsupported(f"a rule for devices {max(numbers)}; the largest number is {_MOST_NUMBER}")
    access = sum(_ACCESS[letter] for letter in set(rule.access)) or _ALL
    return Rule(rule.allow, {"u": "c", "": "a"}.get(rule.type, rule.type), access, numbers[0], numbers[1])


def fields(rules: Sequence[DeviceRule], *, replace: bool = False) -> list[Field]:
    """What CREATE says of them, and LIMITS, where they *replace* what the container has. :class:`BundleUnsupported`."""
    if not rules:
        return []
    found = reduced([read(rule) for rule in rules])
    if replace and not found:
        found = (Rule(False, "a", _ALL),)
    if len(found) > MAX_RULES:
        raise BundleUnsupported(f"{len(found)} rules for devices that say more than the usual, allowed are {MAX_RULES}")
    return [
        Field(Tag.DEVICE_RULE, struct.pack("<BBBBii", one.allow, ord(one.kind), one.access, 0, one.major, one.minor))
        for one in found
    ]
