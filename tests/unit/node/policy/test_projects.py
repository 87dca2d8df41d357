"""Projects in casemated without a kernel: what is in one is its own, and rules see whose it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.unit.node.policy.site import ANYBODY, ROOT, Site, packet

from casemate.hostd import protocol_firewall as wire
from casemate.node import audit, projects
from casemate.node.errors import ProjectExists, ProjectInUse, ProjectNotFound
from casemate.node.policy import asking, documents, ends, store, walling
from casemate.node.policy.referrals import Referrals
from casemate.spec.api.policy import ExplainRequest, ReferralAnswer
from casemate.spec.api.projects import ProjectLabels, ProjectRequest
from casemate.spec.errors import GrantMissing, InvalidArgument

#: Of a project: it closes its own pods, and says nothing to others'.
OWN = b"""
apiVersion: casemate/v1
kind: Policy
metadata: {name: own, project: shop}
spec: {segments: {all: {select: {}, default: deny}}}
"""
#: Kubernetes' way to name projects: by their labels.
SPACES = b"""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: from-tests, namespace: shop}
spec:
  podSelector: {}
  policyTypes: [Ingress]
  ingress: [{from: [{namespaceSelector: {matchLabels: {tier: test}}}]}]
"""
ABOVE = b"""
apiVersion: casemate/v1
kind: Policy
metadata: {name: above}
spec:
  tier: operator
  rules: [{from: [{select: {}, project: shop}], to: [{select: {}, project: lab}], action: deny}]
"""
DUTIES = b"""
apiVersion: casemate/v1
kind: Policy
metadata: {name: duties}
spec:
  tier: operator
  walls:
    - {name: duties, members: {build: [{select: {}, project: shop}], approve: [{select: {}, project: lab}]}}
