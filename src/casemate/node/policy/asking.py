"""Questions to policy: explain, test, simulate, suggest, identities. Nothing is changed here."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from casemate.node.core import Caller, Core
from casemate.node.flows.query import PASSED
from casemate.node.owners import sees_end
from casemate.node.policy import ends, walling
from casemate.node.policy.documents import text_of
from casemate.node.policy.errors import ExpectationsInvalid, FlowsAbsent
from casemate.node.policy.guards import guarded
from casemate.node.policy.reading import read_text
from casemate.policy.askable import words
from casemate.policy.explain import explain
from casemate.policy.flows import simulate as replayed
from casemate.policy.flows import suggest as suggested
from casemate.policy.identity import Connection, Kind
from casemate.policy.parse import together
from casemate.policy.reference import evaluate
from casemate.policy.rules import RuleSet
from casemate.policy.source import load_documents
from casemate.spec.api.policy import (
    EndText,
    ExplainAnswer,
    ExplainRequest,
    HoldRow,
    IdentityList,
    IdentityRow,
    PolicyStatus,
    PortText,
    SimulateAnswer,
    SimulatedFlow,
    SuggestAnswer,
    TestAnswer,
    TestResult,
    VerdictWord,
)
from casemate.spec.workload import Project

MAX_TESTS = 10_000
MAX_SHOWN = 1000
MAX_TEST_BYTES = 4 << 20


async def explained(core: Core, request: ExplainRequest) -> ExplainAnswer:
    """Why this connection has its verdict, and what would change it."""
    source = await ends.end(core, request.source, request.project)
    destination = await ends.end(core, request.destination, request.project)
    protocol, port = ends.port(request.port, destination)
    policy = core.policy
    rules = policy.rules if policy.active else RuleSet()
    asked = Connection(source, destination, protocol, port)
    found = await asyncio.to_thread(explain, rules, asked)
    wall = await walling.said(core, source, destination)
    lines = tuple(found.lines()) + ((wall,) if wall else ())
    guard = guarded(source, destination, ipaddress.IPv4Network(core.settings.text("network.pool")))
    if guard is not None:
        lines = (f"{asked.describe()}: deny by {guard.rule}: {guard.why}; no rule opens it", "the rules alone:", *lines)
        return ExplainAnswer(
            verdict="deny", rule=guard.rule, lines=lines, egress_rule=found.decision.egress.rule,
            ingress_rule=found.decision.ingress.rule, source=source.name, destination=destination.name, wall=wall,
        )  # fmt: skip
    number = policy.number_of(source.name)
    if destination.kind is Kind.WORLD and number and core.settings.flag("network.resolver"):
        lines += (words(source.name, policy.askable(number)),)
    return ExplainAnswer(
        verdict=_word(found.decision.verdict.word), rule=found.decision.rule, lines=lines,
        egress_rule=found.decision.egress.rule, ingress_rule=found.decision.ingress.rule, source=source.name,
        destination=destination.name, changes=tuple(change.describe() for change in found.changes), admit=found.admit,
        wall=wall,
    )  # fmt: skip


def _word(text: str) -> VerdictWord:
    return text  # type: ignore[return-value]  # the words of Verdict are these


class _Test(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"source": "from", "destination": "to"}):
    source: EndText
    destination: EndText
    port: PortText
    expect: VerdictWord
    project: Project = "default"
    name: Annotated[str, Meta(max_length=200)] = ""


class _Tests(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tests: Annotated[tuple[_Test, ...], Meta(min_length=1, max_length=MAX_TESTS)]


async def tested(core: Core, tests: bytes, documents: bytes) -> TestAnswer:
    """Whether each expectation of *tests* (YAML) holds: of what is in force, or, where given, of *documents* alone."""
    policy = core.policy
    await policy.load()
    wanted = await asyncio.to_thread(_read_tests, tests)
    rules = policy.rules if policy.active else RuleSet()
    if documents:
        candidate = await asyncio.to_thread(together, await read_text(documents))
        rules, _ = policy.worked_out(candidate)
    results: list[TestResult] = []
    for one in wanted:
        source = await ends.end(core, one.source, one.project)
        destination = await ends.end(core, one.destination, one.project)
        protocol, port = ends.port(one.port, destination)
        asked = Connection(source, destination, protocol, port)
        decision = await asyncio.to_thread(evaluate, rules, asked)
        word = _word(decision.verdict.word)
        results.append(TestResult(one.name, asked.describe(), one.expect, word, decision.rule, held=word == one.expect))
    return TestAnswer(tuple(results), all(result.held for result in results))


def _read_tests(data: bytes) -> tuple[_Test, ...]:
    if len(data) > MAX_TEST_BYTES:
        raise ExpectationsInvalid(f"the tests have {len(data)} bytes, allowed are {MAX_TEST_BYTES}")
    found = load_documents(data, "tests")
    if len(found) != 1:
        raise ExpectationsInvalid(f"{len(found)} YAML documents; one with the list `tests` is needed")
    try:
        return msgspec.convert(found[0], _Tests).tests
    except msgspec.ValidationError as error:
        raise ExpectationsInvalid(f"tests: {error}") from error


async def simulated(core: Core, documents: bytes, since: float, *, whole: bool) -> SimulateAnswer:
    """What *documents* would do with the flows recorded since; with *whole*, alone, else beside those in force."""
    policy = core.policy
    await policy.load()
    read = await read_text(documents)
    kept = {} if whole else dict(policy.documents)
    kept |= {one.key: one for one in read}
    after, _ = policy.worked_out(await asyncio.to_thread(together, list(kept.values())))
    flows = await recorded(core, since)
    before = policy.rules if policy.active else RuleSet()
    found = await asyncio.to_thread(replayed, flows, before, after)
    rows = tuple(
        SimulatedFlow(
            one.flow.describe(), one.count, _word(one.before.verdict.word), one.before.rule,
            _word(one.after.verdict.word), one.after.rule,
        )
        for one in found[:MAX_SHOWN]
    )  # fmt: skip
    return SimulateAnswer(len(flows), sum(count for _, count in flows), rows)


async def suggested_for(core: Core, since: float, name: str) -> SuggestAnswer:
    """The narrowest document that admits what passed since; what was refused is nobody's right."""
    flows = await recorded(core, since, PASSED)
    document: dict[str, Any] = await asyncio.to_thread(suggested, [flow for flow, _ in flows], name)
    return SuggestAnswer(len(flows), document, text_of(document))


