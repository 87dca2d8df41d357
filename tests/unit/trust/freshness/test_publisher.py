"""A publisher's work, judged by the client: what is published resolves, what lacks a signature does not go out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

pytest.importorskip("tuf", reason="missing: tuf")

from casemate.trust.freshness.errors import RepositoryInvalid, RoleInvalid
from casemate.trust.freshness.publisher import Publisher
from casemate.trust.freshness.resolve import (
    FreshnessExpired,
    FreshnessInvalid,
    FreshnessRollback,
    Resolved,
    TagUnknown,
    Trusted,
    resolve,
)
from casemate.trust.freshness.roles import STAGED, Change, RoleKeys, patterns, tuf_key
from casemate.trust.keys.private import FileKey, new_key

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
ONE, TWO = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32
APP, TEAM_APP = "registry.example/app:1", "registry.example/team/deep/app:1"
KEYS = {name: new_key() for name in ("root", "root2", "targets", "online", "team", "thief", "fresh")}


def keyid(name: str) -> str:
    return tuf_key(KEYS[name].public_pem).keyid


class Site:
    """A publisher's folder, as a dictionary, and a client that follows it."""

    def __init__(self, root_threshold: int = 2) -> None:
        self.files: dict[str, bytes] = {}
        self.now = NOW
        pems = {name: key.public_pem for name, key in KEYS.items()}
        online = RoleKeys((pems["online"],))
        roles = {
            "root": RoleKeys((pems["root"], pems["root2"]), root_threshold), "targets": RoleKeys((pems["targets"],)),
            "snapshot": online, "timestamp": online,
        }  # fmt: skip
        self.done(self.by("root", "root2", "targets", "online").create(roles))
        self.trusted = Trusted(self.files["1.root.json"])

    def by(self, *names: str) -> Publisher:
        keys: list[FileKey] = [KEYS[name] for name in names]
        return Publisher(self.current(), keys, self.now)

    def current(self) -> dict[str, bytes]:
        return {name: data for name, data in self.files.items() if not name[0].isdigit()}

    def done(self, change: Change) -> Change:
        for name, data in change.files.items():
            if data is None:
                self.files.pop(name, None)
            else:
                self.files[name] = data
        return change

    def resolve(self, target: str, after: timedelta = timedelta(0)) -> Resolved:
        visible = {name: data for name, data in self.files.items() if not name.startswith(STAGED)}
        found = resolve(self.trusted, visible, target, self.now + after)
        self.trusted = found.trusted
        return found


def test_from_nothing_to_a_digest_and_on() -> None:
    site = Site()
    with pytest.raises(TagUnknown):
        site.resolve(APP)
    change = site.done(site.by("targets", "online").publish(APP, ONE, 700))
    assert change.published[-1] == "timestamp.json"
    assert not change.waiting
    assert site.resolve(APP).digest == ONE
    site.done(site.by("targets", "online").publish(APP, TWO, 700))
    assert site.resolve(APP).digest == TWO
    site.done(site.by("targets", "online").unpublish(APP))
    with pytest.raises(TagUnknown):
        site.resolve(APP)
    with pytest.raises(RoleInvalid):
        site.by("targets").unpublish(APP)


def test_a_team_signs_what_was_delegated_and_nothing_else() -> None:
    site = Site()
    keys = RoleKeys((KEYS["team"].public_pem,))
    change = site.done(site.by("targets", "online").delegate("team", ["registry.example/team"], keys))
    assert set(change.waiting) == {"team"}  # the team has not signed yet
    site.done(site.by("team", "online").publish(TEAM_APP, TWO, 7))
    found = site.resolve(TEAM_APP)
    assert (found.digest, found.role) == (TWO, "team")
    # The team names a tag outside: nobody asks it.
    site.done(site.by("team", "online").publish(APP, TWO, 7, role="team"))
    with pytest.raises(TagUnknown):
        site.resolve(APP)
    # And what was delegated is the team's alone.
    site.done(site.by("targets", "online").publish("registry.example/team/b:1", ONE, 7, role="targets"))
    assert site.resolve("registry.example/team/b:1").role == "targets"
    for name in ("team", "root", "Team", "../x"):
        with pytest.raises(RoleInvalid):
            site.by("targets", "online").delegate(name, ["registry.example/x"], keys)
    with pytest.raises(RoleInvalid):
        site.by("targets", "online").delegate("other", ["*"], keys)


