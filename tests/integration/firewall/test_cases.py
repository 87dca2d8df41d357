"""The public cases of Kubernetes' NetworkPolicy, and rules made up at random: the kernel agrees with the engine.

One table, one lab; each step of a case is one replacement of the state and one packet for each pair, port and protocol.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Iterable

import pytest
from tests.integration.firewall.lab import ICMP, SCTP, TCP, UDP, Lab, Packet
from tests.unit.policy.test_kubernetes_cases import ALL, endpoints

from casemate.hostd import firewall_body
from casemate.network.firewall import sets
from casemate.network.firewall.kernel import Change
from casemate.node.firewall import pack
from casemate.policy.identity import Connection, Endpoint
from casemate.policy.labels import labels
from casemate.policy.parse import read
from casemate.policy.plan import Planner, Transaction
from casemate.policy.ports import Protocol
from casemate.policy.reference import evaluate
from casemate.policy.rules import RuleSet
from casemate.policy.verdict import Verdict

NUMBERS = {Protocol.TCP: TCP, Protocol.UDP: UDP, Protocol.SCTP: SCTP, Protocol.ICMP: ICMP, Protocol.OTHER: 47}
SETS = tuple(one.name for one in sets.IDENTITY_SETS)


def bring(lab: Lab, transaction: Transaction, generation: int, *, replace: bool) -> None:
    """A planner's transaction into the kernel, by the way that hostd goes."""
    body = firewall_body.parse(pack(transaction))
    lab.change(Change(body.deletes(), body.adds(), generation, SETS if replace else (), body.size))


def packets(connections: Iterable[Connection]) -> list[Packet]:
    return [
        Packet(str(one.source.addresses[0]), str(one.destination.addresses[0]), NUMBERS[one.protocol], one.port,
               20_000 + number % 40_000)
        for number, one in enumerate(connections)
    ]  # fmt: skip


def disagreements(lab: Lab, connections: list[Connection], expected: list[bool]) -> list[str]:
    lab.flush_connections()
    found = lab.passes(packets(connections))
    # A busy machine may lose one of many packets: what did not come is sent once more before it counts.
    again = [n for n, (seen, wanted) in enumerate(zip(found, expected, strict=True)) if wanted and not seen]
    if again:
        for n, seen in zip(again, lab.passes([packets(connections)[n] for n in again]), strict=True):
            found[n] = seen
    return [
        f"{one.describe()}: the kernel {'passes' if seen else 'stops'} it"
        for one, seen, wanted in zip(connections, found, expected, strict=True)
        if seen != wanted
    ]


def prepare(lab: Lab, pods: list[Endpoint]) -> None:
    addresses = [str(pod.addresses[0]) for pod in pods]
    lab.route(addresses)
    lab.make(lab.hardware(addresses))


def test_packets_agree_with_every_public_case(lab: Lab) -> None:
    if not ALL:
        pytest.skip("missing: ../shared/data/networkpolicy-cases.json.gz")
    wrong: list[str] = []
    known: set[str] = set()
    generation = 0
    for case in ALL:
        for step in case["steps"]:
            typed = [
                {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"} | policy for policy in step["policies"]
            ]
            pods = endpoints(step)
            addresses = {str(pod.addresses[0]) for pod in pods}
            if not addresses <= known:
                known |= addresses
                lab.route(addresses)
                lab.make(lab.hardware(known))
            generation += 1
            bring(lab, Planner(read(typed, "case").in_force(0), pods).start, generation, replace=True)
            asked: list[Connection] = []
            expected: list[bool] = []
            rows = iter(step["rows"])
            for server in step["servers"]:
                _, port, kind = server.split("-")
                for source in pods:
                    row = next(rows)
                    asked += [Connection(source, pod, Protocol[kind.upper()], int(port)) for pod in pods]
                    expected += [letter == "." for letter in row]
            wrong += [f"{case['desc']}: {line}" for line in disagreements(lab, asked, expected)]
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong[:20])


