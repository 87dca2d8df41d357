"""The fast decider says what the slow evaluator says, at every port where something changes; and rates are counted."""

from __future__ import annotations

import ipaddress

import pytest

from casemate.node.policy.deciding import Decider, Rates
from casemate.policy.identity import Connection, Endpoint
from casemate.policy.parse import read_documents, together
from casemate.policy.ports import NamedPort, Protocol
from casemate.policy.reference import evaluate
from casemate.policy.rules import Action

DOCUMENT = {
    "apiVersion": "casemate/v1",
    "kind": "Policy",
    "metadata": {"name": "many"},
    "spec": {
        "segments": {
            "asker": {"select": {"matchLabels": {"app": "asker"}}, "default": {"egress": "refer"}},
            "db": {"select": {"matchLabels": {"app": "db"}}},
        },
        "rules": [
            {"from": [{"segment": "asker"}], "to": [{"segment": "db"}], "ports": ["tcp/80-90"], "action": "deny"},
            {"from": [{"segment": "asker"}], "to": "any", "ports": ["tcp/1-1023", "udp/53"], "action": "allow",
             "when": 'destination.labels.app == "db"'},
            {"from": [{"segment": "asker"}], "to": "any", "ports": ["tcp/metrics"], "action": "allow",
             "when": 'source.labels.app == "asker"'},
            {"from": [{"segment": "asker"}], "to": "any", "ports": ["tcp/2000-3000"], "action": "allow",
             "when": "rate < 5"},
        ],
    },
}  # fmt: skip
BY_PORT = {"from": [{"segment": "asker"}], "to": "any", "ports": ["tcp/4000-5000"], "action": "allow",
           "when": "port % 2 == 0"}  # fmt: skip
EDGES = (1, 52, 53, 54, 79, 80, 85, 90, 91, 1023, 1024, 1999, 2000, 3000, 3001, 4000, 4001, 5000, 5001, 9099, 9100,
         9101, 65_535)  # fmt: skip


def _end(name: str, number: int) -> Endpoint:
    ports = (NamedPort("metrics", Protocol.TCP, 9100),) if name == "db" else ()
    address = ipaddress.ip_address(f"10.9.0.{number}")
    return Endpoint(f"default/{name}", "default", (("app", name),), (), ports, (address,))


@pytest.mark.parametrize("by_port", [False, True])
def test_every_port_is_decided_as_the_slow_evaluator_does(by_port: bool) -> None:
    document = DOCUMENT | {"spec": DOCUMENT["spec"] | {"rules": [*DOCUMENT["spec"]["rules"], *[BY_PORT] * by_port]}}  # type: ignore[index, operator]
    documents = read_documents([document], "a test")
    rules = together(documents).in_force(0, Action.ALLOW)
    decider = Decider(rules, documents)
    asker, db, web = _end("asker", 1), _end("db", 2), _end("web", 3)
    verdicts = set()
    # Twice: what is kept of the first says the same.
    for rate in (1, 9):
        for source, destination in ((asker, db), (asker, web), (db, asker)):
            for protocol in (Protocol.TCP, Protocol.UDP):
                for port in EDGES:
                    one = Connection(source, destination, protocol, port)
                    said = decider.decide(one, 0.0, first_contact=False, rate=rate)
                    facts = decider.facts(one, 0.0, first_contact=False, rate=rate)
                    assert said == evaluate(rules, one, facts), one.describe()
                    verdicts.add(said.verdict)
    assert len(verdicts) == 3, "allowed, denied and referred"


def test_a_scan_of_ports_is_worked_out_once_for_each_stretch() -> None:
    documents = read_documents([DOCUMENT], "a test")
    decider = Decider(together(documents).in_force(0, Action.ALLOW), documents)
    asker, db = _end("asker", 1), _end("db", 2)
    kept = {id(decider.relevant(Connection(asker, db, Protocol.TCP, port))) for port in range(1, 65_536)}
    assert len(kept) <= 12


def test_rates_forget_what_is_older_than_their_time() -> None:
    rates = Rates(most=2)
    assert [rates.count("a", 100.0), rates.count("a", 100.9), rates.count("a", 105.0)] == [1, 2, 3]
    assert rates.count("a", 110.0) == 2, "the first two are ten seconds old"
    assert rates.count("a", 500.0) == 1
    assert rates.count("a", 3.0) == 1, "the clock was set back"
    assert [rates.count("b", 3.0), rates.count("c", 3.0), rates.count("a", 3.0)] == [1, 1, 1], "bounded in sources"
