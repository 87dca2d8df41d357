"""Conditions in CEL: checked and bounded when a document is read, evaluated when a connection is referred.

The library evaluates without a step limit, so what an expression may cost is bounded by its form: its length, the
depth of its brackets, at most one comprehension and what that goes through, no regular expressions, no facts and
functions but those below.
The library is loaded with the first condition, because it loads much (0080).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from casemate.policy.errors import ConditionFailed, ConditionInvalid

MAX_LENGTH = 1024
MAX_DEPTH = 12
MAX_COMPREHENSIONS = 1
MAX_CACHED = 4096
#: Of a comprehension: items times signs (operators, brackets, points, commas) after it; 0.03 to 0.06 us each, here. A
#: fact's list counts as of so many items at least. What builds a list copies it for each item, whatever lies in it.
MAX_STEPS, _ITEMS, _BUILDS = 16_384, 64, ("map", "filter")

#: The facts: name, and what it is. docs/reference/policy.md is checked against this table.
FACTS: Mapping[str, str] = {
    "source": "map: name, project, labels, project_labels, level, grade, segments of the end that opens the connection",
    "destination": "the same of the other end; also address and names where it is outside",
    "protocol": "string: tcp, udp, sctp, icmp or other",
    "port": "int: the destination's port, or ICMP's type",
    "time": "map: unix (int, seconds), hour (0 to 23), minute, weekday (0 is Monday), all UTC",
    "first_contact": "bool: these two workloads have no earlier flow on record",
    "rate": "int: new connections of the source in the last 10 seconds",
}
_OPERATORS = {"_&&_", "_||_", "!_", "_==_", "_!=_", "_<_", "_<=_", "_>_", "_>=_", "_+_", "_-_", "_*_", "_/_", "_%_",
              "-_", "_?_:_", "_[_]", "@in", "_in_", "@not_strictly_false"}  # fmt: skip
_FUNCTIONS = {"size", "startsWith", "endsWith", "contains", "has", "int", "string"}
_COMPREHENSION = re.compile(r"\.\s*(all|exists|exists_one|existsOne|map|filter)\s*\(\s*([A-Za-z_]\w*)\s*,")
_SIGNS = re.compile(r"[-+*/%?:<>=!&|\[(.,]")
#: Strings without escapes only: a lexer of our own that differs from the library's would be a hole.
_STRING = re.compile(r"\"[^\"\\\n]*\"|'[^'\\\n]*'")

_programs: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Condition:
    """A checked expression; make it with :func:`condition`."""

    source: str

    def holds(self, facts: Mapping[str, Any]) -> bool:
        """Whether it is true. Raises :class:`ConditionFailed` where it is no yes or no (a fact that is not there)."""
        try:
            answer = _program(self.source).execute(dict(facts))
        except Exception as error:
            raise ConditionFailed(f"condition {self.source[:80]!r}: {str(error)[:200]}") from error
        if not isinstance(answer, bool):
            raise ConditionFailed(f"condition {self.source[:80]!r} gave a {type(answer).__name__}, allowed is a bool")
        return answer


def condition(source: str, where: str, facts: Collection[str] = FACTS) -> Condition:
    """*source*, checked against every bound; *facts* are the names that it may use.

    Raises :class:`ConditionInvalid` that names *where*.
    """
    if len(source) > MAX_LENGTH:
        raise ConditionInvalid(f"{where}: the condition has {len(source)} characters, allowed are {MAX_LENGTH}")
    if "\\" in source or '"""' in source or "'''" in source or "//" in _STRING.sub('""', source):
        raise ConditionInvalid(f"{where}: escapes, triple quotes and comments are not allowed in a condition")
    bare = _STRING.sub('""', source)
    _check_depth(bare, where)
    bound = [match.group(2) for match in _COMPREHENSION.finditer(bare)]
    macros = len(re.findall(r"\.\s*(?:all|exists|exists_one|existsOne|map|filter)\s*\(", bare))
    if macros > MAX_COMPREHENSIONS or macros != len(bound):
        raise ConditionInvalid(f"{where}: {macros} comprehensions, allowed is {MAX_COMPREHENSIONS} of a variable")
    _check_steps(bare, where)
    try:
        program = _program(source)
        variables, functions = set(program.variables()), set(program.functions())
    except Exception as error:
        raise ConditionInvalid(f"{where}: the condition does not parse: {str(error)[:300]}") from error
    unknown = sorted(variables - set(facts) - set(bound) - {name for name in variables if name.startswith("@")})
    if unknown:
        raise ConditionInvalid(f"{where}: unknown fact {unknown[0][:60]!r}; known are {', '.join(facts)}")
    refused = sorted(functions - _OPERATORS - _FUNCTIONS)
    if refused:
        raise ConditionInvalid(
            f"{where}: function {refused[0][:60]!r} is not allowed; allowed are {', '.join(sorted(_FUNCTIONS))}"
        )
    return Condition(source)


def _check_depth(bare: str, where: str) -> None:
    depth = 0
    for character in bare:
        depth += (character in "([{") - (character in ")]}")
        if depth > MAX_DEPTH:
            raise ConditionInvalid(f"{where}: brackets nest deeper than {MAX_DEPTH}")


def _check_steps(bare: str, where: str) -> None:
    """Counted with what stands before and behind the comprehension, wherever it ends: too many rather than too few."""
    match = _COMPREHENSION.search(bare)
    if match is None:
        return
    items = bare.count(",", 0, match.start()) + 1
    if not bare[: match.start()].rstrip().endswith("]"):
        items = max(items, _ITEMS)
    each = len(_SIGNS.findall(bare, match.end()))
    if match.group(1) in _BUILDS:
        each = items * (each + 1) // 2
    if items * each > MAX_STEPS:
        raise ConditionInvalid(
            f"{where}: '{match.group(1)}' takes some {items} times {each} steps, allowed are {MAX_STEPS} together"
        )


def _program(source: str) -> Any:
    found = _programs.get(source)
    if found is None:
        import cel  # noqa: PLC0415 - 165 ms, and most policies have no condition

        if len(_programs) >= MAX_CACHED:
            _programs.clear()
        found = _programs[source] = cel.compile(source)
    return found
