"""The public cases of Kubernetes' NetworkPolicy, by the reference evaluator and by the compiled verdicts."""

from __future__ import annotations

import gzip
import ipaddress
import json
from pathlib import Path
from typing import Any

import pytest

from casemate.policy.addresses import BlockIndex
from casemate.policy.cells import cell_at
from casemate.policy.compile import Compiler
from casemate.policy.decision import Decision
from casemate.policy.identity import NOBODY, Connection, Endpoint, identity_of
from casemate.policy.labels import labels
from casemate.policy.parse import read
from casemate.policy.ports import NamedPort, Protocol, place
from casemate.policy.reference import evaluate
from casemate.policy.rules import RuleSet, block_groups
from casemate.policy.verdict import Verdict

CASES = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "networkpolicy-cases.json.gz"
COUNT = 179


def load() -> list[dict[str, Any]]:
    if not CASES.is_file():
        return []
    found: list[dict[str, Any]] = json.loads(gzip.decompress(CASES.read_bytes()))
    return found


ALL = load()


def test_the_cases_are_there() -> None:
    if not ALL:
        pytest.skip("missing: ../shared/data/networkpolicy-cases.json.gz")
    assert len(ALL) == COUNT


def endpoints(step: dict[str, Any]) -> list[Endpoint]:
    servers = []
    for server in step["servers"]:
        _, number, kind = server.split("-")
        servers.append(NamedPort(server, Protocol[kind.upper()], int(number)))
    return [
        Endpoint(
            f"{pod['NS']}/{pod['Name']}",
            pod["NS"],
            labels(pod["Labels"]),
            labels(step["namespaces"][pod["NS"]]),
            tuple(servers),
            (ipaddress.ip_address(pod["IP"]),),
        )
        for pod in step["pods"]
    ]


def letter(decision: Decision) -> str:
    closed = (decision.egress.verdict is Verdict.DENY, decision.ingress.verdict is Verdict.DENY)
    return {(False, False): ".", (False, True): "i", (True, False): "e", (True, True): "X"}[closed]


def compiled(rules: RuleSet, pods: list[Endpoint]) -> tuple[Compiler, dict[str, int]]:
    index = BlockIndex(block_groups(rules))
    identities = {pod.name: identity_of(pod, index) for pod in pods}
    numbers = NOBODY.allocate(identities.values()).numbers
    compiler = Compiler(rules, {number: identity for identity, number in numbers.items()})
    return compiler, {name: numbers[identity] for name, identity in identities.items()}


@pytest.mark.parametrize("case", ALL, ids=[f"{n}-{case['desc']}" for n, case in enumerate(ALL)])
def test_reference_and_compiled_agree_with_the_case(case: dict[str, Any]) -> None:
    for step in case["steps"]:
        # Eleven cases were made in memory, without the two fields that name the type; every document on disk has them.
        typed = [
            {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"} | policy for policy in step["policies"]
        ]
        rules = read(typed, "case").in_force(0)
        pods = endpoints(step)
        compiler, number = compiled(rules, pods)
        rows = iter(step["rows"])
        for server in step["servers"]:
            _, port, kind = server.split("-")
            protocol = Protocol[kind.upper()]
            for source in pods:
                expected = next(rows)
                asked = [Connection(source, pod, protocol, int(port)) for pod in pods]
                assert "".join(letter(evaluate(rules, one)) for one in asked) == expected
                cells = [compiler.cells(number[source.name], number[pod.name]) for pod in pods]
                fast = [cell_at(cell, place(protocol, int(port))).decision for cell in cells]
                assert "".join(map(letter, fast)) == expected
                assert fast == [evaluate(rules, one) for one in asked]
        assert next(rows, None) is None
