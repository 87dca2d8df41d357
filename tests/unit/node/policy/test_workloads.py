"""Workloads by pod, name and address, while all three go from one to another."""

from __future__ import annotations

from ipaddress import ip_address

from casemate.node.policy.endpoints import Workload
from casemate.node.policy.workloads import Workloads
from casemate.policy.addresses import Address
from casemate.policy.identity import Endpoint

FIRST, SECOND = ip_address("10.88.0.2"), ip_address("10.88.0.3")


def workload(pod: str, name: str, *addresses: Address) -> Workload:
    return Workload(pod, "", Endpoint(name, addresses=addresses), made=True)


def test_a_workload_is_found_by_all_three() -> None:
    web, known = workload("p1", "default/web", FIRST), Workloads()
    known.note(web)
    assert known["p1"] is known.named("default/web") is known.at(FIRST) is web
    assert known.get("p2") is known.named("p1") is known.at(SECOND) is None
    assert dict(known) == {"p1": web}


def test_another_name_and_address_leave_nothing_behind() -> None:
    known = Workloads()
    known.note(workload("p1", "default/web", FIRST))
    known.note(workload("p1", "default/shop", SECOND))
    assert known.named("default/web") is known.at(FIRST) is None
    assert known.names == {"default/shop": "p1"}
    assert known.at(SECOND) is known["p1"]


def test_who_got_the_name_and_the_address_keeps_them() -> None:
    known = Workloads()
    known.note(workload("old", "default/web", FIRST))
    known.note(workload("new", "default/web", FIRST))
    gone = known.forget("old")
    assert gone is not None
    assert gone.pod == "old"
    assert known.named("default/web") is known.at(FIRST) is known["new"]
    assert known.forget("old") is None
    assert len(known) == 1


def test_those_that_are_known_keep_their_order() -> None:
    known = Workloads()
    for pod in "abc":
        known.note(workload(pod, f"default/{pod}"))
    known.note(workload("a", "default/z"))
    assert list(known) == ["a", "b", "c"]
