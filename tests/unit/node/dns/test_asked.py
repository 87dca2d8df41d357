"""Under which name a pod was told of an address: its own answers only, the last one, and bounded for each pod."""

from __future__ import annotations

from casemate.node.dns.asked import MAX_OF_ONE, MAX_PODS, Asked


def test_each_pod_has_its_own_answers_and_the_last_one_counts() -> None:
    asked = Asked()
    asked.answered("198.18.0.1", "old.example.org", [("192.0.2.1", 60), ("192.0.2.2", 60)])
    asked.answered("198.18.0.1", "new.example.org", [("192.0.2.1", 60)])
    assert asked.name("198.18.0.1", "192.0.2.1") == "new.example.org"
    assert asked.name("198.18.0.1", "192.0.2.2") == "old.example.org"
    assert asked.name("198.18.0.2", "192.0.2.1") == ""
    asked.viewer_gone("198.18.0.1")
    assert asked.name("198.18.0.1", "192.0.2.1") == ""


def test_one_pod_crowds_out_nobody_elses() -> None:
    asked = Asked()
    asked.answered("198.18.0.2", "quiet.example.org", [("192.0.2.1", 60)])
    for number in range(10 * MAX_OF_ONE):
        asked.answered("198.18.0.1", f"n{number}.example.org", [(f"203.0.113.{number % 250}", 60)])
    assert asked.name("198.18.0.2", "192.0.2.1") == "quiet.example.org"
    assert sum(bool(asked.name("198.18.0.1", f"203.0.113.{number}")) for number in range(250)) == MAX_OF_ONE
    for number in range(MAX_PODS):
        asked.answered(f"pod {number}", "x.example.org", [("192.0.2.1", 60)])
    assert asked.name("198.18.0.2", "192.0.2.1") == ""
