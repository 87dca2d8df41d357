"""Fuzz the policy reader: any bytes give rules or a CasemateError, quickly; rules compile and agree with the reference.

    python tests/fuzz/policy_parse.py [SECONDS [FOLDER FOR FINDINGS]]

Needs atheris; the seeds alone are played through by tests/unit/policy/test_fuzz.py on every run.
"""

# ruff: noqa: E501 - seeds
from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["casemate.policy"]):
        import casemate.policy.plan
        import casemate.policy.reference  # noqa: F401

from casemate.policy.cells import cell_at
from casemate.policy.conditions import condition
from casemate.policy.errors import ConditionInvalid
from casemate.policy.identity import Connection, Endpoint, Kind
from casemate.policy.labels import labels
from casemate.policy.parse import Policies, parse
from casemate.policy.plan import Planner
from casemate.policy.ports import Protocol, place
from casemate.policy.reference import evaluate
from casemate.spec.errors import CasemateError

BOUND_S = 10.0
ENDS = (
    Endpoint("x/a", "x", labels({"app": "web"}), labels({"ns": "x"}), (), (ipaddress.ip_address("10.0.0.1"),)),
    Endpoint("y/b", "y", labels({"app": "db"}), labels({"ns": "y"})),
    Endpoint("w", kind=Kind.WORLD, dns=frozenset({"api.example.org"}), addresses=(ipaddress.ip_address("192.0.2.1"),)),
)
SEEDS = (
    b"apiVersion: casemate/v1\nkind: Policy\nmetadata: {name: p, project: x}\nspec:\n  segments: {s: {select: {matchLabels: "
    b"{app: web}}, default: deny, audit: true}}\n  rules: [{from: [{segment: s}], to: [{names: ['*.example.org']}, {cidr: "
    b"10.0.0.0/8, except: [10.0.0.0/24]}], ports: [tcp/80-90, icmp/8], action: refer, during: [{from: '01:00', to: '02:00'}]}]\n",
    b"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: x}\nspec: {podSelector: {}, ingress: "
    b"[{from: [{namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x]}]}}], ports: [{port: web}]}]}\n",
    b"apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: p}\nspec: {tier: Admin, priority: 1, "
    b"subject: {namespaces: {}}, egress: [{action: Deny, to: [{networks: [0.0.0.0/0]}], protocols: [{tcp: {destinationPort: {number: 80}}}]}]}\n",
    b"apiVersion: casemate/v1\nkind: Policy\nmetadata: {name: w}\nspec: {tier: operator, rules: [{from: any, to: any, action: deny, "
    b"when: 'source.labels.app == \"x\" && [1, 2].all(a, a < port)'}], walls: [{name: w, members: {a: [{select: {}}], b: [{select: {}}]}}]}\n",
    b"a: &x [1]\nb: *x\n",
    b"{" * 64,
)


def one_input(data: bytes) -> None:
    """Anything but rules that agree with the reference, or a CasemateError, is a finding."""
    start = time.monotonic()
    try:
        policies = parse(data, "fuzz")
    except CasemateError:
        policies = Policies()
    agree(policies)
    with contextlib.suppress(ConditionInvalid):
        condition(data[:2000].decode("latin-1"), "fuzz")
    if time.monotonic() - start > BOUND_S:
        raise AssertionError("too slow")


def agree(policies: Policies) -> None:
    rules = policies.in_force(90)
    try:
        planner = Planner(rules, ENDS)
    except CasemateError:
        return
    for source in ENDS:
        for destination in ENDS:
            if Kind.POD not in (source.kind, destination.kind):
                continue
            cells = planner.compiler.cells(planner.number(source.name), planner.number(destination.name))
            for port in (0, 8, 80, 85, 65535):
                asked = Connection(source, destination, Protocol.TCP, port)
                assert cell_at(cells, place(Protocol.TCP, port)).decision == evaluate(rules, asked)


def main() -> None:
    seconds = sys.argv[1] if len(sys.argv) > 1 else "60"
    found = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(tempfile.mkdtemp(prefix="policy-fuzz-"))
    found.mkdir(exist_ok=True)
    for seed in SEEDS:
        (found / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    atheris.Setup(
        [sys.argv[0], str(found), f"-max_total_time={seconds}", "-max_len=16384", "-print_final_stats=1"], one_input
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
