"""Walls in casemated without a kernel: history, evidence, renames, paths."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.unit.node.policy.site import ANYBODY, BANKS, ROOT, Site, banks

from casemate.hostd import protocol_firewall as wire
from casemate.node import containers, events, projects
from casemate.node.policy import asking, documents, ends, quarantine, walling, wallpaths
from casemate.node.policy.errors import WallNotFound, WallPathOpened
from casemate.node.policy.wallstate import entries, read_bound
from casemate.policy.errors import PolicyInvalid, WallBreached
from casemate.policy.parse import read_documents
from casemate.policy.source import load_documents
from casemate.spec.api.policy import ExplainRequest, QuarantineAllow, QuarantineRequest, WallRelease
from casemate.spec.api.projects import ProjectRequest
from casemate.spec.errors import GrantMissing

CLOSED = b"""
apiVersion: casemate/v1
kind: Policy
metadata: {name: closed}
spec: {segments: {r: {select: {matchLabels: {role: analyst}}, default: deny}}}
"""
#: Opens what CLOSED closes; and the same at night alone.
CHAT = b"""
apiVersion: casemate/v1
kind: Policy
metadata: {name: chat}
spec:
  segments: {r: {select: {matchLabels: {role: analyst}}}}
  rules: [{from: [{segment: r}], to: any, ports: [tcp/6667], action: allow}]
