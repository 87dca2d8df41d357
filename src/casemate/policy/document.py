"""Casemate's own policy documents: segments, rules, walls. docs/reference/policy.md describes every field.

A rule here is about a connection, not about one end: it becomes two rules of the ordered list, one for the opener's
side and one for the other's, of the same rank and name. A project's document governs the project's own ends alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from casemate.policy.addresses import BlockGroup
from casemate.policy.cluster import domain_name
from casemate.policy.conditions import Condition, condition
from casemate.policy.fields import MAX_RULES, MAX_VALUES, Field, metadata, shown
from casemate.policy.kubernetes import port_name
from casemate.policy.labels import EVERYTHING
from casemate.policy.ports import SPAN, WITH_PORTS, PortMatch, Protocol
from casemate.policy.rules import (
    Anyone,
    AuditedSegment,
    Blocks,
    Direction,
    Names,
    Peer,
    Rule,
    Tier,
    Workloads,
    gathered,
)
from casemate.policy.triggers import FLOW_FACTS, Trigger
from casemate.policy.verdict import Action
from casemate.policy.walls import Wall
from casemate.policy.windows import DAYS, MINUTES_A_DAY, Window

API_VERSION = "casemate/v1"
KIND = "Policy"
MAX_SEGMENTS = 1000
MAX_WALLS = 100
MAX_TRIGGERS = 100
MAX_QUARANTINE_S = 31_536_000
MAX_PEERS = 1000
_ACTIONS = {"allow": Action.ALLOW, "deny": Action.DENY, "refer": Action.REFER, "pass": Action.PASS}
_DEFAULTS = {"deny": Action.DENY, "refer": Action.REFER, "allow": Action.ALLOW}
#: The strictest default of several segments holds.
_STRICTEST = (Action.DENY, Action.REFER, Action.ALLOW)
_CLOCK = re.compile(r"([01][0-9]|2[0-4]):([0-5][0-9])\Z")
_PORT = re.compile(r"(tcp|udp|sctp)(?:/(?:([0-9]{1,5})(?:-([0-9]{1,5}))?|([a-z0-9-]*[a-z][a-z0-9-]*)))?\Z")
_ICMP = re.compile(r"icmp(?:/([0-9]{1,3}))?\Z")
#: What a project's segment in audit mode lets pass; the operator's own tiers stay in force there.
_OPERATOR_AUDIT = frozenset(Tier) - {Tier.GUARD}
_PROJECT_AUDIT = frozenset({Tier.PROJECT, Tier.NETWORK, Tier.DEFAULT})


@dataclass(frozen=True, slots=True)
class Parsed:
    """What one document gives."""

    rules: tuple[Rule, ...] = ()
    audited: tuple[AuditedSegment, ...] = ()
    walls: tuple[Wall, ...] = ()
    #: Segments by name, in the order of the document.
    segments: tuple[tuple[str, Workloads], ...] = ()
    triggers: tuple[Trigger, ...] = ()


@dataclass(frozen=True, slots=True)
class _Scope:
    """The document around a rule: its id's beginning, its tier and priority, its project (None: the operator's)."""

    id: str
    tier: Tier
    priority: int
    project: str | None
    segments: dict[str, Workloads]


def policy_document(document: Field) -> Parsed:
    """Everything in one ``casemate/v1`` document. Raises :class:`PolicyInvalid` with the path."""
    document.mapping({"apiVersion", "kind", "metadata", "spec"}, ["metadata", "spec"])
    meta = document.at("metadata").mapping({"name", "project", "annotations", "labels"}, ["name"])
    spec = document.at("spec").mapping({"tier", "priority", "segments", "rules", "walls", "quarantine"})
    asked = spec.get("tier")
    operator = asked is not None and asked.choice(["operator", "project"]) == "operator"
    project = meta.get("project")
    if operator and project is not None:
        raise project.fail("an operator's policy belongs to no project")
    owner = None if operator else project.name() if project else "default"
    priority = spec.get("priority")
    name = metadata(Field(document.path, {"metadata": {"name": meta.at("name").value}}), namespaced=False)[0]
    scope = _Scope(
        f"{KIND}/{owner + '/' if owner else ''}{name}",
        Tier.OPERATOR if operator else Tier.PROJECT,
        priority.integer(0, 1000) if priority else 500,
        owner,
        {},
    )
    rules, audited = _segments(spec, scope)
    listed = spec.get("rules")
    for number, item in enumerate(listed.items(MAX_RULES) if listed else ()):
        rules += _rule(item, scope, number)
    walls = spec.get("walls")
    found = tuple(_wall(item, scope) for item in walls.items(MAX_WALLS)) if walls else ()
    if found and not operator:
        assert walls is not None
        raise walls.fail("walls are the operator's: tier must be operator")
    if len({wall.name for wall in found}) != len(found):
        assert walls is not None
        raise walls.fail("two walls have one name")
    given = spec.get("quarantine")
    if given is not None and not operator:
        raise given.fail("quarantines by rule are the operator's: tier must be operator")
    triggers = [_trigger(item, scope) for item in given.items(MAX_TRIGGERS)] if given else []
    return Parsed(tuple(rules), tuple(audited), found, tuple(scope.segments.items()), tuple(triggers))


def _segments(spec: Field, scope: _Scope) -> tuple[list[Rule], list[AuditedSegment]]:
    rules: list[Rule] = []
    audited: list[AuditedSegment] = []
    listed = spec.get("segments")
    for name, field in listed.entries(MAX_SEGMENTS) if listed else ():
        Field(field.path, name).name()
        field.mapping({"select", "project", "projects", "default", "audit"}, ["select"])
        members = _workloads(field, scope)
        scope.segments[name] = members
        segment_id = f"{scope.id}:segment[{name}]"
        for direction, action in _defaults(field).items():
            rank = (_STRICTEST.index(action), segment_id, 0)
            rule_id = f"{segment_id}:{direction.value}"
            rules.append(Rule(rule_id, Tier.DEFAULT, rank, direction, members, (Anyone(),), action, name=name))
        audit = field.get("audit")
        if audit is not None and audit.boolean():
            tiers = _OPERATOR_AUDIT if scope.project is None else _PROJECT_AUDIT
            audited.append(AuditedSegment(segment_id, members, tiers))
    return rules, audited


def _defaults(field: Field) -> dict[Direction, Action]:
    """``default: deny`` for both directions, or ``default: {ingress: deny, egress: allow}``."""
    value = field.get("default")
    if value is None:
        return {}
    if isinstance(value.value, str):
        action = _DEFAULTS[value.choice(list(_DEFAULTS))]
        return dict.fromkeys(Direction, action)
    value.mapping({"ingress", "egress"})
    asked = {direction: value.get(direction.value) for direction in Direction}
    return {d: _DEFAULTS[inner.choice(list(_DEFAULTS))] for d, inner in asked.items() if inner is not None}


def _workloads(field: Field, scope: _Scope) -> Workloads:
    """``select``; where the document is the operator's, in a ``project`` or in the ``projects`` of a selector."""
    if scope.project is not None:
        for key in ("project", "projects"):
            if (given := field.get(key)) is not None:
                raise given.fail(f"a project's segment is within the project; {key} is for tier operator")
        return Workloads(field.at("select").selector(), project=scope.project)
    return _located(field, None)


