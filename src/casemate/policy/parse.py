"""Documents of every kind to rules: the one way in for text from outside."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from casemate.policy import cluster, document, kubernetes
from casemate.policy.errors import PolicyInvalid, PolicyTooLarge
from casemate.policy.fields import Field, shown
from casemate.policy.rules import AuditedSegment, Rule, RuleSet, rule_set
from casemate.policy.source import load_documents
from casemate.policy.verdict import Action
from casemate.policy.walls import Wall
from casemate.policy.windows import in_force

#: In one policy set, all documents together.
MAX_RULES = 200_000
_KINDS = {
    (kubernetes.API_VERSION, kubernetes.KIND),
    (f"{cluster.GROUP}/v1alpha2", cluster.CLUSTER),
    (f"{cluster.GROUP}/v1alpha1", cluster.ADMIN),
    (f"{cluster.GROUP}/v1alpha1", cluster.BASELINE),
    (document.API_VERSION, document.KIND),
}
#: What ``kubectl get -o yaml`` prints for several, and a list of one kind as the API answers it.
_LISTS = {("v1", "List")} | {(version, f"{kind}List") for version, kind in _KINDS if version != document.API_VERSION}
#: Documents of Casemate's own that another command takes.
ELSEWHERE = {
    "TrustPolicy": "This document says which images may run: `casemate trust policy apply FILE`.",
    "TrustPolicyTest": "These are cases of a trust policy: `casemate trust policy test FILE`.",
}


@dataclass(frozen=True, slots=True)
class Policies:
    """Every document read, as one value."""

    rules: tuple[Rule, ...] = ()
    audited: tuple[AuditedSegment, ...] = ()
    walls: tuple[Wall, ...] = ()

    def in_force(self, minute_of_week: int, default: Action = Action.ALLOW) -> RuleSet:
        """The rules whose hours it is, in order; *default* holds for pods where no rule decides."""
        now = [rule for rule in self.rules if in_force(rule.windows, minute_of_week)]
        return rule_set(now, self.audited, default)


def parse(data: bytes, origin: str = "policy") -> Policies:
    """Every document in *data* (YAML or JSON, several by ``---``, ``List`` objects opened).

    Raises :class:`PolicyInvalid`, :class:`PolicyTooLarge` or :class:`ConditionInvalid`; each names *origin* and path.
    """
    return read(load_documents(data, origin), origin)


@dataclass(frozen=True, slots=True)
class Document:
    """One document: what it gives, and what it is. *key* tells it from all others: ``KIND/[PROJECT/]NAME``.

    *project* is "" for what belongs to the operator: such a document governs every project.
    """

    key: str
    kind: str
    project: str
    name: str
    value: Any
    parsed: document.Parsed


def read(documents: Iterable[Any], origin: str = "policy") -> Policies:
    """The same for values that were decoded already (a JSON request's body)."""
    return together(read_documents(documents, origin), origin)


def read_documents(documents: Iterable[Any], origin: str = "policy") -> list[Document]:
    """Each document alone, ``List`` objects opened; two of one key are refused."""
    found: list[Document] = []
    seen: set[str] = set()
    for item in _opened(documents, origin):
        one = _document(item)
        if one.key in seen:
            raise item.fail(f"{one.key} is there twice")
        seen.add(one.key)
        found.append(one)
    return found


def together(documents: Iterable[Document], origin: str = "policy") -> Policies:
    """All documents as one set; what no document can tell alone is refused here."""
    found = [one.parsed for one in documents]
    rules = tuple(rule for parsed in found for rule in parsed.rules)
    if len(rules) > MAX_RULES:
        raise PolicyTooLarge(f"{origin}: {len(rules)} rules, egress and ingress apart, allowed are {MAX_RULES}")
    walls = tuple(wall for parsed in found for wall in parsed.walls)
    if len({wall.name for wall in walls}) != len(walls):
        raise PolicyInvalid(f"{origin}: two walls have one name")
    return Policies(rules, tuple(segment for parsed in found for segment in parsed.audited), walls)


def _opened(documents: Iterable[Any], origin: str) -> Iterable[Field]:
    for number, value in enumerate(documents):
        field = Field(f"{origin}[{number}]", value)
        if isinstance(value, dict) and (value.get("apiVersion"), value.get("kind")) in _LISTS:
            field.mapping({"apiVersion", "kind", "metadata", "items"}, ["items"])
            yield from field.at("items").items(MAX_RULES)
        else:
            yield field


def _document(field: Field) -> Document:
    if not isinstance(field.value, dict):
        raise field.fail(f"{shown(field.value)} is no policy document: a mapping with apiVersion and kind")
    version, kind = field.at("apiVersion").text(), field.at("kind").text()
    if (version, kind) not in _KINDS:
        known = "; ".join(f"{v} {k}" for v, k in sorted(_KINDS))
        remedy = ELSEWHERE.get(kind) if version == document.API_VERSION else None
        raise field.fail(f"{shown(version)} {shown(kind)} is not known; known are {known}", remedy)
    meta = field.at("metadata").mapping_of_any()
    if kind == kubernetes.KIND:
        parsed = document.Parsed(tuple(kubernetes.network_policy(field)))
        owner = meta.get("namespace") or "default"
    elif kind == document.KIND:
        parsed = document.policy_document(field)
        owner = "" if field.value["spec"].get("tier") == "operator" else meta.get("project") or "default"
    else:
        parsed, owner = document.Parsed(tuple(cluster.cluster_policy(field, kind))), ""
    name = meta["name"]
    return Document(f"{kind}/{owner + '/' if owner else ''}{name}", kind, owner, name, field.value, parsed)