"""
NIGHT = CHAT.replace(b"action: allow", b'during: [{days: [sun], from: "02:00", to: "03:00"}], action: allow')


async def _judge(site: Site, source: str, destination: str) -> walling.Judged:
    one, other = [await ends.end(site.core, name, "default") for name in (source, destination)]
    return await walling.judge(site.core, one, other, "tcp/80")


def test_a_wall_binds_at_first_contact_and_survives(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        core = site.core
        await banks(site)
        assert (await asking.explained(core, ExplainRequest("analyst", "a", "tcp/80"))).verdict == "refer"
        assert (await asking.explained(core, ExplainRequest("a", "b", "tcp/80"))).verdict == "deny"
        assert (await _judge(site, "analyst", "a")).allowed
        assert (await _judge(site, "analyst", "a")).allowed
        refused = await _judge(site, "analyst", "b")
        assert not refused.allowed
        assert "has reached a" in refused.why
        # The history is in the store, not in us; and a relabelled workload has it still.
        assert (await site.db.read(read_bound))["default/analyst"]["banks"].member == "a"
        found, intact, _ = await site.db.read(entries)
        assert [(one.kind, one.workload) for one in found] == [
            ("reached", "default/analyst"), ("refused", "default/analyst"),
        ]  # fmt: skip
        assert intact
        with pytest.raises(PolicyInvalid):
            await walling.release(core, WallRelease("banks", "analyst", " "), ROOT, "default/analyst")
        with pytest.raises(WallNotFound):
            await walling.release(core, WallRelease("none", "analyst", "x"), ROOT, "default/analyst")
        await walling.release(core, WallRelease("banks", "analyst", "engagement ended"), ROOT, "default/analyst")
        assert site.notes.of(wire.FirewallForget)
        assert (await _judge(site, "analyst", "b")).allowed

    play(scene)


def test_two_first_contacts_at_once_are_one(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        await banks(site)
        async with asyncio.TaskGroup() as tasks:
            both = [tasks.create_task(_judge(site, "analyst", bank)) for bank in ("a", "b")]
        assert sorted(task.result().allowed for task in both) == [False, True]

    play(scene)


def test_a_rename_takes_the_history_along(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        await banks(site)
        await site.pod("second")
        await _judge(site, "analyst", "a")
        await _judge(site, "second", "b")
        await containers.rename(site.core, "analyst", "default", "consultant", ROOT)
        assert not (await _judge(site, "consultant", "b")).allowed
        assert (await _judge(site, "consultant", "a")).allowed
        # A name with another history is not to be had.
        await site.db.write(lambda db: db.execute("DELETE FROM containers WHERE name='second'"))
        with pytest.raises(WallBreached):
            await containers.rename(site.core, "consultant", "default", "second", ROOT)

    play(scene)


def test_a_first_contact_from_before_a_rename_binds_nobody_else(play: Callable[..., None]) -> None:
    """A question may wait for minutes: what it is about may have another name by the time of its answer."""

    async def scene(site: Site) -> None:
        core = site.core
        await banks(site)
        one, other, bank = [await ends.end(core, name, "default") for name in ("analyst", "a", "b")]
        await containers.rename(core, "analyst", "default", "consultant", ROOT)
        late = await walling.judge(core, one, other, "tcp/80")
        assert not late.allowed, "it would be free under its new name"
        assert "any more" in late.why
        assert await site.db.read(read_bound) == {}
        # Another has the address, or the name, by now.
        assert not (await walling.judge(core, replace(one, addresses=bank.addresses), other, "tcp/80")).allowed
        # The same at once: whichever comes first, the workload is bound under the name that it has in the end.
        async with asyncio.TaskGroup() as tasks:
            reaching = tasks.create_task(_judge(site, "consultant", "a"))
            tasks.create_task(containers.rename(core, "consultant", "default", "adviser", ROOT))
        bound = (await site.db.read(read_bound)).get("default/adviser", {})
        assert ("banks" in bound) == reaching.result().allowed
        assert core.walls.bound == await site.db.read(read_bound)
        await _judge(site, "adviser", "a")
        assert not (await _judge(site, "adviser", "b")).allowed

    play(scene)


def test_a_history_is_its_names_and_its_projects_own(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        core = site.core
        await banks(site)
        await projects.create(core, ProjectRequest("other"), ROOT)
        await site.pod("analyst", project="other")
        await _judge(site, "analyst", "a")
        # One of the same name in another project is another workload.
        elsewhere, bank = await ends.end(core, "analyst", "other"), await ends.end(core, "b", "default")
        assert (await walling.judge(core, elsewhere, bank, "tcp/80")).allowed
        # Gone, and made anew with another address and other labels: the same workload.
        pod = core.policy.workloads.names["default/analyst"]
        await site.db.write(lambda db: db.execute("DELETE FROM containers WHERE pod=?", (pod,)))
        await site.db.write(lambda db: db.execute("DELETE FROM pods WHERE id=?", (pod,)))
        await core.policy.pod_gone(pod)
        await site.pod("analyst", role="somebody")
        assert not (await _judge(site, "analyst", "b")).allowed

    play(scene)


def test_a_forged_line_is_found(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        await banks(site)
        await _judge(site, "analyst", "a")
        await _judge(site, "analyst", "b")
        told = await walling.report(site.core, "")
        assert told.intact
        assert len(told.digest) == 64
        assert [wall.bound[0].workload for wall in told.walls] == ["default/analyst"]
        await site.db.write(lambda db: db.execute("UPDATE wall_history SET member='b' WHERE number=1"))
        assert not (await walling.report(site.core, "banks")).intact
        with pytest.raises(WallNotFound):
            await walling.report(site.core, "none")

    play(scene)


def test_paths_across_a_wall_are_named(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        await banks(site)
        (row,) = (await walling.listing(site.core)).walls
        assert row.crossings == (), "the analyst is one: its history holds it to one member"
        assert (await wallpaths.check(site.core.policy, (), whole=False)).walls[0].guarded == ("default/analyst",)
        assert len(row.outside) == 1
        await site.pod("second", role="analyst")
        (row,) = (await walling.listing(site.core)).walls
        assert len(row.crossings) == 1
        assert row.crossings[0].count("default/analyst, default/second") == 4, "from one to the other"
        await site.apply(CLOSED)
        (row,) = (await walling.listing(site.core)).walls
        assert row.crossings == ()

    play(scene)


async def _closed(site: Site, **labels: str) -> None:
    """Banks, and two analysts who may not talk to each other."""
    await site.core.policy.enforce()
    await site.pod("analyst", role="analyst", **labels)
    await site.pod("second", role="analyst", **labels)
    await site.pod("a", bank="a")
    await site.pod("b", bank="b")
    await site.apply(CLOSED)
    await site.apply(BANKS)


def test_documents_that_open_a_path_are_refused(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        core = site.core
        await _closed(site)
        before, told = core.policy.rules, len(site.notes.operations)
        for text in (CHAT, NIGHT):
            with pytest.raises(WallPathOpened) as caught:
                await site.apply(text)
            assert "default/analyst" in caught.value.detail
            assert "tcp/6667" in caught.value.detail
        with pytest.raises(WallPathOpened):
            await documents.remove(core, ["closed"], ROOT, dry_run=False)
        assert core.policy.rules == before
        assert len(site.notes.operations) == told, "the kernel was told nothing"
        assert (await site.apply(CHAT, dry_run=True)).crossings
        asked = await wallpaths.check(core.policy, read_documents(load_documents(CHAT, "x"), "x"), whole=False)
        assert not asked.closed
        assert (await wallpaths.check(core.policy, (), whole=False)).closed
        # A wall that comes where a path is open already is refused as well.
        await documents.remove(core, ["banks"], ROOT, dry_run=False)
        await site.apply(CHAT)
        with pytest.raises(WallPathOpened):
            await site.apply(BANKS)

    play(scene)


def test_an_officer_opens_a_path_and_it_is_evidence(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        core = site.core
        await _closed(site)
        with pytest.raises(GrantMissing):
            await documents.apply(core, CHAT, ANYBODY, dry_run=False, whole=False, path_reason="I want to")
        done = await documents.apply(core, CHAT, ROOT, dry_run=False, whole=False, path_reason="audit of the audit")
        assert len(done.crossings) == 1
        told = await walling.report(core, "banks")
        assert told.intact
        assert [(one.kind, one.member, one.who) for one in told.entries] == [("opened", "a and b", "0:root")]
        assert told.entries[0].reason.startswith("audit of the audit: wall banks: a and b are joined")
        assert await site.db.read(read_bound) == {}, "it binds nobody"
        # What is open already refuses nothing more.
        await site.apply(CHAT.replace(b"6667", b"6668"))

    play(scene)


def test_a_node_that_only_warns(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        await _closed(site)
        assert (await site.apply(CHAT)).crossings

    play(scene, **{"policy.wall_paths": "warn"})


def test_a_workload_that_opens_a_path_is_told(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        await _closed(site)
        watch = wallpaths.Watch(site.core)
        await site.pod("courier")
        await site.pod("other-courier", app="x")
        (path,) = await watch.look()
        assert path.crossing.wall == "banks"
        assert await watch.look() == (), "once"
        rows = await site.db.read(lambda db: events.page(db, 0, 0.0, 1e12))
        assert [row.action for row in rows if row.kind == "wall"] == ["path"]

    play(scene)


def test_a_quarantine_lets_nothing_through_a_wall(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        core = site.core
        await banks(site)
        await _judge(site, "analyst", "a")
        for name in ("analyst", "a"):
            allow = (QuarantineAllow("b"),)
            await quarantine.by_person(core, QuarantineRequest(name, allow=allow, reason="x"), ROOT)
        kernel = [await asking.explained(core, ExplainRequest(name, "b", "tcp/80")) for name in ("analyst", "a")]
        assert [one.verdict for one in kernel] == ["refer", "deny"], "asked, and the history answers"
        assert (await asking.explained(core, ExplainRequest("analyst", "a", "tcp/80"))).verdict == "deny"

    play(scene)


def test_what_rules_forbid_is_not_asked_about(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        await banks(site)
        await site.apply(CLOSED)
        found = await asking.explained(site.core, ExplainRequest("analyst", "a", "tcp/80"))
        assert (found.verdict, found.rule) == ("deny", "Policy/default/closed:segment[r]:egress")

    play(scene)
