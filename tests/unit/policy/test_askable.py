"""Which names a pod may ask for: what its rules say of the outside."""

from __future__ import annotations

import pytest

from casemate.policy.addresses import BlockIndex
from casemate.policy.askable import askable, words
from casemate.policy.compile import Compiler
from casemate.policy.identity import Endpoint, Kind, identity_of
from casemate.policy.parse import parse
from casemate.policy.rules import block_groups
from casemate.policy.verdict import Action

POD, WORLD = 300, 301
_SEGMENT = """
apiVersion: casemate/v1
kind: Policy
metadata: {name: shop}
spec:
  segments: {web: {select: {matchLabels: {app: web}}, default: %s}}
  rules: [%s]
"""
_TO = "{from: [{segment: web}], to: %s, ports: [tcp/443], action: %s}"


def asked(text: str, default: Action = Action.ALLOW) -> tuple[str, ...] | None:
    rules = parse(text.encode()).in_force(0, default)
    index = BlockIndex(block_groups(rules))
    ends = {POD: Endpoint("web", "default", (("app", "web"),)), WORLD: Endpoint("world", kind=Kind.WORLD)}
    return askable(Compiler(rules, {number: identity_of(end, index) for number, end in ends.items()}), POD)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (_SEGMENT % ("allow", ""), None),
        (_SEGMENT % ("deny", ""), ()),
        (_SEGMENT % ("{ingress: deny, egress: refer}", ""), None),
        (_SEGMENT % ("deny", _TO % ("any", "allow")), None),
        (_SEGMENT % ("deny", _TO % ('[{names: [b.example.org, "*.a.org"]}]', "allow")), ("*.a.org", "b.example.org")),
        (_SEGMENT % ("deny", _TO % ("[{names: [b.example.org]}]", "refer")), ("b.example.org",)),
        (_SEGMENT % ("deny", _TO % ("[{names: [b.example.org]}]", "deny")), ()),
        (_SEGMENT % ("deny", _TO % ("[{segment: web}]", "allow")), ()),
    ],
)
def test_names_follow_the_way_out(text: str, names: tuple[str, ...] | None) -> None:
    assert asked(text) == names


def test_in_words() -> None:
    assert "any name" in words("web", None)
    assert "no name outside" in words("web", ())
    assert words("web", tuple(f"n{n}.example.org" for n in range(10))).endswith("n7.example.org and 2 more")
