"""Reading a document's fields: each error names the path, the value seen and the values allowed; nothing is ignored."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterator
from typing import Any

from casemate.policy.addresses import Block, Network
from casemate.policy.errors import PolicyInvalid, PolicyTooLarge
from casemate.policy.labels import EVERYTHING, Labels, Operator, Requirement, Selector, labels

MAX_RULES = 100_000
MAX_LABELS = 128
MAX_VALUES = 1000
#: Kubernetes' validation of label keys and values (apimachinery, util/validation).
_NAME_PART = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?\Z")
_PREFIX_PART = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?\Z")
OBJECT_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?\Z")
_KINDS = {str: "a string", int: "a whole number", bool: "true or false", list: "a list", dict: "a mapping"}


def shown(value: Any) -> str:
    """*value*, short enough for a message."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


class Field:
    """A value with its path in the document."""

    __slots__ = ("path", "value")

    def __init__(self, path: str, value: Any) -> None:
        self.path, self.value = path, value

    def fail(self, why: str, remedy: str | None = None) -> PolicyInvalid:
        return PolicyInvalid(f"{self.path}: {why}", remedy=remedy, path=self.path)

    def _is(self, kind: type) -> Any:
        if not isinstance(self.value, kind) or (kind is int and isinstance(self.value, bool)):
            hint = ' (put it in "quotes")' if kind is str and isinstance(self.value, int | float) else ""
            raise self.fail(f"{shown(self.value)} is not {_KINDS[kind]}{hint}")
        return self.value

    def mapping(self, known: Collection[str], required: Collection[str] = ()) -> Field:
        """This, when it is a mapping of *known* keys with all *required* ones."""
        for key in self._is(dict):
            if key not in known:
                raise self.fail(f"unknown field {shown(key)}; known are {', '.join(sorted(known))}")
        for key in required:
            if key not in self.value:
                raise self.fail(f"the field {key!r} is missing")
        return self

    def mapping_of_any(self) -> dict[str, Any]:
        """The value, when it is a mapping, whatever is in it."""
        value: dict[str, Any] = self._is(dict)
        return value

    def get(self, key: str) -> Field | None:
        """The field *key* of a mapping; None where it is absent or null."""
        value = self.value.get(key)
        return None if value is None else Field(f"{self.path}.{key}", value)

    def at(self, key: str) -> Field:
        found = self.get(key)
        if found is None:
            raise self.fail(f"the field {key!r} is missing")
        return found

    def items(self, most: int, least: int = 0) -> Iterator[Field]:
        values = self._is(list)
        if len(values) > most:
            raise PolicyTooLarge(f"{self.path}: {len(values)} entries, allowed are {most}")
        if len(values) < least:
            raise self.fail(f"{len(values)} entries, at least {least} are needed")
        for number, value in enumerate(values):
            yield Field(f"{self.path}[{number}]", value)

    def entries(self, most: int) -> Iterator[tuple[str, Field]]:
        """Keys of one's own choice, and their values."""
        values = self._is(dict)
        if len(values) > most:
            raise PolicyTooLarge(f"{self.path}: {len(values)} entries, allowed are {most}")
        for key, value in values.items():
            yield key, Field(f"{self.path}.{key}", value)

    def one_of(self, keys: Collection[str]) -> tuple[str, Field]:
        """The one field of *keys* that is there."""
        self.mapping(keys)
        if len(self.value) != 1:
            raise self.fail(f"exactly one of {', '.join(sorted(keys))} is needed, {len(self.value)} are there")
        key = next(iter(self.value))
        return key, self.at(key)

    def text(self, most: int = 253) -> str:
        value: str = self._is(str)
        if not 0 < len(value) <= most:
            raise self.fail(f"{len(value)} characters, allowed are 1 to {most}")
        return value

    def name(self) -> str:
        value = self.text()
        if not OBJECT_NAME.match(value):
            raise self.fail(f"{shown(value)} is not a name: lower-case letters, digits, dots and dashes")
        return value

    def integer(self, least: int, most: int) -> int:
        value: int = self._is(int)
        if not least <= value <= most:
            raise self.fail(f"{value} is outside {least}..{most}")
        return value

    def boolean(self) -> bool:
        value: bool = self._is(bool)
        return value

    def choice(self, words: Collection[str]) -> str:
        value: str = self._is(str)
        if value not in words:
            raise self.fail(f"{shown(value)} is none of {', '.join(words)}")
        return value

    def network(self) -> Network:
        """A network; bits behind the prefix are cut off, as Kubernetes does."""
        text = self.text(64)
        try:
            if "/" not in text:
                raise ValueError("no prefix length")
            return ipaddress.ip_network(text, strict=False)
        except ValueError as error:
            raise self.fail(f"{shown(text)} is not a network in CIDR form") from error

    def block(self) -> Block:
        """``cidr`` and ``except``."""
        self.mapping({"cidr", "except"}, ["cidr"])
        network = self.at("cidr").network()
        exceptions: list[Network] = []
        if (less := self.get("except")) is not None:
            for item in less.items(MAX_VALUES):
                inner = item.network()
                if inner.version != network.version or not inner.subnet_of(network):  # type: ignore[arg-type]
                    raise item.fail(f"{inner} is not inside {network}")
                exceptions.append(inner)
        return Block(network, tuple(exceptions))

    def labels(self) -> Labels:
        return labels({key: field.label_value() for key, field in self._label_entries()})

    def _label_entries(self) -> Iterator[tuple[str, Field]]:
        for key, field in self.entries(MAX_LABELS):
            yield Field(self.path, key).label_key(), field

    def label_key(self) -> str:
        key = self.text(317)
        prefix, slash, name = key.rpartition("/")
        if not _NAME_PART.match(name) or (slash and not _PREFIX_PART.match(prefix)):
            raise self.fail(f"{shown(key)} is not a label's key")
        return key

    def label_value(self) -> str:
        value: str = self._is(str)
        if value and not _NAME_PART.match(value):
            raise self.fail(f"{shown(value)} is not a label's value: at most 63 letters, digits and -_.")
        return value

    def selector(self) -> Selector:
        """A LabelSelector: ``matchLabels`` and ``matchExpressions``, all of which hold."""
        self.mapping({"matchLabels", "matchExpressions"})
        found: list[Requirement] = []
        if (pairs := self.get("matchLabels")) is not None:
            found += [Requirement(key, Operator.IN, frozenset({value})) for key, value in pairs.labels()]
        if (expressions := self.get("matchExpressions")) is not None:
            found += [item.requirement() for item in expressions.items(MAX_LABELS)]
        return Selector(tuple(found)) if found else EVERYTHING

    def requirement(self) -> Requirement:
        self.mapping({"key", "operator", "values"}, ["key", "operator"])
        operator = Operator(self.at("operator").choice([o.value for o in Operator]))
        key, values = self.at("key").label_key(), self.get("values")
        listed = [] if values is None else [item.label_value() for item in values.items(MAX_VALUES)]
        if bool(listed) is not (operator in (Operator.IN, Operator.NOT_IN)):
            need = "needs" if not listed else "takes no"
            raise self.fail(f"operator {operator.value} {need} values")
        return Requirement(key, operator, frozenset(listed))


def metadata(document: Field, *, namespaced: bool) -> tuple[str, str]:
    """Name and namespace (``default`` where absent, "" for what has none).

    A cluster's own fields in metadata (uid, annotations, managedFields and so on) are what ``kubectl get -o yaml``
    shows; they say nothing about policy and are let through, by name.
    """
    meta = document.at("metadata").mapping(_METADATA, ["name"])
    name = meta.at("name").name()
    namespace = meta.get("namespace")
    if not namespaced and namespace is not None:
        raise namespace.fail("this kind belongs to no namespace")
    return name, (namespace.name() if namespace else "default") if namespaced else ""


_METADATA = frozenset({
    "name", "namespace", "labels", "annotations", "uid", "resourceVersion", "generation", "creationTimestamp",
    "managedFields", "ownerReferences", "finalizers", "generateName", "selfLink", "deletionTimestamp",
    "deletionGracePeriodSeconds",
})  # fmt: skip
