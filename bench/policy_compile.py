"""The policy compiler: 5,000 rules over 50,000 endpoints of a few hundred identities, all anew, and one change.

Budgets (issue 5): all anew 5 s; one rule or endpoint change from API to kernel 10 ms median, of which planning
is to take a few. Pure computing: needs no root. ``python bench/policy_compile.py [RULES [ENDPOINTS [IDENTITIES]]]``
"""

from __future__ import annotations

import gc
import ipaddress
import random
import resource
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from casemate.policy.identity import Endpoint
from casemate.policy.labels import labels
from casemate.policy.parse import Policies, parse
from casemate.policy.plan import Planner
from casemate.policy.rules import RuleSet, rule_set
from casemate.policy.verdict import Action

BUDGET_S = 5.0
CHANGES = 60
SEED = 5


def documents(rules: int, apps: int, dice: random.Random) -> bytes:
    """NetworkPolicy documents of a rule each: an app is reached by two others at a port; each tenth by a network."""
    out = []
    for number in range(rules):
        app, one, other = (dice.randrange(apps) for _ in range(3))
        peers = (
            f"[{{podSelector: {{matchLabels: {{app: a{one}}}}}}}, {{podSelector: {{matchLabels: {{app: a{other}}}}}}}]"
        )
        if number % 10 == 0:
            peers = f"[{{ipBlock: {{cidr: 203.0.{number // 10 % 256}.0/24}}}}]"
        out.append(f"""---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: p{number}, namespace: default}}
spec:
  podSelector: {{matchLabels: {{app: a{app}}}}}
  ingress: [{{from: {peers}, ports: [{{protocol: TCP, port: {8000 + number % 500}}}]}}]
""")
    return "".join(out).encode()


def fleet(count: int, apps: int) -> list[Endpoint]:
    first = int(ipaddress.ip_address("10.0.0.1"))
    return [
        Endpoint(
            f"default/e{n}", "default", labels({"app": f"a{n % apps}"}), (), (), (ipaddress.IPv4Address(first + n),)
        )
        for n in range(count)
    ]


def clock() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def spent_ms(start: tuple[float, float]) -> tuple[float, float]:
    return (time.perf_counter() - start[0]) * 1e3, (time.process_time() - start[1]) * 1e3


def timed_ms(samples: list[tuple[float, float]]) -> str:
    wall = sorted(sample[0] for sample in samples)
    computing = statistics.median(sample[1] for sample in samples)
    p99 = wall[int(len(wall) * 0.99)]
    return f"median {statistics.median(wall):.2f} ms, p99 {p99:.2f} ms; computing alone, median {computing:.2f} ms"


def changes(planner: Planner, policies: Policies, ends: list[Endpoint], apps: int) -> None:
    rules: RuleSet = policies.in_force(0)
    joins, relabels, edits = [], [], []
    for number in range(CHANGES):
        start = clock()
        planner.put(
            replace(ends[number], name=f"default/new{number}", addresses=(ipaddress.IPv4Address(0x0AF00000 + number),))
        )
        joins.append(spent_ms(start))
        start = clock()
        planner.put(replace(ends[number], labels=labels({"app": f"a{number % apps}", "quarantine": f"q{number}"})))
        relabels.append(spent_ms(start))
        old = rules.rules[number * 7]
        new = replace(old, action=Action.DENY if old.action is Action.ALLOW else Action.ALLOW)
        rules = rule_set([new if rule is old else rule for rule in rules.rules], rules.audited, rules.default)
        start = clock()
        planner.replace_rules(rules)
        edits.append(spent_ms(start))
    print(f"a pod of a known identity comes      {timed_ms(joins)}")
    print(f"a pod gets an identity of its own    {timed_ms(relabels)}")
    print(f"one rule changes                     {timed_ms(edits)}")


def main() -> int:
    count, endpoints, apps = (int(a) for a in [*sys.argv[1:], *("5000", "50000", "300")[len(sys.argv) - 1 :]])
    text = documents(count, apps, random.Random(SEED))
    start = time.perf_counter()
    policies = parse(text, "bench")
    size = f"{count} documents read ({len(text) / 1e6:.1f} MB)"
    print(f"{size}     {time.perf_counter() - start:.2f} s, {len(policies.rules)} rules")
    ends = fleet(endpoints, apps)
    start, cpu = time.perf_counter(), time.process_time()
    planner = Planner(policies.in_force(0), ends)
    took = time.perf_counter() - start
    spent = time.process_time() - cpu
    plan = planner.start
    what = f"all anew: {endpoints} endpoints, {len(planner.compiler.identities)} identities"
    print(f"{what}   {took:.2f} s, {spent:.2f} s of them computing "
          f"({len(plan.adds)} verdict elements, {len(plan.address_adds)} addresses); budget {BUDGET_S} s")  # fmt: skip
    # What a daemon does after it has loaded: the collector would otherwise walk all of it now and then.
    gc.collect()
    gc.freeze()
    changes(planner, policies, ends, apps)
    print(f"largest resident size {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    return int(took > BUDGET_S)


if __name__ == "__main__":
    sys.exit(main())
