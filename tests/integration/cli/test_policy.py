"""Policy at the command line: what people type, what they see, what the exit code is."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from tests.terminal import Cli

SHOP = b"""
apiVersion: casemate/v1
kind: Policy
metadata: {name: shop}
spec:
  segments:
    web: {select: {matchLabels: {app: web}}}
    db: {select: {matchLabels: {app: db}}, default: {ingress: deny}}
  rules:
    - {name: web to db, from: [{segment: web}], to: [{segment: db}], ports: [tcp/5432], action: allow}
"""
WALL = b"""
apiVersion: casemate/v1
kind: Policy
metadata: {name: banks}
spec:
  tier: operator
  segments: {a: {select: {matchLabels: {bank: a}}}, b: {select: {matchLabels: {bank: b}}}}
  walls: [{name: banks, members: {a: [{segment: a}], b: [{segment: b}]}}]
"""


@pytest.fixture(autouse=True)
def no_policy_stays(cm: Cli) -> Iterator[None]:
    yield
    for name in cm("quarantine", "ls", "-q").stdout.decode().split():
        cm("quarantine", "release", name, "--reason", "the test is over")
    keys = cm("policy", "ls", "-q").stdout.decode().split()
    if keys:
        cm("policy", "rm", *keys)


def test_a_document_from_diff_to_rm(cm: Cli) -> None:
    cm("run", "-d", "--name", "web", "-l", "app=web", "busybox", "sleep", "1000")
    cm("run", "-d", "--name", "db", "-l", "app=db", "busybox", "sleep", "1000")
    diff = cm("policy", "diff", "-f", "-", "--exit-code", stdin=SHOP)
    assert diff.returncode == 1
    assert b"+    action: allow" in diff.stdout
    assert cm("policy", "ls", "-q").stdout == b"", "a diff changes nothing"
    assert cm("policy", "apply", "-f", "-", stdin=SHOP).stdout == b"Policy/default/shop added\n"
    assert cm("policy", "diff", "-f", "-", "--exit-code", stdin=SHOP).returncode == 0
    told = cm("policy", "explain", "web", "db", "tcp/22").stdout.decode()
    assert told.startswith("default/web to default/db tcp/22: deny by Policy/default/shop:segment[db]:ingress\n")
    assert "without Policy/default/shop:segment[db]:ingress: allow" in told
    answer = json.loads(cm("policy", "explain", "web", "db", "tcp/5432", "--json").stdout)
    assert answer["verdict"] == "allow"
    assert b"kind: Policy" in cm("policy", "show", "shop").stdout
    assert b"Policy: in force" in cm("policy", "status").stdout
    rows = json.loads(cm("identity", "ls", "--json").stdout)
    assert {name for row in rows for name in row["workloads"]} == {"default/web", "default/db"}
    shown = cm("ps", "--format", "{{.Names}} {{.Identity}}").stdout.decode().split()
    assert int(shown[1]) >= 256
    assert cm("policy", "rm", "shop").stdout == b"Policy/default/shop removed\n"
    assert cm("policy", "rm", "shop").returncode == 125


def test_expectations_in_the_exit_code(cm: Cli) -> None:
    cm("run", "-d", "--name", "web", "-l", "app=web", "busybox", "sleep", "1000")
    cm("run", "-d", "--name", "db", "-l", "app=db", "busybox", "sleep", "1000")
    cm("policy", "apply", "-f", "-", stdin=SHOP)
    line = "tests: [{{from: web, to: db, port: tcp/22, expect: {}}}]"
    assert cm("policy", "test", "-f", "-", stdin=line.format("deny").encode()).returncode == 0
    failed = cm("policy", "test", "-f", "-", stdin=line.format("allow").encode())
    assert failed.returncode == 1
    assert b"FAILED" in failed.stdout


def test_mistakes_are_told_with_their_line(cm: Cli) -> None:
    done = cm("policy", "apply", "-f", "-", stdin=SHOP.replace(b"action: allow", b"action: permit"))
    assert done.returncode == 125
    assert b"standard input:10: spec.rules[0].action" in done.stderr
    assert cm("policy", "apply").returncode == 125
    assert cm("policy", "apply", "-f", "/nowhere").returncode == 125
    assert cm("policy", "explain", "a", "b").returncode == 125
    assert json.loads(cm("policy", "schema").stdout)["title"] == "Casemate policy"
    assert cm("policy", "suggest", "--since", "1s").returncode in (0, 125)


def test_quarantine_walls_and_referrals(cm: Cli) -> None:
    cm("run", "-d", "--name", "web", "-l", "app=web", "busybox", "sleep", "1000")
    allow = ["--allow", "from:10.0.0.0/8@tcp/22,tcp/80-90"]
    assert cm("quarantine", "web", "--reason", "scans", "--until", "1h", *allow).stdout == b"default/web\n"
    assert b"scans" in cm("quarantine", "ls", "--before").stdout
    assert cm("quarantine", "web").returncode == 125
    assert cm("quarantine", "release", "web").returncode == 125, "a release needs a reason"
    assert cm("quarantine", "release", "web", "--reason", "rebuilt").stdout == b"web\n"
    assert b"rebuilt" in cm("quarantine", "ls", "-a").stdout
    assert b"no document was given" in cm("policy", "apply", "-f", "-", stdin=b"# nothing yet\n").stderr
    assert cm("policy", "apply", "-f", "-", stdin=WALL).returncode == 0
    assert b"banks" in cm("wall", "ls").stdout
    report = cm("wall", "report")
    assert report.returncode == 0
    assert b"The chain of all lines holds" in report.stdout
    assert cm("wall", "release", "banks", "web", "--reason", "x").returncode == 125
    assert cm("referral", "ls", "-a").returncode == 0
    assert cm("referral", "allow", "999999", "--for", "1h").returncode == 125