def _located(field: Field, home: str | None) -> Workloads:
    """``select`` with ``project`` (a name) or ``projects`` (a selector of projects' labels); neither: *home*."""
    select, project, projects = field.at("select").selector(), field.get("project"), field.get("projects")
    if project is not None and projects is not None:
        raise projects.fail("project and projects exclude each other")
    if projects is not None:
        return Workloads(select, projects=projects.selector())
    return Workloads(select, project=project.name() if project else home)


def _rule(item: Field, scope: _Scope, number: int) -> list[Rule]:
    item.mapping({"name", "from", "to", "ports", "action", "when", "during", "audit"}, ["from", "to", "action"])
    action = _ACTIONS[item.at("action").choice(list(_ACTIONS))]
    sources, destinations = _peers(item.at("from"), scope, outside=True), _peers(item.at("to"), scope, outside=True)
    listed, title, when, audit = (item.get(key) for key in ("ports", "name", "when", "audit"))
    ports = tuple(_port(field) for field in listed.items(MAX_VALUES, least=1)) if listed else None
    asked: Condition | None = condition(when.text(1024), when.path) if when else None
    during = item.get("during")
    windows = tuple(_window(field) for field in during.items(50, least=1)) if during else ()
    audited = audit is not None and audit.boolean()
    if audit is not None and audited and (asked or action in (Action.ALLOW, Action.PASS)):
        raise audit.fail("audit is for rules that deny or refer, and without a condition (that would hold the packet)")
    rule_id = f"{scope.id}:rules[{number}]"
    rank = (scope.priority, scope.id, number)
    name = title.text(100) if title else ""
    out: list[Rule] = []
    for direction, subjects, peers in (
        (Direction.EGRESS, sources, destinations),
        (Direction.INGRESS, destinations, sources),
    ):
        for place, subject in enumerate(_subjects(subjects, scope)):
            out.append(Rule(f"{rule_id}:{direction.value}[{place}]", scope.tier, rank, direction, subject, peers,
                            action, ports, name, audited, asked, windows))  # fmt: skip
    if not out:
        raise item.fail(f"neither end is in project {scope.project!r}: this rule would govern nobody")
    return out


def _subjects(ends: tuple[Peer, ...], scope: _Scope) -> list[Workloads]:
    """The pods among *ends* that this document may govern. Outside ends have no side of their own."""
    found: list[Workloads] = []
    for end in ends:
        if isinstance(end, Anyone | Blocks):
            # Blocks hold pods' addresses too, but who they are is for labels to say: such a rule governs the other end.
            if isinstance(end, Anyone):
                found.append(Workloads(EVERYTHING, project=scope.project))
        elif isinstance(end, Workloads):
            if scope.project is None or end.project == scope.project:
                found.append(end)
            elif end.project is None:
                found.append(replace(end, project=scope.project))
    return list(dict.fromkeys(found))


