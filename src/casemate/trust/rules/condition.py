"""Conditions in CEL over a documented set of facts (docs/decisions/0074-trust-policy.md)."""

from __future__ import annotations

import re
from collections.abc import Set
from functools import lru_cache
from typing import Any

from casemate.spec.errors import CasemateError, HostLacks

MAX_CHARS = 2000
#: The facts that a condition may name; each is always there, so that a misspelt one is found when the policy is read.
FACTS = frozenset((
    "repository", "digest", "signed", "signers", "attestations", "scanned", "findings", "worst", "counts", "exploited",
    "max_epss", "end_of_life", "setuid", "leaks", "unreadable", "distribution", "project", "level",
))  # fmt: skip
#: What only the content of an image tells, what only its match with a feed, and what only its signatures.
CONTENT_FACTS = frozenset(("end_of_life", "setuid", "leaks", "unreadable", "distribution"))
MATCH_FACTS = frozenset(("findings", "worst", "counts", "exploited", "max_epss"))
SIGNATURE_FACTS = frozenset(("signed", "signers", "attestations"))
#: Names that comprehensions bind (``findings.exists(f, ...)``): CEL's analysis counts them as variables.
_BOUND = frozenset("abcdefghijklmnopqrstuvwxyz")


_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: A use of the findings that asks whether one, or every one, is such and such: the same one twice changes nothing.
_QUANTIFIED = re.compile(r"\bfindings\s*\.\s*(?:exists|all)\s*\(")
_FINDINGS = re.compile(r"\bfindings\b")


class ConditionInvalid(CasemateError):
    code = "trust.condition_invalid"
    status = 422
    title = "A condition of the trust policy is not valid"
    remedy = "Write it in CEL over the documented facts, for example `findings.exists(f, f.severity == 'critical')`."


class Condition:
    """One compiled condition. *name*: of the grade that it belongs to; *uses*: the facts that it names."""

    __slots__ = ("_program", "name", "quantifies", "text", "uses", "words")

    def __init__(self, text: str, name: str) -> None:
        self.text = text
        self.name = name
        self._program = _compile(text, name)
        self.uses = FACTS & set(self._program.variables())
        #: Every word in it; a field of a finding that is not among them cannot be asked for.
        self.words = frozenset(_WORD.findall(text))
        self.quantifies = len(_FINDINGS.findall(text)) == len(_QUANTIFIED.findall(text))

    def holds(self, facts: Facts) -> bool:
        """Whether it is true of *facts*; anything but a truth value is an error, never taken for one."""
        try:
            answer = self._program.execute(facts.context)
        except Exception as error:  # the library raises ValueError, TypeError, RuntimeError by what went wrong
            raise ConditionInvalid(f"{self.name}: {self.text[:200]!r}: {error}") from error
        if not isinstance(answer, bool):
            raise ConditionInvalid(f"{self.name}: {self.text[:200]!r} gives {str(answer)[:60]!r}, not true or false")
        return answer


class Facts:
    """Facts in CEL's own values, made once for all conditions, only those *used*: making them is what costs."""

    __slots__ = ("context",)

    def __init__(self, values: dict[str, Any], used: Set[str]) -> None:
        import cel  # noqa: PLC0415 - as below

        self.context = cel.Context(variables={name: values[name] for name in used})


@lru_cache(maxsize=1000)
def _compile(text: str, name: str) -> Any:
    program, names = _parsed(text, f"{name}: ")
    unknown = names - FACTS - _BOUND
    if unknown:
        raise ConditionInvalid(f"{name}: {text[:200]!r} names {sorted(unknown)[0]!r}, which is no fact")
    return program


@lru_cache(maxsize=1000)
def compiled(text: str) -> Any:
    """The condition *text* over one attestation's ``predicate``. Raises :class:`ConditionInvalid`."""
    program, names = _parsed(text, "")
    unknown = {name for name in names if len(name) > 1} - {"predicate"}
    if unknown:
        raise ConditionInvalid(f"{text[:200]!r} names {sorted(unknown)[0]!r}; only `predicate` is there")
    return program


def _parsed(text: str, label: str) -> tuple[Any, set[str]]:
    """CEL's program of *text*, and the names in it; *label* begins what is said of a wrong one."""
    try:
        import cel  # noqa: PLC0415 - only a policy with conditions needs it
    except ImportError as error:
        raise HostLacks(
            "the Python package common-expression-language is not installed",
            remedy="pip install common-expression-language",
        ) from error
    if not 0 < len(text) <= MAX_CHARS:
        raise ConditionInvalid(f"{label}a condition of {len(text)} characters; 1 to {MAX_CHARS} are allowed")
    try:
        program = cel.compile(text)
        return program, set(program.variables())
    except Exception as error:
        raise ConditionInvalid(f"{label}{text[:200]!r}: {error}"[:400]) from error
