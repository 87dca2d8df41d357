"""A publisher made here, with its keys; and everything that a thief of some of them, or of the mirror, could show."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

pytest.importorskip("tuf", reason="missing: tuf")

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from casemate.trust.freshness.resolve import (
    FreshnessExpired,
    FreshnessInvalid,
    FreshnessRollback,
    Standing,
    TagUnknown,
    Trusted,
    resolve,
)

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
HEX = "ab" * 32
TAG, TEAM_TAG = "registry.example/app:1", "registry.example/team/app:1"


def target(path: str, digest: str = HEX) -> TargetFile:
    return TargetFile(2, {"sha256": digest}, path)


class Publisher:
    """All roles with a key each (root with two, both needed), and one team."""

    def __init__(self) -> None:
        self.signers = {
            name: CryptoSigner.generate_ed25519()
            for name in ("root", "root2", "timestamp", "snapshot", "targets", "team")
        }
        end = NOW + timedelta(days=30)
        self.root = Root(expires=end)
        for name in ("root", "timestamp", "snapshot", "targets"):
            self.root.add_key(self.signers[name].public_key, name)
        self.root.add_key(self.signers["root2"].public_key, "root")
        self.root.roles["root"].threshold = 2
        role = DelegatedRole(
            "team", [self.signers["team"].public_key.keyid], 1, True, paths=["registry.example/team/*"]
        )
        keys = {self.signers["team"].public_key.keyid: self.signers["team"].public_key}
        self.targets = Targets(expires=end, targets={TAG: target(TAG)}, delegations=Delegations(keys, {"team": role}))
        self.team = Targets(expires=end, targets={TEAM_TAG: target(TEAM_TAG, "cd" * 32)})
        self.snapshot = Snapshot(expires=end)
        self.timestamp = Timestamp(expires=NOW + timedelta(days=1))
        self.more: dict[str, Targets] = {}

    def sign(self, signed: Any, *names: str) -> bytes:
        metadata = Metadata(signed)
        for name in names:
            metadata.sign(self.signers[name], append=True)
        return metadata.to_bytes()

    def files(self) -> dict[str, bytes]:
        roles = {"targets": self.targets, "team": self.team, **self.more}
        for name, signed in roles.items():
            self.snapshot.meta[f"{name}.json"] = copy.copy(self.snapshot.meta["targets.json"])
            self.snapshot.meta[f"{name}.json"].version = signed.version
        self.timestamp.snapshot_meta.version = self.snapshot.version
        return {
            "timestamp.json": self.sign(self.timestamp, "timestamp"),
            "snapshot.json": self.sign(self.snapshot, "snapshot"),
            **{
                f"{name}.json": self.sign(signed, name if name in self.signers else "targets")
                for name, signed in roles.items()
            },
        }

    def trusted(self) -> Trusted:
        return Trusted(self.sign(self.root, "root", "root2"))


@pytest.fixture
def publisher() -> Publisher:
    return Publisher()


def test_a_tag_and_a_team_s_tag(publisher: Publisher) -> None:
    found = resolve(publisher.trusted(), publisher.files(), TAG, NOW)
    assert (found.digest, found.role) == (f"sha256:{HEX}", "targets")
    assert found.expires.startswith("2026-11-23")
    team = resolve(found.trusted, publisher.files(), TEAM_TAG, NOW)
    assert (team.digest, team.role) == ("sha256:" + "cd" * 32, "team")


def test_a_tag_that_nobody_names(publisher: Publisher) -> None:
    for tag in ("registry.example/app:2", "registry.example/team/app:2", ""):
        with pytest.raises(TagUnknown):
            resolve(publisher.trusted(), publisher.files(), tag, NOW)


def test_a_team_cannot_speak_for_others(publisher: Publisher) -> None:
    publisher.team.targets["registry.example/else:1"] = target("registry.example/else:1")
    with pytest.raises(TagUnknown):
        resolve(publisher.trusted(), publisher.files(), "registry.example/else:1", NOW)


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "team", "root"])
def test_expired(publisher: Publisher, role: str) -> None:
    getattr(publisher, role).expires = NOW - timedelta(seconds=1)
    with pytest.raises(FreshnessExpired):
        resolve(publisher.trusted(), publisher.files(), TEAM_TAG, NOW)


def test_frozen(publisher: Publisher) -> None:
    """Whoever holds back what is newer can show the old timestamp for a day."""
    files = publisher.files()
    trusted = resolve(publisher.trusted(), files, TAG, NOW).trusted
    resolve(trusted, files, TAG, NOW + timedelta(hours=23))
    with pytest.raises(FreshnessExpired):
        resolve(trusted, files, TAG, NOW + timedelta(hours=25))


def test_a_clock_set_back_does_not_bring_back_what_was_replaced(publisher: Publisher) -> None:
    old = publisher.files()
    publisher.timestamp.version = publisher.snapshot.version = 2
    publisher.targets.version = 2
    publisher.targets.targets[TAG] = target(TAG, "ef" * 32)
    trusted = resolve(publisher.trusted(), publisher.files(), TAG, NOW).trusted
    with pytest.raises(FreshnessRollback):
        resolve(trusted, old, TAG, NOW - timedelta(days=20))


def test_a_snapshot_that_was_rolled_back(publisher: Publisher) -> None:
    publisher.timestamp.version = publisher.snapshot.version = publisher.targets.version = 5
    trusted = resolve(publisher.trusted(), publisher.files(), TAG, NOW).trusted
    publisher.timestamp.version = publisher.snapshot.version = 6
    publisher.targets.version = 4
    with pytest.raises(FreshnessRollback):
        resolve(trusted, publisher.files(), TAG, NOW)


def test_mixed_up_roles(publisher: Publisher) -> None:
    files = publisher.files()
    for one, other in (
        ("timestamp.json", "snapshot.json"),
        ("targets.json", "team.json"),
        ("team.json", "targets.json"),
    ):
        with pytest.raises(FreshnessInvalid):
            resolve(publisher.trusted(), files | {one: files[other]}, TEAM_TAG, NOW)


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "team"])
def test_signed_by_another_role_s_key(publisher: Publisher, role: str) -> None:
    publisher.signers[role] = publisher.signers["team" if role != "team" else "timestamp"]
    with pytest.raises(FreshnessInvalid):
        resolve(publisher.trusted(), publisher.files(), TEAM_TAG, NOW) if role != "team" else resolve(
            Publisher().trusted(), publisher.files(), TEAM_TAG, NOW
        )


def test_rotation_of_root(publisher: Publisher) -> None:
    trusted = publisher.trusted()
    old, publisher.signers["new"] = publisher.signers["root"], CryptoSigner.generate_ed25519()
    publisher.root.version = 2
    publisher.root.revoke_key(old.public_key.keyid, "root")
    publisher.root.add_key(publisher.signers["new"].public_key, "root")
    good = publisher.sign(publisher.root, "root", "root2", "new")
    found = resolve(trusted, publisher.files() | {"2.root.json": good}, TAG, NOW)
    assert found.versions["root"] == 2
    assert found.trusted.root == good
    for names in (("root2", "new"), ("root", "root2"), ("root", "new")):
        with pytest.raises(FreshnessInvalid):
            resolve(trusted, publisher.files() | {"2.root.json": publisher.sign(publisher.root, *names)}, TAG, NOW)
    publisher.root.version = 3
    skipped = publisher.sign(publisher.root, "root", "root2", "new")
    with pytest.raises(FreshnessRollback):
        resolve(trusted, publisher.files() | {"2.root.json": skipped}, TAG, NOW)


def test_root_below_its_threshold(publisher: Publisher) -> None:
    with pytest.raises(FreshnessInvalid):
        resolve(Trusted(publisher.sign(publisher.root, "root")), publisher.files(), TAG, NOW)


def test_a_revoked_key(publisher: Publisher) -> None:
    """The right signature of a key that the root no longer names."""
    trusted = publisher.trusted()
    publisher.root.version = 2
    keyid = publisher.signers["targets"].public_key.keyid
    publisher.root.add_key(CryptoSigner.generate_ed25519().public_key, "targets")
    publisher.root.revoke_key(keyid, "targets")
    files = publisher.files() | {"2.root.json": publisher.sign(publisher.root, "root", "root2")}
    with pytest.raises(FreshnessInvalid):
        resolve(trusted, files, TAG, NOW)


def test_two_delegators_of_one_name(publisher: Publisher) -> None:
    """Whoever may delegate could name a role as another's and have its metadata taken for that one's."""
    key = publisher.signers["team"].public_key
    again = DelegatedRole("team", [key.keyid], 1, False, paths=["registry.example/*"])
    assert publisher.targets.delegations is not None
    other = DelegatedRole(
        "other", [publisher.signers["targets"].public_key.keyid], 1, False, paths=["registry.example/team/*"]
    )
    publisher.targets.delegations.keys[publisher.signers["targets"].public_key.keyid] = publisher.signers[
        "targets"
    ].public_key
    assert publisher.targets.delegations.roles is not None
    publisher.targets.delegations.roles = {"other": other, **publisher.targets.delegations.roles}
    publisher.more["other"] = Targets(
        expires=NOW + timedelta(days=3), delegations=Delegations({key.keyid: key}, {"team": again})
    )
    with pytest.raises(FreshnessInvalid, match="both delegate"):
        resolve(publisher.trusted(), publisher.files(), "registry.example/team/x:1", NOW)


@pytest.mark.parametrize("name", ["timestamp.json", "snapshot.json", "targets.json"])
@pytest.mark.parametrize(
    "data", [None, b"", b"junk", b"{}", b"[" * 10_000, b"x" * 6_000_000, b'{"signed":{"_type":"root"},"signatures":[]}']
)
def test_junk(publisher: Publisher, name: str, data: bytes | None) -> None:
    files = publisher.files()
    if data is None:
        del files[name]
    else:
        files[name] = data
    with pytest.raises(FreshnessInvalid) as caught:
        resolve(publisher.trusted(), files, TAG, NOW)
    assert len(caught.value.detail) < 1000


def test_a_target_without_its_digest(publisher: Publisher) -> None:
    publisher.targets.targets[TAG] = TargetFile(2, {"sha512": "00"}, TAG)
    with pytest.raises(FreshnessInvalid, match="SHA-256"):
        resolve(publisher.trusted(), publisher.files(), TAG, NOW)


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "team", "root"])
def test_what_stands_ends_all_the_same(publisher: Publisher, role: str) -> None:
    """Verified once, asked later: each role's end is looked at anew, and the clock may go back."""
    publisher.timestamp.expires = NOW + timedelta(days=60)
    getattr(publisher, role).expires = NOW + timedelta(hours=1)
    standing = Standing(publisher.trusted(), publisher.files(), "", NOW)
    for _ in range(2):
        assert standing.resolve(TEAM_TAG, NOW).role == "team"
    with pytest.raises(FreshnessExpired):
        standing.resolve(TEAM_TAG, NOW + timedelta(hours=2))
    assert standing.resolve(TEAM_TAG, NOW).digest == "sha256:" + "cd" * 32