def test_without_a_signature_nothing_goes_out() -> None:
    site = Site()
    before = dict(site.files)
    for names in (("online",), ("thief", "online"), ("targets",)):
        change = site.by(*names).publish(APP, ONE, 7)
        assert change.published == ()
        assert change.waiting
        assert all(name.startswith(STAGED) for name in change.files)
    site.done(site.by("targets").publish(APP, ONE, 7))  # offline: the targets key alone
    assert {name: data for name, data in site.files.items() if not name.startswith(STAGED)} == before
    site.done(site.by("online").countersign())
    assert site.resolve(APP).digest == ONE
    assert not any(name.startswith(STAGED) for name in site.files)
    with pytest.raises(RoleInvalid):
        site.by("online").countersign()


def test_root_rotates_with_the_old_and_the_new_keys() -> None:
    site = Site()
    fresh = KEYS["fresh"].public_pem
    change = site.done(site.by("root", "online").rotate("root", keyid("root2"), fresh))
    assert change.published == ()
    change = site.done(site.by("fresh", "online").countersign())
    assert "root" in change.waiting  # the old root wants two of its own
    change = site.done(site.by("root2").countersign())
    assert "2.root.json" in change.published
    site.done(site.by("targets", "online").publish(APP, ONE, 7))
    assert site.resolve(APP).digest == ONE  # from root 1, by way of 2
    assert site.resolve(APP).versions["root"] == 2
    # Who was rotated out signs no root any more.
    change = site.by("root", "root2").add_key("targets", KEYS["thief"].public_pem)
    assert "2.root.json" not in change.published
    assert "root" in change.waiting


def test_a_key_that_is_replaced_signs_no_more() -> None:
    site = Site()
    site.done(site.by("targets", "online").publish(APP, ONE, 7))
    # Root alone: what targets signed would not hold, so all of it waits.
    change = site.done(site.by("root", "root2", "online").rotate("targets", keyid("targets"), KEYS["fresh"].public_pem))
    assert change.published == ()
    assert site.resolve(APP).digest == ONE
    site.done(site.by("fresh", "online").countersign())
    assert site.resolve(APP).digest == ONE
    assert site.by("targets", "online").publish(APP, TWO, 7).published == ()
    site.done(site.by("fresh", "online").publish(APP, TWO, 7))
    assert site.resolve(APP).digest == TWO


def test_an_online_key_is_replaced_together_with_what_it_signs() -> None:
    site = Site()
    site.done(site.by("targets", "online").publish(APP, ONE, 7))
    change = site.done(site.by("root", "root2").rotate("timestamp", keyid("online"), KEYS["fresh"].public_pem))
    assert change.published == ()
    site.done(site.by("fresh", "online").countersign())
    assert site.resolve(APP).digest == ONE
    change = site.done(site.by("fresh").renew())
    assert change.published == ("snapshot.json", "timestamp.json")
    assert site.resolve(APP).digest == ONE


def test_a_thief_of_the_teams_key_cannot_go_on_after_its_revocation() -> None:
    site = Site()
    keys = RoleKeys((KEYS["team"].public_pem, KEYS["fresh"].public_pem))
    site.done(site.by("targets", "online", "team").delegate("team", ["registry.example/team"], keys))
    site.done(site.by("team", "online").publish(TEAM_APP, ONE, 7))
    stolen = site.by("team", "online").publish(TEAM_APP, TWO, 7).files["team.json"]
    site.done(site.by("targets", "online", "fresh").revoke_key("team", keyid("team")))
    assert site.resolve(TEAM_APP).digest == ONE
    assert stolen is not None
    site.files["team.json"] = stolen
    with pytest.raises((FreshnessInvalid, FreshnessRollback)):
        site.resolve(TEAM_APP)


