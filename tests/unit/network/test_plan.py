"""Names, addresses and rules of pods' links: pure, and against hostile values first."""

from __future__ import annotations

from pathlib import Path

import pytest

from casemate.network import names, nat, plan
from casemate.network.plan import Publish
from casemate.spec.errors import InvalidArgument
from casemate.spec.resolvers import host_search, reachable_resolvers

POD = "0123456789abcdef" * 4
POOL = "10.209.0.0/16"


def link(**changes: object) -> plan.PodLink:
    values: dict[str, object] = {
        "prefix": "cm-", "pool": POOL, "netns_folder": Path("/run/x"), "mtu_bytes": 1500, "ports": (),
    }  # fmt: skip
    values.update(changes)
    address = values.pop("address", "10.209.1.2")
    pod = values.pop("pod", POD)
    return plan.pod_link(pod, address, **values)  # type: ignore[arg-type]


def test_a_link_has_the_names_and_addresses_that_follow_from_the_pod() -> None:
    one = link()
    assert (one.interface, one.pin) == ("cm-01234567", Path("/run/x") / POD)
    assert (one.host_mac, one.pod_mac) == ("0e:00:0a:d1:01:02", "0e:01:0a:d1:01:02")
    for mac in (one.host_mac, one.pod_mac):
        assert int(mac[:2], 16) & 3 == 2  # unicast, locally administered
    assert link(address="10.209.1.3").pod_mac != one.pod_mac


@pytest.mark.parametrize(
    "changes",
    [
        {"pod": "../../etc"},
        {"pod": POD.upper()},
        {"address": "10.210.0.1"},
        {"address": "10.209.0.0"},
        {"address": "10.209.255.255"},
        {"address": "::1"},
        {"address": "10.209.1.2; flush ruleset"},
        {"prefix": 'x"; flush ruleset; "'},
        {"prefix": "way-too-long-"},
        {"prefix": "cm1"},
        {"prefix": ""},
        {"pool": "10.209.0.0/31"},
        {"pool": "127.0.0.0/8"},
        {"pool": "0.0.0.0/0"},
        {"pool": "10.209.0.1/16"},
        {"mtu_bytes": 60},
        {"mtu_bytes": 70_000},
        {"ports": [Publish("tcp", 0, 80)]},
        {"ports": [Publish("tcp", 80, 65_536)]},
        {"ports": [Publish("sctp", 80, 80)]},  # type: ignore[arg-type]
        {"ports": [Publish("tcp", 80, 80, "localhost")]},
        {"ports": [Publish("tcp", 80, 80, "224.0.0.1")]},
        {"ports": [Publish("tcp", 80, 80), Publish("tcp", 80, 81)]},
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        link(**changes)


def test_one_port_on_two_protocols_and_addresses_is_allowed() -> None:
    ports = [Publish("tcp", 80, 80), Publish("udp", 80, 80), Publish("tcp", 80, 80, "127.0.0.1")]
    assert len(link(ports=ports).describe()) == 6


@pytest.mark.parametrize("table", ["x; flush ruleset", "", "a b", "x" * 40, "1a"])
def test_a_table_name_cannot_carry_a_command(table: str) -> None:
    with pytest.raises(InvalidArgument):
        nat.base_script(table, "cm-", POOL)


def test_hosts_hostname_and_resolv() -> None:
    assert names.hostname_file("web-1") == "web-1\n"
    text = names.hosts_file("web.example.org", "10.209.1.2", [("10.0.0.1", "db"), ("::1", "six_1")])
    assert text.splitlines()[2:] == ["10.209.1.2\tweb.example.org web", "10.0.0.1\tdb", "::1\tsix_1"]
    assert "127.0.0.1\talone\n" in names.hosts_file("alone", None)
    text = names.resolv_file(["1.1.1.1", "8.8.8.8", "9.9.9.9", "9.9.9.8"], ["a.b", "c."], ["ndots:2", "rotate"])
    assert text.splitlines() == [
        "nameserver 1.1.1.1", "nameserver 8.8.8.8", "nameserver 9.9.9.9", "search a.b c", "options ndots:2 rotate",
    ]  # fmt: skip
    assert names.resolv_file([], ["."]) == ""


@pytest.mark.parametrize(
    "call",
    [
        lambda: names.hostname_file("a\nb"),
        lambda: names.hosts_file("x", "10.0.0.1\n6.6.6.6 bank"),
        lambda: names.hosts_file("x", None, [("10.0.0.1", "a\n6.6.6.6\tbank")]),
        lambda: names.hosts_file("x", None, [("10.0.0.1", "a b")]),
        lambda: names.resolv_file(["1.1.1.1\nnameserver 6.6.6.6"]),
        lambda: names.resolv_file([], ["a\nnameserver 6.6.6.6"]),
        lambda: names.resolv_file([], [], ["ndots:2\nnameserver 6.6.6.6"]),
    ],
)
def test_no_value_can_write_a_line_of_its_own(call: object) -> None:
    with pytest.raises(InvalidArgument):
        call()  # type: ignore[operator]


def test_resolvers_of_the_host_that_a_pod_cannot_reach_are_left_out() -> None:
    resolvers = ["127.0.0.53", "::1", "9.9.9.9", "9.9.9.9", "junk"]
    text = "# x\n" + "".join(f"nameserver {one}\n" for one in resolvers) + "search a b.\n"
    assert reachable_resolvers(text) == ["9.9.9.9"]
    assert host_search(text) == ["a", "b"]
    assert reachable_resolvers("") == host_search("") == []