async def recorded(core: Core, since: float, verdicts: tuple[str, ...] = ()) -> list[tuple[Connection, int]]:
    """Recorded connections (of *verdicts*, where some are named) with counts.

    Raises :class:`FlowsAbsent` where nothing records or nothing is there.
    """
    if core.flows_between is None:
        raise FlowsAbsent("nothing records flows on this node")
    found: Iterable[tuple[Connection, int]] = await core.flows_between(since, verdicts)
    flows = list(found)
    if not flows:
        raise FlowsAbsent(f"no connection {'passed' if verdicts else 'was recorded'} in that time")
    return flows


async def status(core: Core, referrals: dict[str, int], caller: Caller) -> PolicyStatus:
    """What holds, of workloads that *caller* sees, and what was counted on the node; raises what hostd answers."""
    await core.policy.load()
    seen = await core.policy.firewall.state()
    workloads = core.policy.workloads
    holds = tuple(
        HoldRow(one.pod, workloads[one.pod].name if one.pod in workloads else "", one.waiting, one.refused, one.left_s)
        for one in seen.holding
    )
    if caller.projects is not None:
        holds = tuple(one for one in holds if sees_end(caller, one.workload))
    return PolicyStatus(core.policy.state(), seen.elements, seen.counters, referrals, seen.waiting, holds)


async def identities(core: Core, caller: Caller, project: str = "") -> IdentityList:
    """Every identity that the kernel knows (of *project*, if given) and *caller* sees, and whose it is."""
    policy = core.policy
    await policy.load()
    planner = policy.planner
    if planner is None:
        return IdentityList(())
    holders: dict[int, list[str]] = {}
    for workload in policy.workloads.values():
        number = policy.number(workload.pod)
        if number:
            holders.setdefault(number, []).append(workload.name)
    rows = [
        IdentityRow(number, one.kind.value, one.project, dict(one.labels), tuple(sorted(holders.get(number, ()))))
        for number, one in sorted(planner.compiler.identities.items())
        if (one.project == project if project else one.kind is Kind.POD or one.dns or one.blocks)
        and (caller.projects is None or one.project in caller.projects)
    ]
    return IdentityList(tuple(rows))
