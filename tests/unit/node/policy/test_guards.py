"""An explanation says what packets do: what is dropped before any rule is asked is no "allow by (default)"."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.unit.node.policy.site import Site

from casemate.node.policy import asking
from casemate.spec.api.policy import ExplainRequest


@pytest.mark.parametrize(
    ("address", "rule"),
    [
        ("169.254.169.254", "Guard:metadata"),
        ("168.63.129.16", "Guard:metadata"),
        ("169.254.3.4", "Guard:link_local"),
        ("224.0.0.1", "Guard:multicast"),
        ("255.255.255.255", "Guard:multicast"),
        ("2001:db8::1", "Guard:ipv6"),
        ("10.9.0.77", "Guard:pool"),
        ("10.9.0.2", "(default)"),
        ("169.254.1.1", "(default)"),
        ("192.0.2.1", "(default)"),
    ],
)
def test_what_no_rule_opens_is_not_explained_as_allowed(play: Callable[..., None], address: str, rule: str) -> None:
    async def scene(site: Site) -> None:
        await site.pod("web", app="web")
        await site.pod("db", app="db")
        await site.core.policy.load()
        said = await asking.explained(site.core, ExplainRequest("web", address, "tcp/80"))
        assert said.rule == rule, said.lines
        assert said.verdict == ("allow" if rule == "(default)" else "deny")
        assert f"{said.verdict} by {rule}" in said.lines[0]

    play(scene, **{"network.pool": "10.9.0.0/24"})
