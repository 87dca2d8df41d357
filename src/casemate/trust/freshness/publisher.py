"""Metadata made and changed: who may sign what, and which digest a tag has. Pure: files in, files out.

A change is published whole or not at all: what was changed, what has to be signed anew because of it, the snapshot and
the timestamp. What lacks a signature waits below ``staged/`` until somebody with the key signs it
(:meth:`Publisher.countersign`); no client looks there. So root and targets keys can stay on several people's tokens.

TUF specification 1.0.34: 3 (roles), 4 (documents), 6 (repository operations). Consistent snapshots are off: what a tag
means is in the metadata themselves, so that a folder or any web server will do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from casemate.spec.ids import check_digest, digest_hex
from casemate.trust.freshness.errors import RepositoryInvalid, RoleInvalid
from casemate.trust.freshness.roles import (
    MAX_TARGETS,
    MAX_TEAMS,
    PREFIX,
    ROLE_NAME,
    STAGED,
    TOP,
    Change,
    Lifetimes,
    RoleKeys,
    RoleRow,
    delegated_keys,
    of_role,
    parse_metadata,
    patterns,
    set_threshold,
    tuf_api,
    tuf_key,
)
from casemate.trust.keys.private import SigningKey

if TYPE_CHECKING:
    from tuf.api.metadata import Metadata


class Publisher:
    """A folder's files, as they change. *signers* sign whatever role they may."""

    def __init__(
        self,
        files: Mapping[str, bytes],
        signers: Sequence[SigningKey],
        now: datetime,
        lifetimes: Lifetimes | None = None,
    ) -> None:
        self._signers = {tuf_key(key.public_pem).keyid: key for key in signers}
        self._now = now.replace(microsecond=0)
        self._lifetimes = lifetimes or Lifetimes()
        self._old: dict[str, Metadata[Any]] = {}
        self._new: dict[str, Metadata[Any]] = {}
        self._touched: dict[str, None] = {}
        for name, data in files.items():
            role = name.removeprefix(STAGED).removesuffix(".json")
            if role in TOP or ROLE_NAME.match(role):
                (self._new if name.startswith(STAGED) else self._old)[role] = of_role(
                    parse_metadata(data, name), role, name
                )

    # what people do

    def create(self, roles: Mapping[str, RoleKeys]) -> Change:
        """The first metadata of every role."""
        api = tuf_api()
        if self._old or self._new:
            raise RepositoryInvalid("there are metadata already", remedy="Choose an empty folder.")
        root = api.Root(consistent_snapshot=False)
        for role in TOP:
            self._set_keys(root, role, roles[role])
        made = {"root": root, "targets": api.Targets(), "snapshot": api.Snapshot(), "timestamp": api.Timestamp()}
        for role, signed in made.items():
            self._new[role] = api.Metadata(signed)
            if role in ("root", "targets"):
                self._touch(role)
        return self._finish()

    def add_key(self, role: str, pem: str, threshold: int | None = None) -> Change:
        """One more key that may sign for *role*; *threshold*: how many must."""
        delegator = self._edit(self._delegator_of(role))
        delegator.add_key(tuf_key(pem), role)
        return self._with_threshold(delegator, role, threshold)

    def rotate(self, role: str, old: str, new: str) -> Change:
        """The key *new* in the place of *old* (a key id or its beginning)."""
        delegator = self._edit(self._delegator_of(role))
        keyid = self._keyid(delegator, role, old)
        delegator.add_key(tuf_key(new), role)
        delegator.revoke_key(keyid, role)
        return self._with_threshold(delegator, role, None)

    def revoke_key(self, role: str, old: str, threshold: int | None = None) -> Change:
        """*old* may sign for *role* no more."""
        delegator = self._edit(self._delegator_of(role))
        delegator.revoke_key(self._keyid(delegator, role, old), role)
        return self._with_threshold(delegator, role, threshold)

    def delegate(self, role: str, prefixes: Sequence[str], keys: RoleKeys) -> Change:
        """Let the team *role* sign for the repositories below *prefixes*. A role's name is given once only."""
        api = tuf_api()
        if not ROLE_NAME.match(role) or role in TOP or role in self._old or role in self._new:
            raise RoleInvalid(
                f"{role[:80]!r} is no name for a new role: lower-case letters, digits, -, and not yet given"
            )
        if not prefixes or any(not PREFIX.match(prefix) or "//" in prefix for prefix in prefixes):
            raise RoleInvalid(f"role {role}: {list(prefixes)!r:.200} are no prefixes of repositories")
        targets = self._edit("targets")
        if targets.delegations is None:
            targets.delegations = api.Delegations({}, {})
        assert targets.delegations.roles is not None
        if len(targets.delegations.roles) >= MAX_TEAMS:
            raise RoleInvalid(f"{MAX_TEAMS} teams are there already")
        # Terminating: what is delegated to a team is said by nobody else.
        targets.delegations.roles[role] = api.DelegatedRole(role, [], 1, True, paths=patterns(prefixes))
        self._set_keys(targets, role, keys)
        self._new[role] = api.Metadata(api.Targets())
        self._touch(role)
        return self._finish()

    def publish(self, target: str, digest: str, size_bytes: int, role: str = "") -> Change:
        """*target* (``repository:tag``) has *digest* from now on. *role*: who says so; empty: the delegated one."""
        name = self._role_for(target, role)
        signed = self._edit(name)
        if len(signed.targets) >= MAX_TARGETS:
            raise RoleInvalid(f"role {name} names {MAX_TARGETS} tags already")
        signed.targets[target] = tuf_api().TargetFile(size_bytes, {"sha256": digest_hex(check_digest(digest))}, target)
        return self._finish()

    def unpublish(self, target: str, role: str = "") -> Change:
        """Nobody vouches for *target* any more."""
        name = self._role_for(target, role)
        signed = self._edit(name)
        if target not in signed.targets:
            raise RoleInvalid(f"role {name} does not name {target[:200]}")
        del signed.targets[target]
        return self._finish()

    def renew(self) -> Change:
        """A new timestamp, and a new snapshot where its key is here; what waits with all its signatures goes out."""
        return self._finish(always=True)

    def countersign(self) -> Change:
        """Sign what waits, with the keys that are here."""
        if not self._new:
            raise RoleInvalid("nothing waits for a signature")
        return self._finish()

    def rows(self) -> list[RoleRow]:
        """Every role, the top ones first."""
        names = [*TOP, *sorted({*self._old, *self._new} - {*TOP})]
        return [self._row(name) for name in names if name in self._old or name in self._new]

    # how

    def _row(self, role: str) -> RoleRow:
        signed = self._latest(role).signed
        delegator = self._latest(self._delegator_of(role))
        if not delegated_keys(delegator, role):
            raise RepositoryInvalid(f"{role}.json is there, and nobody says who may sign it")
        delegated = delegator.signed.get_delegated_role(role)
        targets = getattr(signed, "targets", {})
        return RoleRow(
            role, signed.version, signed.expires.isoformat(), tuple(delegated.keyids), delegated.threshold,
            tuple(path.removesuffix(":*") for path in (getattr(delegated, "paths", None) or ()) if path.endswith(":*")),
            tuple((name, f"sha256:{file.hashes.get('sha256', '')}") for name, file in sorted(targets.items())),
            role in self._new,
        )  # fmt: skip

    def _latest(self, role: str) -> Metadata[Any]:
        found = self._new.get(role) or self._old.get(role)
        if found is None:
            raise RoleInvalid(f"there is no role {role[:80]!r}")
        return found

    def _edit(self, role: str) -> Any:
        """What *role* signs, to be changed: of a version of its own."""
        metadata = self._new.get(role)
        if metadata is None:
            metadata = self._new[role] = parse_metadata(self._latest(role).to_bytes(), role)
            metadata.signed.version += 1
        self._touch(role)
        return metadata.signed

    def _touch(self, role: str) -> None:
        self._touched[role] = None
        metadata = self._new[role]
        metadata.signatures.clear()
        metadata.signed.expires = self._now + self._lifetimes.of(role)

    def _delegator_of(self, role: str) -> str:
        if role in TOP:
            return "root"
        if role in self._old or role in self._new:
            return "targets"
        raise RoleInvalid(f"there is no role {role[:80]!r}")

    def _set_keys(self, delegator: Any, role: str, keys: RoleKeys) -> None:
        for pem in keys.keys:
            delegator.add_key(tuf_key(pem), role)
        set_threshold(delegator.get_delegated_role(role), keys.threshold)

    def _with_threshold(self, delegator: Any, role: str, threshold: int | None) -> Change:
        delegated = delegator.get_delegated_role(role)
        set_threshold(delegated, delegated.threshold if threshold is None else threshold)
        return self._finish()

    def _keyid(self, delegator: Any, role: str, text: str) -> str:
        keyids = delegator.get_delegated_role(role).keyids
        found = [keyid for keyid in keyids if keyid.startswith(text)] if len(text) >= 6 else []
        if len(found) != 1:
            raise RoleInvalid(f"{text[:80]!r} names {len(found)} of the keys of role {role}: {', '.join(keyids)[:400]}")
        return str(found[0])

    def _role_for(self, target: str, role: str) -> str:
        if role:
            if role in ("root", "snapshot", "timestamp"):
                raise RoleInvalid(f"{role} names no tags; targets or a team does")
            self._latest(role)
            return role
        delegations = self._latest("targets").signed.delegations
        found = [name for name, _ in delegations.get_roles_for_target(target)] if delegations is not None else []
        return found[0] if found else "targets"

    def _finish(self, *, always: bool = False) -> Change:
        """Sign; then publish what may go out, and stage the rest."""
        self._resign_dependents()
        staged = [role for role in ("root", "targets", *sorted(self._new)) if role in self._new]
        roles = [role for role in dict.fromkeys(staged) if role not in ("snapshot", "timestamp")]
        held: dict[str, str] = {}
        while True:
            ready: dict[str, None] = {}
            waiting = dict(held)
            for role in roles:
                self._sign(role, self._new[role])
                lack = held.get(role) or self._lack(role, self._new[role], ready)
                if lack:
                    waiting[role] = lack
                else:
                    ready[role] = None
            broken = self._broken(ready)
            if not broken:
                return self._release(list(ready), waiting, always=always)
            held |= broken

    def _broken(self, ready: Mapping[str, None]) -> dict[str, str]:
        """Delegators among *ready* that would leave something published without enough signatures: they wait for it."""
        found = {}
        for role in self._old:
            delegator = self._delegator_of(role)
            if delegator not in ready or role in ("root", "snapshot", "timestamp"):
                continue
            if self._lack(role, (self._new if role in ready else self._old)[role], ready):
                found[delegator] = f"{role} has to be signed anew with it"
                if (
                    role in self._new
                ):  # it would hold under the old keys, but then nobody would sign it for the new ones
                    found[role] = f"waits for {delegator}"
        return found

    def _resign_dependents(self) -> None:
        """What is published and would not hold under the new keys is signed anew, of a new version."""
        for delegator, roles in (("root", ("targets",)), ("targets", tuple(self._teams()))):
            if delegator not in self._new:
                continue
            for role in roles:
                if role in self._old and role not in self._new and self._lack(role, self._old[role], self._new):
                    self._edit(role)

    def _teams(self) -> list[str]:
        delegations = self._latest("targets").signed.delegations
        return list((delegations.roles or {}) if delegations is not None else ())

    def _release(self, ready: list[str], waiting: dict[str, str], *, always: bool) -> Change:
        targets = [role for role in ready if role != "root"]
        snapshot = self._snapshot(targets)
        timestamp = self._timestamp(snapshot)
        stale = [role for role in ("snapshot", "timestamp") if self._stale(role, ready)]
        lack = {role: why for role, made in (("snapshot", snapshot), ("timestamp", timestamp))
                if (why := self._lack(role, made, dict.fromkeys(ready)))}  # fmt: skip
        if "snapshot" in lack and not targets and "snapshot" not in stale:
            del lack["snapshot"]  # nothing needs a new one
            snapshot = self._old["snapshot"]
            timestamp = self._timestamp(snapshot)
        wanted = always or bool(targets or stale)
        if lack and wanted:
            return self._stage(ready, {**waiting, **lack})
        files: dict[str, bytes | None] = {}
        if "root" in ready:
            root = self._new["root"].to_bytes()
            files[f"{self._new['root'].signed.version}.root.json"] = files["root.json"] = root
        for role in targets:
            files[f"{role}.json"] = self._new[role].to_bytes()
        if wanted:
            files["snapshot.json"], files["timestamp.json"] = snapshot.to_bytes(), timestamp.to_bytes()
        published = tuple(files)
        for role in self._new:
            if role in ready:
                files[f"{STAGED}{role}.json"] = None
            elif role in waiting:
                files[f"{STAGED}{role}.json"] = self._new[role].to_bytes()
        return Change(files, published, waiting)

    def _stale(self, role: str, ready: Sequence[str]) -> bool:
        """Whether what is published for *role* does not hold under the keys that will be in force."""
        return role not in self._old or bool(self._lack(role, self._old[role], dict.fromkeys(ready)))

    def _snapshot(self, targets: Sequence[str]) -> Metadata[Any]:
        api = tuf_api()
        version = self._old["snapshot"].signed.version + 1 if "snapshot" in self._old else 1
        roles = {"targets", *self._teams()}
        source = {role: (self._new if role in targets else self._old)[role] for role in sorted(roles)
                  if role in targets or role in self._old}  # fmt: skip
        meta = {f"{role}.json": api.MetaFile(metadata.signed.version) for role, metadata in source.items()}
        made: Metadata[Any] = api.Metadata(
            api.Snapshot(version, expires=self._now + self._lifetimes.of("snapshot"), meta=meta)
        )
        self._sign("snapshot", made)
        return made

    def _timestamp(self, snapshot: Metadata[Any]) -> Metadata[Any]:
        api = tuf_api()
        version = self._old["timestamp"].signed.version + 1 if "timestamp" in self._old else 1
        signed = api.Timestamp(
            version,
            expires=self._now + self._lifetimes.of("timestamp"),
            snapshot_meta=api.MetaFile(snapshot.signed.version),
        )
        made: Metadata[Any] = api.Metadata(signed)
        self._sign("timestamp", made)
        return made

    def _stage(self, ready: Sequence[str], waiting: Mapping[str, str]) -> Change:
        lacking = dict(waiting)
        for role in ready:
            lacking.setdefault(role, "signed; waits for the others")
        files: dict[str, bytes | None] = {
            f"{STAGED}{role}.json": self._new[role].to_bytes()
            for role in self._new
            if role not in ("snapshot", "timestamp")
        }
        return Change(files, (), lacking)

    def _sign(self, role: str, metadata: Metadata[Any]) -> None:
        """Add the signature of every key that is here and may sign for *role*."""
        data = metadata.signed_bytes
        for keyid in self._may_sign(role):
            if keyid in self._signers and keyid not in metadata.signatures:
                metadata.signatures[keyid] = tuf_api().Signature(keyid, self._signers[keyid].sign(data).hex())

    def _may_sign(self, role: str) -> list[str]:
        """Keys of *role*, under what is published and under what waits; a new root takes the old one's as well."""
        delegator = self._delegator_of(role)
        found: dict[str, None] = {}
        for source in (self._new, self._old):
            if delegator in source:
                found |= dict.fromkeys(delegated_keys(source[delegator], role))
        return list(found)

    def _lack(self, role: str, metadata: Metadata[Any], ready: Mapping[str, Any]) -> str:
        """What *metadata* still need to hold for *role* once *ready* are published; empty when they hold.

        A new root needs the old one's keys too (5.3.4).
        """
        delegator = self._delegator_of(role)
        if role == "root":
            delegators = [self._new["root"]] if metadata is self._new.get("root") else []
            delegators += [self._old["root"]] if "root" in self._old else []
        else:
            standing = (self._new if delegator in ready else self._old).get(delegator)
            if standing is None:
                return f"{delegator} is not published"
            delegators = [standing]
        needed: dict[str, None] = {}
        for one in delegators:
            if not delegated_keys(one, role):
                return f"{delegator} has to name its keys first"
            found = one.signed.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
            if not found.verified:
                needed[f"{found.missing} more of the keys {', '.join(sorted(key[:12] for key in found.unsigned))}"] = (
                    None
                )
        return "; ".join(needed)
