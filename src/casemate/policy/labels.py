"""Labels and selectors, with the semantics of Kubernetes' LabelSelector (apimachinery, meta/v1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

#: Sorted pairs of key and value, each key once: hashable, and equal when the sets are.
Labels = tuple[tuple[str, str], ...]


def labels(pairs: Mapping[str, str]) -> Labels:
    return tuple(sorted(pairs.items()))


class Operator(Enum):
    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"

    # Members are single objects; Enum's own hash is Python code, and these are hashed a million times a compile.
    __hash__ = object.__hash__


@dataclass(frozen=True, slots=True)
class Requirement:
    key: str
    operator: Operator
    values: frozenset[str] = frozenset()

    def matches(self, held: Mapping[str, str]) -> bool:
        """NotIn holds for what lacks the key too, as in Kubernetes."""
        match self.operator:
            case Operator.IN:
                return held.get(self.key) in self.values
            case Operator.NOT_IN:
                return held.get(self.key) not in self.values
            case Operator.EXISTS:
                return self.key in held
            case Operator.DOES_NOT_EXIST:
                return self.key not in held

    def describe(self) -> str:
        match self.operator:
            case Operator.EXISTS:
                return self.key
            case Operator.DOES_NOT_EXIST:
                return f"!{self.key}"
            case Operator.IN if len(self.values) == 1:
                return f"{self.key}={next(iter(self.values))}"
            case _:
                return f"{self.key} {self.operator.value} ({', '.join(sorted(self.values))})"


@dataclass(frozen=True, slots=True)
class Selector:
    """All requirements hold; none at all selects everything."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, held: Mapping[str, str]) -> bool:
        return all(requirement.matches(held) for requirement in self.requirements)

    def describe(self) -> str:
        return ", ".join(requirement.describe() for requirement in self.requirements) or "all"


EVERYTHING = Selector()