def test_freeze_rollback_and_mixture_are_refused() -> None:
    site = Site()
    site.done(site.by("targets", "online").publish(APP, ONE, 7))
    old = dict(site.files)
    site.resolve(APP)
    with pytest.raises(FreshnessExpired):
        site.resolve(APP, after=timedelta(days=2))
    site.now += timedelta(hours=20)
    site.done(site.by("targets", "online").publish(APP, TWO, 7))
    site.resolve(APP)
    new, site.files = site.files, old
    with pytest.raises(FreshnessRollback):
        site.resolve(APP)
    site.files = new | {"targets.json": old["targets.json"]}
    with pytest.raises((FreshnessRollback, FreshnessInvalid)):
        site.resolve(APP)
    site.files = new | {"snapshot.json": old["snapshot.json"]}
    with pytest.raises((FreshnessRollback, FreshnessInvalid)):
        site.resolve(APP)


def test_renewing_keeps_a_freeze_short() -> None:
    site = Site()
    site.done(site.by("targets", "online").publish(APP, ONE, 7))
    for _ in range(5):
        site.now += timedelta(hours=20)
        site.done(site.by("online").renew())
        assert site.resolve(APP).digest == ONE
    assert site.by("thief").renew().published == ()


def test_impossible_thresholds_and_keys() -> None:
    site = Site()
    for threshold in (0, 3, -1):
        with pytest.raises(RoleInvalid):
            site.by("root").add_key("targets", KEYS["thief"].public_pem, threshold)
    with pytest.raises(RoleInvalid):
        site.by("root").revoke_key("targets", keyid("targets"))
    with pytest.raises(RoleInvalid):
        site.by("root").rotate("targets", "ffffffff", KEYS["fresh"].public_pem)
    with pytest.raises(RoleInvalid):
        site.by("root").add_key("nobody", KEYS["fresh"].public_pem)
    with pytest.raises(RepositoryInvalid):
        site.by("root").create({})
    with pytest.raises(RepositoryInvalid):
        Publisher({"root.json": b"{"}, [], NOW)


def test_rows_and_patterns() -> None:
    site = Site()
    site.done(
        site.by("targets", "online").delegate("team", ["registry.example/team/"], RoleKeys((KEYS["team"].public_pem,)))
    )
    site.done(site.by("targets").publish(APP, ONE, 7))
    rows = {row.name: row for row in site.by().rows()}
    assert rows["team"].prefixes == ("registry.example/team",)
    assert rows["targets"].staged
    assert rows["targets"].targets == ((APP, ONE),)
    assert (rows["root"].threshold, len(rows["root"].keys)) == (2, 2)
    assert patterns(["a/b/"])[:3] == ["a/b:*", "a/b/*", "a/b/*/*"]


def test_a_raised_threshold_waits_for_the_second_signature() -> None:
    site = Site()
    site.done(site.by("targets", "online").publish(APP, ONE, 7))
    change = site.done(site.by("root", "root2").add_key("targets", KEYS["fresh"].public_pem, 2))
    assert change.published == ()
    for names in (("targets", "online"), ("online",)):
        change = site.done(site.by(*names).countersign())
        assert change.published == ()
        assert set(change.waiting) == {"root", "targets"}
        assert site.resolve(APP).digest == ONE
    change = site.done(site.by("fresh", "online").countersign())
    assert {"2.root.json", "targets.json"} <= set(change.published)
    assert site.resolve(APP).digest == ONE
    assert site.by("targets", "online").publish(APP, TWO, 7).published == ()


def test_a_kill_between_two_files_shows_no_client_a_mixture() -> None:
    """Whatever part of a change was written: a client gets the old digest or an error; the next command heals it."""
    for count in range(8):
        site = Site()
        keys = RoleKeys((KEYS["team"].public_pem,))
        site.done(site.by("targets", "online", "team").delegate("team", ["registry.example/team"], keys))
        site.done(site.by("team", "targets", "online").publish(TEAM_APP, ONE, 7))
        site.resolve(TEAM_APP)
        change = site.by("team", "online").publish(TEAM_APP, TWO, 7)
        for name, data in list(change.files.items())[:count]:
            site.done(Change({name: data}, (), {}))
        try:
            assert site.resolve(TEAM_APP).digest in (ONE, TWO)
        except (FreshnessInvalid, FreshnessRollback):
            assert 0 < count < len(change.files)
        site.done(site.by("team", "online").publish(TEAM_APP, TWO, 7))
        assert site.resolve(TEAM_APP).digest == TWO