def _peers(field: Field, scope: _Scope, *, outside: bool) -> tuple[Peer, ...]:
    """``any``, or a list of ``segment``, ``select`` (with ``projects``), ``cidr`` (with ``except``), ``names``."""
    if field.value == "any":
        return (Anyone(),)
    return gathered([_peer(item, scope, outside=outside) for item in field.items(MAX_PEERS, least=1)])


def _peer(field: Field, scope: _Scope, *, outside: bool) -> Peer:
    keys = {"segment", "select", "project", "projects"} | ({"cidr", "except", "names"} if outside else set())
    field.mapping(keys)
    chosen = {"segment", "select", "cidr", "names"} & field.value.keys()
    if len(chosen) != 1:
        raise field.fail(f"exactly one of segment, select, cidr, names is needed, {len(chosen)} are there")
    match chosen.pop():
        case "segment":
            name = field.mapping({"segment"}).at("segment").text()
            if name not in scope.segments:
                known = ", ".join(sorted(scope.segments)) or "none"
                raise field.at("segment").fail(f"no segment {shown(name)} in this document; there are {known}")
            return scope.segments[name]
        case "select":
            return _located(field.mapping({"select", "project", "projects"}), scope.project)
        case "cidr":
            return Blocks(BlockGroup((field.block(),)))
        case _:
            return Names(tuple(domain_name(i) for i in field.mapping({"names"}).at("names").items(100, least=1)))


def _port(field: Field) -> PortMatch:
    """``tcp``, ``tcp/443``, ``tcp/8000-8100``, ``tcp/web``, ``icmp``, ``icmp/8``."""
    text = field.text(40)
    if found := _ICMP.match(text):
        kind = found.group(1)
        if kind is None:
            return PortMatch(Protocol.ICMP)
        if int(kind) > 255:
            raise field.fail(f"ICMP type {kind} is outside 0..255")
        return PortMatch(Protocol.ICMP, int(kind), int(kind))
    found = _PORT.match(text)
    if not found:
        raise field.fail(f"{shown(text)} is not a port: tcp, tcp/443, tcp/8000-8100, tcp/NAME, icmp or icmp/8")
    protocol, first, last, name = Protocol[found.group(1).upper()], *found.groups()[1:]
    assert protocol in WITH_PORTS
    if name is not None:
        return PortMatch(protocol, name=port_name(Field(field.path, name)))
    if first is None:
        return PortMatch(protocol)
    low, high = int(first), int(last or first)
    if not 1 <= low <= high < SPAN:
        raise field.fail(f"{shown(text)}: ports are 1..65535, the lower first")
    return PortMatch(protocol, low, high)


def _window(field: Field) -> Window:
    field.mapping({"days", "from", "to"}, ["from", "to"])
    listed = field.get("days")
    days = frozenset(DAYS.index(i.choice(DAYS)) for i in listed.items(7, least=1)) if listed else frozenset(range(7))
    first, end = _clock(field.at("from")), _clock(field.at("to"))
    if first == MINUTES_A_DAY:
        raise field.at("from").fail("24:00 can only end a window")
    return Window(days, first, end)


def _clock(field: Field) -> int:
    text = field.text(5)
    found = _CLOCK.match(text)
    if not found or (minute := int(found.group(1)) * 60 + int(found.group(2))) > MINUTES_A_DAY:
        raise field.fail(f'{shown(text)} is not a time "HH:MM" (UTC, in quotes)')
    return minute


def _wall(field: Field, scope: _Scope) -> Wall:
    field.mapping({"name", "members"}, ["name", "members"])
    members: list[tuple[str, tuple[Workloads, ...]]] = []
    for name, inner in field.at("members").entries(MAX_VALUES):
        Field(inner.path, name).name()
        picks = tuple(_peer(item, scope, outside=False) for item in inner.items(MAX_PEERS, least=1))
        members.append((name, tuple(pick for pick in picks if isinstance(pick, Workloads))))
    if len(members) < 2:
        raise field.at("members").fail(f"{len(members)} members, a wall needs at least 2")
    return Wall(field.at("name").name(), tuple(members))


def _trigger(item: Field, scope: _Scope) -> Trigger:
    """``name``, ``when`` (over flow events), ``of`` (segments or selectors), ``for`` (seconds), ``reason``."""
    item.mapping({"name", "when", "of", "for", "reason"}, ["name", "when"])
    name, when, of, lasts, reason = (item.get(key) for key in ("name", "when", "of", "for", "reason"))
    assert name is not None
    assert when is not None
    picks = tuple(_peer(one, scope, outside=False) for one in of.items(MAX_PEERS, least=1)) if of else None
    return Trigger(
        f"{scope.id}:quarantine[{name.name()}]",
        name.name(),
        condition(when.text(1024), when.path, FLOW_FACTS),
        None if picks is None else tuple(pick for pick in picks if isinstance(pick, Workloads)),
        lasts.integer(1, MAX_QUARANTINE_S) if lasts else 0,
        reason.text(1000) if reason else "",
    )