def made_up(chance: random.Random) -> RuleSet:
    """A few NetworkPolicies over the labels of :func:`some_pods`."""
    documents = []
    for number in range(chance.randint(0, 5)):
        spec: dict[str, object] = {"podSelector": _selector(chance), "policyTypes": []}
        for kind, side in (("Ingress", "from"), ("Egress", "to")):
            if chance.random() < 0.6:
                spec["policyTypes"].append(kind)  # type: ignore[attr-defined]
                spec[kind.lower()] = [_rule(chance, side) for _ in range(chance.randint(0, 3))]
        documents.append(
            {
                "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": {"name": f"p{number}", "namespace": chance.choice("xy")}, "spec": spec,
            }
        )  # fmt: skip
    return read(documents, "made up").in_force(0)


def _selector(chance: random.Random) -> dict[str, object]:
    return {} if chance.random() < 0.4 else {"matchLabels": {"app": chance.choice("abc")}}


def _rule(chance: random.Random, side: str) -> dict[str, object]:
    rule: dict[str, object] = {}
    if chance.random() < 0.8:
        peers: list[dict[str, object]] = []
        for _ in range(chance.randint(1, 2)):
            peers.append(
                {"ipBlock": {"cidr": "192.168.50.0/29", "except": ["192.168.50.2/32"]}}
                if chance.random() < 0.3
                else {"podSelector": _selector(chance), "namespaceSelector": {}}
                if chance.random() < 0.5
                else {"podSelector": _selector(chance)}
            )
        rule[side] = peers
    if chance.random() < 0.7:
        ports: list[dict[str, object]] = []
        for _ in range(chance.randint(1, 2)):
            first = chance.randint(78, 90)
            kind = chance.choice(["TCP", "UDP", "SCTP"])
            ports.append({"protocol": kind, "port": first} | ({"endPort": first + 4} if chance.random() < 0.4 else {}))
        rule["ports"] = ports
    return rule


def some_pods() -> list[Endpoint]:
    return [
        Endpoint(
            f"{project}/{app}{number}", project, labels({"app": app}), labels({"name": project}), (),
            (ipaddress.ip_address(f"192.168.50.{1 + 6 * 'xy'.index(project) + 2 * 'abc'.index(app) + number}"),),
        )
        for project in "xy" for app in "abc" for number in (0, 1)
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_packets_agree_with_the_reference_for_rules_made_up(lab: Lab, seed: int) -> None:
    """Brought in as a whole and by changes: a pod relabelled, rules replaced."""
    chance = random.Random(seed)
    pods = some_pods()
    prepare(lab, pods)
    rules = made_up(chance)
    planner = Planner(rules, pods)
    bring(lab, planner.start, 1, replace=True)
    for generation in (2, 3, 4):
        asked = [
            Connection(source, destination, protocol, chance.randint(78, 94) if protocol in NUMBERS_WITH_PORTS else 0)
            for source in pods
            for destination in pods
            # Without ports the way back is the same connection, and passes with it: asked one way only.
            for protocol in (*NUMBERS_WITH_PORTS, *((Protocol.OTHER,) if source.name < destination.name else ()))
        ]
        expected = [evaluate(rules, one).verdict < Verdict.REFER for one in asked]
        assert disagreements(lab, asked, expected) == []
        if generation == 2:
            rules = made_up(chance)
            bring(lab, planner.replace_rules(rules), generation, replace=False)
        else:
            at = chance.randrange(len(pods))
            old = pods[at]
            pods[at] = Endpoint(
                old.name, old.project, labels({"app": chance.choice("abcd")}), old.project_labels, (), old.addresses
            )
            bring(lab, planner.put(pods[at]), generation, replace=False)


NUMBERS_WITH_PORTS = (Protocol.TCP, Protocol.UDP, Protocol.SCTP)