"""


async def _two(site: Site) -> None:
    await site.core.policy.enforce()
    for name in ("shop", "lab"):
        await projects.create(site.core, ProjectRequest(name), ROOT)
    await site.pod("web", project="shop")
    await site.pod("web-lab", project="lab")
    await site.pod("other")


async def _verdict(site: Site, source: str, destination: str) -> str:
    return (await asking.explained(site.core, ExplainRequest(source, destination, "tcp/80"))).verdict


def test_made_listed_and_removed_when_empty(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        core = site.core
        with pytest.raises(GrantMissing):
            await projects.create(core, ProjectRequest("shop"), ANYBODY)
        made = await projects.create(core, ProjectRequest("shop", {"tier": "prod"}), ROOT)
        assert (made.created_by, made.labels) == ("0:root", {"tier": "prod"})
        with pytest.raises(ProjectExists):
            await projects.create(core, ProjectRequest("shop"), ROOT)
        await site.pod("web", project="shop")
        await site.apply(OWN)
        rows = {row.name: row for row in (await projects.listing(core, ROOT)).projects}
        assert rows.keys() == {"default", "shop"}
        assert (rows["shop"].containers, rows["shop"].pods, rows["shop"].documents) == (1, 1, 1)
        with pytest.raises(ProjectInUse, match="1 containers, 1 pods, 1 documents"):
            await projects.remove(core, "shop", ROOT)
        await documents.remove(core, ["own"], ROOT, dry_run=False)
        await site.db.write(lambda db: (db.execute("DELETE FROM containers"), db.execute("DELETE FROM pods")))
        with pytest.raises(GrantMissing):
            await projects.remove(core, "shop", ANYBODY)
        await projects.remove(core, "shop", ROOT)
        with pytest.raises(ProjectNotFound):
            await projects.inspect(core, "shop")
        with pytest.raises(ProjectNotFound):
            await projects.remove(core, "shop", ROOT)
        with pytest.raises(ProjectInUse):
            await projects.remove(core, "default", ROOT)
        told = [row.action for row in (await site.db.read(lambda db: audit.page(db, 0, 100))).rows]
        assert [one for one in told if one.startswith("project.")] == ["project.create", "project.remove"]

    play(scene)


@pytest.mark.parametrize("key", ["casemate/project", "kubernetes.io/metadata.name", "no blanks", "x" * 70])
def test_labels_that_are_none(play: Callable[..., None], key: str) -> None:
    async def scene(site: Site) -> None:
        with pytest.raises(InvalidArgument):
            await projects.create(site.core, ProjectRequest("shop", {key: "x"}), ROOT)

    play(scene)


def test_a_projects_documents_govern_its_own_pods(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        await _two(site)
        await site.apply(OWN)
        assert await _verdict(site, "shop/web", "other") == "deny"
        assert await _verdict(site, "other", "shop/web") == "deny"
        assert await _verdict(site, "lab/web-lab", "other") == "allow"
        assert [row.key for row in (await documents.listing(site.core, ROOT, "lab")).documents] == []
        assert [row.key for row in (await documents.listing(site.core, ROOT, "shop")).documents] == ["Policy/shop/own"]

    play(scene)


def test_the_operator_stands_above_and_selects_by_project(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        await _two(site)
        await site.apply(ABOVE)
        assert await _verdict(site, "shop/web", "lab/web-lab") == "deny"
        assert await _verdict(site, "lab/web-lab", "shop/web") == "allow"
        assert await _verdict(site, "shop/web", "other") == "allow"
        rows = (await asking.identities(site.core, ROOT, "shop")).identities
        assert [row.workloads for row in rows] == [("shop/web",)]

    play(scene)


def test_labels_of_a_project_are_seen_at_once(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        await _two(site)
        await site.apply(SPACES)
        assert await _verdict(site, "lab/web-lab", "shop/web") == "deny"
        before = site.core.policy.number(next(iter(site.core.policy.workloads)))
        with pytest.raises(GrantMissing):
            await projects.label(site.core, "lab", ProjectLabels({"tier": "test"}), ANYBODY)
        row = await projects.label(site.core, "lab", ProjectLabels({"tier": "test"}), ROOT)
        assert row.labels == {"tier": "test"}
        assert await _verdict(site, "lab/web-lab", "shop/web") == "allow"
        assert site.notes.of(wire.FirewallChange), "the kernel was told"
        await projects.label(site.core, "lab", ProjectLabels({}, ("tier",)), ROOT)
        assert await _verdict(site, "lab/web-lab", "shop/web") == "deny"
        assert site.core.policy.number(next(iter(site.core.policy.workloads))) == before, "others kept theirs"

    play(scene)


def test_duties_are_kept_apart_between_projects(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        await _two(site)
        await site.apply(DUTIES)
        assert await _verdict(site, "shop/web", "lab/web-lab") == "deny"
        assert await _verdict(site, "other", "shop/web") == "refer"
        one, shop, lab = [await ends.end(site.core, name, "default") for name in ("other", "shop/web", "lab/web-lab")]
        assert (await walling.judge(site.core, one, shop, "tcp/80")).allowed
        assert not (await walling.judge(site.core, one, lab, "tcp/80")).allowed

    play(scene)


def test_referrals_of_a_project(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        await _two(site)
        await site.apply(OWN.replace(b"default: deny", b"default: refer"))
        referrals = Referrals(site.core)
        referrals.on_referred(wire.Referred((packet(1, 1, 3, 80),)))
        assert len((await referrals.listing(10, frozenset({"shop"}))).waiting) == 1
        assert (await referrals.listing(10, frozenset({"lab"}))).waiting == ()
        row = (await referrals.listing(10)).waiting[0]
        await referrals.prompts.answer(row.number, ReferralAnswer(allow=False), ROOT)
        assert len((await referrals.listing(10, frozenset({"shop"}))).decided) == 1
        assert (await referrals.listing(10, frozenset({"lab"}))).decided == ()
        await site.db.write(lambda db: store.add_referrals(db, [row]))
        wanted = [frozenset({"shop"}), frozenset({"lab"}), frozenset({"lab", "shop"}), frozenset(), None]
        found = [await site.db.read(lambda db, some=some: store.referrals(db, 10, some)) for some in wanted]
        assert [len(rows) for rows in found] == [1, 0, 1, 0, 1]

    play(scene)
