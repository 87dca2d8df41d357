"""Policy in casemated without a kernel: documents, workloads, quarantines."""

from __future__ import annotations

import gc
import struct
from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.node.policy.site import ANYBODY, BANKS, ROOT, SHOP, Site

from casemate.hostd import protocol_firewall as wire
from casemate.node.core import Core
from casemate.node.policy import asking, documents, ends, holding, passages, quarantine, walling
from casemate.node.policy.errors import (
    ExpectationsInvalid,
    FlowsAbsent,
    HoldUnavailable,
    PolicyNotFound,
    QuarantineHeld,
    QuarantineNotFound,
    WorkloadUnknown,
)
from casemate.policy.errors import ConditionInvalid, PolicyInvalid, PolicyTooLarge
from casemate.spec.api import RestartRequest
from casemate.spec.api.policy import (
    ExplainRequest,
    QuarantineAllow,
    QuarantineRequest,
    ReleaseRequest,
    WallRelease,
)
from casemate.spec.errors import Conflict, GrantMissing, RemoteError


def counts(body: bytes) -> dict[str, int]:
    found = struct.unpack("!6I", body[4 : wire.BODY_HEADER.size])
    return dict(zip(wire.SECTIONS, found, strict=True))


def test_without_documents_the_kernel_is_told_that_nothing_holds(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        await site.pod("web", app="web")
        assert site.notes.of(wire.FirewallChange, wire.FirewallReplace) == []
        await site.core.policy.enforce()
        assert [one.in_force for one in site.notes.of(wire.FirewallReplace)] == [False]
        assert site.core.policy.number(await site.pod("other")) == 0

    play(scene)


def test_documents_come_and_go(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        core = site.core
        pod = await site.pod("web", app="web")
        await core.policy.enforce()
        assert (await site.apply(SHOP, dry_run=True)).changes[0].action == "added"
        assert core.policy.documents == {}
        done = await site.apply(SHOP, ANYBODY)
        assert done.enforced
        assert [change.action for change in done.changes] == ["added"]
        assert any("segment[db]" in text or "selects nothing" in text for text in done.warnings)
        assert site.notes.of(wire.FirewallReplace)[-1].in_force
        assert core.policy.number(pod) >= 256
        assert [change.action for change in (await site.apply(SHOP)).changes] == ["unchanged"]
        changed = await site.apply(SHOP.replace(b"5432", b"5433"))
        assert changed.changes[0].action == "changed"
        assert "-    - tcp/5432" in changed.changes[0].diff
        listed = await documents.listing(core, ROOT, "")
        assert [(row.key, row.rules, row.applied_by) for row in listed.documents] == [
            ("Policy/default/shop", 3, "0:root")
        ]
        shown = await documents.show(core, "shop", ROOT)
        assert "tcp/5433" in shown.text
        with pytest.raises(PolicyNotFound):
            await documents.show(core, "Policy/default/none", ROOT)
        await documents.remove(core, ["Policy/default/shop"], ROOT, dry_run=False)
        assert not site.notes.of(wire.FirewallReplace)[-1].in_force

    play(scene)


def test_a_pod_is_in_the_kernel_before_it_is_up_and_gone_with_it(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        await site.core.policy.enforce()
        await site.apply(SHOP)
        pod = await site.pod("db", app="db")
        change = site.notes.of(wire.FirewallChange)[-1]
        assert counts(change.body)["address_adds"] == 1
        await site.core.policy.pod_gone(pod)
        gone = site.notes.of(wire.FirewallChange)[-1]
        assert counts(gone.body)["address_deletes"] == 1

    play(scene)


def test_a_start_waits_until_the_firewall_has_it(play: Callable[..., None]) -> None:
    """What cannot be laid in the kernel keeps a workload from starting; a conflict is answered by the whole."""

    async def scene(site: Site) -> None:
        await site.core.policy.enforce()
        await site.apply(SHOP)
        site.notes.failing = [RemoteError({"status": 503, "detail": "away"})]
        with pytest.raises(RemoteError):
            await site.pod("db", app="db")
        assert not site.core.policy.enforced
        await site.pod("db2", app="db")
        assert site.core.policy.enforced
        site.notes.failing = [RemoteError({"status": 409, "detail": "another generation"})]
        await site.pod("db3", app="db", tier="new")
        assert isinstance(site.notes.of(wire.FirewallChange, wire.FirewallReplace)[-1], wire.FirewallReplace)

    play(scene)


def test_rights(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        core = site.core
        await site.pod("web")
        with pytest.raises(GrantMissing):
            await site.apply(BANKS, ANYBODY)
        await site.apply(BANKS, ANYBODY, dry_run=True)
        assert core.policy.documents == {}
        with pytest.raises(GrantMissing):
            await quarantine.by_person(core, QuarantineRequest("web"), ANYBODY)
        with pytest.raises(GrantMissing):
            await walling.release(core, WallRelease("banks", "web", "r"), ANYBODY, "default/web")

    play(scene)


def test_bad_documents_change_nothing(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        await site.core.policy.enforce()
        await site.apply(SHOP)
        before = dict(site.core.policy.documents)
        for text, error, word in (
            (b"a: [", PolicyInvalid, ":1:"),
            (SHOP.replace(b"action: allow", b"action: permit"), PolicyInvalid, "line 10"),
            (SHOP.replace(b"action: allow", b"action: allow, when: 'x ='"), ConditionInvalid, "line 10"),
            (b"apiVersion: v1\nkind: Secret\nmetadata: {name: x}", PolicyInvalid, "not known"),
            (b"[1]", PolicyInvalid, "no policy document"),
            (SHOP + b"\n---" + SHOP, PolicyInvalid, "there twice"),
            (b"x" * (33 << 20), PolicyTooLarge, "bytes"),
            (b'a: "' + b"x" * (300 << 10) + b'"', RemoteError, "characters"),
        ):
            with pytest.raises(error, match=word):
                await site.apply(text)
        assert site.core.policy.documents == before
        assert site.core.policy.state().enforced, "what is refused before it is planned costs no replacement"

    play(scene)


def test_a_large_document_is_read_by_a_child(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        rules = b"".join(
            b"    - {from: [{segment: web}], to: [{segment: db}], ports: [tcp/%d], action: allow}\n" % port
            for port in range(1, 4001)
        )
        assert len(rules) > 256 << 10
        done = await site.apply(SHOP.replace(b"metadata: {name: shop}", b"metadata: {name: big}") + rules)
        assert done.changes[0].key == "Policy/default/big"
        assert done.changes[0].diff == "more than 2000 lines: too long to show"
        assert gc.isenabled()
        assert len(site.core.policy.rules.rules) == 8003

    play(scene)


def test_explain_names_rule_and_change(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        core = site.core
        await site.pod("web", app="web", **{"casemate.port/http": "8080"})
        await site.pod("db", app="db")
        open_ = await asking.explained(core, ExplainRequest("web", "db", "tcp/22"))
        assert (open_.verdict, open_.rule) == ("allow", "(default)")
        await site.apply(SHOP)
        denied = await asking.explained(core, ExplainRequest("web", "db", "tcp/22"))
        assert denied.verdict == "deny"
        assert denied.rule == "Policy/default/shop:segment[db]:ingress"
        assert denied.changes
        assert denied.admit
        allowed = await asking.explained(core, ExplainRequest("default/web", "10.9.0.2", "tcp/5432"))
        assert allowed.verdict == "allow"
        assert allowed.destination == "default/db"
        assert (await asking.explained(core, ExplainRequest("db", "web", "tcp/http"))).lines[0].count("tcp/8080")
        assert (await asking.explained(core, ExplainRequest("web", "192.0.2.7", "tcp/443"))).destination == "192.0.2.7"
        assert (await asking.explained(core, ExplainRequest("web", "a.example.org", "tcp/443"))).verdict == "allow"
        with pytest.raises(WorkloadUnknown):
            await asking.explained(core, ExplainRequest("web", "nobody", "tcp/1"))
        with pytest.raises(PolicyInvalid):
            await asking.explained(core, ExplainRequest("web", "db", "tcp/name"))

    play(scene)


def test_expectations(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        core = site.core
        await site.pod("web", app="web")
        await site.pod("db", app="db")
        tests = b"tests: [{from: web, to: db, port: tcp/22, expect: deny, name: closed}]"
        assert not (await asking.tested(core, tests, b"")).held
        assert (await asking.tested(core, tests, SHOP)).held
        await site.apply(SHOP)
        assert (await asking.tested(core, tests, b"")).held
        for bad in (b"tests: []", b"tests: [{from: web}]", b"x: 1", b"--- {}\n--- {}"):
            with pytest.raises(ExpectationsInvalid):
                await asking.tested(core, bad, b"")
        with pytest.raises(FlowsAbsent):
            await asking.simulated(core, SHOP, 0.0, whole=False)

    play(scene)


def test_an_image_cannot_choose_its_segment(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        await site.pod("web", **{"app": "web", "casemate/grade": "trusted", "casemate/quarantine": "9", "bad key": "x"})
        end = await ends.end(site.core, "web", "default")
        assert dict(end.labels) == {"app": "web", "casemate/grade": "admit", "casemate/level": "namespace"}

    play(scene)


def test_quarantine_moves_one_address_and_comes_back(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        core = site.core
        pod = await site.pod("web", app="web")
        await site.pod("db", app="db")
        await core.policy.enforce()
        await site.apply(SHOP)
        before = core.policy.number(pod)
        asked = QuarantineRequest("web", allow=(QuarantineAllow("db", ("tcp/80",), "from"),), reason="scan", for_s=60)
        for end in ("2001:db8::1", "::/0"):
            with pytest.raises(PolicyInvalid, match="pods have no IPv6"):
                await quarantine.by_person(core, QuarantineRequest("web", allow=(QuarantineAllow(end),)), ROOT)
        row = await quarantine.by_person(core, asked, ROOT)
        assert core.policy.number(pod) != before
        change = site.notes.of(wire.FirewallChange)[-1]
        assert change.look_again
        assert (await asking.explained(core, ExplainRequest("web", "db", "tcp/5432"))).verdict == "deny"
        assert (await asking.explained(core, ExplainRequest("db", "web", "tcp/80"))).verdict == "allow"
        assert (await asking.explained(core, ExplainRequest("db", "web", "tcp/81"))).verdict == "deny"
        with pytest.raises(QuarantineHeld):
            await quarantine.by_person(core, asked, ROOT)
        listed = (await quarantine.listing(core, ROOT, everything=False)).quarantines
        assert [(one.workload, one.reason, one.number) for one in listed] == [("default/web", "scan", row.number)]
        site.now += 61
        await quarantine.overdue(core)
        assert core.policy.quarantines == {}
        assert core.policy.number(pod) == before
        with pytest.raises(QuarantineNotFound):
            await quarantine.by_officer(core, ReleaseRequest("web", "ok"), ROOT)
        ended = (await quarantine.listing(core, ROOT, everything=True)).quarantines
        assert ended[0].release_reason == "its time is over"

    play(scene)


def test_quarantine_holds_without_any_document_and_over_a_restart(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        await site.pod("web", app="web")
        await quarantine.by_person(site.core, QuarantineRequest("web"), ROOT)
        assert site.notes.of(wire.FirewallReplace)[-1].in_force
        again = Core(site.core.settings, site.db, site.notes, clock=lambda: site.now)  # type: ignore[arg-type]
        await again.policy.load()
        await passages.load_passages(again)
        await again.policy.reload_rules()
        found = await asking.explained(again, ExplainRequest("web", "192.0.2.1", "tcp/80"))
        assert (found.verdict, found.rule) == ("deny", "Quarantine:egress")

    play(scene)


def test_an_audited_segment_does_not_open_a_quarantine(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        await site.pod("web", app="web")
        await site.apply(
            b"apiVersion: casemate/v1\nkind: Policy\nmetadata: {name: x}\n"
            b"spec: {tier: operator, segments: {all: {select: {}, audit: true, default: deny}}}"
        )
        assert (await asking.explained(site.core, ExplainRequest("web", "192.0.2.1", "tcp/80"))).verdict == "audit"
        await quarantine.by_person(site.core, QuarantineRequest("web"), ROOT)
        assert (await asking.explained(site.core, ExplainRequest("web", "192.0.2.1", "tcp/80"))).verdict == "deny"

    play(scene)


def test_hours_follow_the_clock(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        text = SHOP.replace(b"action: allow", b'action: allow, during: [{from: "09:00", to: "17:00"}]')
        await site.pod("web", app="web")
        await site.pod("db", app="db")
        site.now = 1_795_046_400.0 - 1_795_046_400.0 % 86_400 + 8 * 3600
        await site.core.policy.enforce()
        await site.apply(text)
        asked = ExplainRequest("web", "db", "tcp/5432")
        assert (await asking.explained(site.core, asked)).verdict == "deny"
        site.now += 3600
        async with site.core.policy.lock:
            await site.core.policy.rules_again("another hour")
        assert (await asking.explained(site.core, asked)).verdict == "allow"
        assert site.notes.of(wire.FirewallChange)[-1].reason == "another hour"

    play(scene)


def test_a_document_of_the_store_that_cannot_be_read_closes(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        await site.pod("web", app="web")
        await site.db.write(
            lambda db: db.execute(
                "INSERT INTO policy_documents VALUES ('Policy/x', 'Policy', '', 'x', 1, 0, 0, '', x'7b7d')"
            )
        )
        again = Core(site.core.settings, site.db, site.notes, clock=lambda: site.now)  # type: ignore[arg-type]
        await again.policy.load()
        assert "cannot be read" in again.policy.state().why_not
        found = await asking.explained(again, ExplainRequest("web", "192.0.2.1", "tcp/80"))
        assert found.verdict == "deny"

    play(scene)


def test_numbers_stay_over_a_restart(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        await site.apply(SHOP)
        pods = [await site.pod(name, app=name) for name in ("web", "db", "other")]
        await site.db.write(lambda db: db.execute("UPDATE pods SET made=1"))
        before = [site.core.policy.number(pod) for pod in pods]
        again = Core(site.core.settings, site.db, site.notes, clock=lambda: site.now)  # type: ignore[arg-type]
        await again.policy.load()
        assert [again.policy.number(pod) for pod in pods] == before
        assert len((await asking.identities(again, ROOT)).identities) >= 3

    play(scene)


def test_nothing_is_held_for_who_does_not_run(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        await site.pod("web", up=False)
        with pytest.raises(HoldUnavailable):
            await holding.restart(site.core, "web", "default", RestartRequest(hold=True), ROOT)

    play(scene)


def test_an_address_has_one_owner(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        await site.apply(SHOP)
        await site.pod("one")
        await site.pod("two", up=False)

        def clash(db: Any) -> None:
            db.execute("UPDATE pods SET address=NULL WHERE name='pod-one'")
            db.execute("UPDATE pods SET address=? WHERE name='pod-two'", (0x0A090001,))

        await site.db.write(clash)
        with pytest.raises(Conflict):
            await site.core.policy.pod_up(f"{2:063x}f")

    play(scene)