def test_what_stands_is_not_read_again(publisher: Publisher) -> None:
    files = publisher.files()
    standing = Standing(publisher.trusted(), files, "", NOW)
    assert standing.resolve(TEAM_TAG, NOW).versions == {
        "root": 1, "timestamp": 1, "snapshot": 1, "targets": 1, "team": 1
    }  # fmt: skip
    files.clear()
    assert standing.resolve(TEAM_TAG, NOW).role == "team"
    assert standing.resolve(TAG, NOW).role == "targets"
    with pytest.raises(TagUnknown):
        standing.resolve("registry.example/team/app:2", NOW)


def test_two_delegators_of_one_name_in_two_questions(publisher: Publisher) -> None:
    """Each question alone meets one delegator only; what was verified for the first is not taken for the second's."""

    def role(name: str, path: str, signer: str) -> DelegatedRole:
        return DelegatedRole(name, [publisher.signers[signer].public_key.keyid], 1, False, paths=[path])

    end = NOW + timedelta(days=30)
    key = publisher.signers["targets"].public_key
    for name in ("one", "two"):
        publisher.targets.delegations.roles[name] = role(name, f"registry.example/{name}/*", "targets")  # type: ignore[union-attr,index]
        publisher.targets.add_key(key, name)
        publisher.more[name] = Targets(
            expires=end,
            delegations=Delegations({key.keyid: key}, {"x": role("x", f"registry.example/{name}/*", "targets")}),
        )
    names = {f"registry.example/{name}/app:1": target(f"registry.example/{name}/app:1") for name in ("one", "two")}
    publisher.more["x"] = Targets(expires=end, targets=names)
    standing = Standing(publisher.trusted(), publisher.files(), "", NOW)
    assert standing.resolve("registry.example/one/app:1", NOW).role == "x"
    with pytest.raises(FreshnessInvalid, match="both delegate to a role named 'x'"):
        standing.resolve("registry.example/two/app:1", NOW)
