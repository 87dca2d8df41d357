"""From metadata (bytes) and what was trusted before to the digest of a tag, or an error that says which promise broke.

TUF specification 1.0.34, "Detailed client workflow" (5): the numbers stand beside the code. The steps are those of
``tuf``'s own updater, on its trusted set, without its files and its network.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from casemate.spec.errors import CasemateError, HostLacks
from casemate.spec.ids import check_digest

if TYPE_CHECKING:
    from tuf.api._payload import Signed, Targets
    from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet

#: As in tuf's own UpdaterConfig.
_MAX_BYTES = {"root": 512_000, "timestamp": 16_384, "snapshot": 2_000_000, "targets": 5_000_000}
_MAX_ROOT_ROTATIONS = 256
_MAX_DELEGATIONS = 32
_MAX_ROLES = 256
#: What one publisher's metadata may take in the store: some 100,000 tags.
_MAX_ALL_BYTES = 24 << 20
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\.json\Z")


class FreshnessInvalid(CasemateError):
    code = "trust.tuf_invalid"
    status = 403
    title = "Metadata are not signed as they must be"
    remedy = "Fetch the metadata again from their publisher; the detail names the role."


class FreshnessExpired(CasemateError):
    code = "trust.tuf_expired"
    status = 403
    title = "Metadata have expired"
    remedy = "Their publisher has to sign them anew; or this host's clock is wrong: `timedatectl`."


class FreshnessRollback(CasemateError):
    code = "trust.tuf_rollback"
    status = 403
    title = "Metadata are older than those that were seen before"
    remedy = "Somebody shows this host the past: ask the publisher; the detail shows both versions."


class TagUnknown(CasemateError):
    code = "trust.tag_unknown"
    status = 403
    title = "No publisher vouches for this tag"
    remedy = "Have its publisher sign a target of this name, with the manifest's digest."


class Trusted(msgspec.Struct, frozen=True):
    """What the host keeps between two resolutions. *root* is given by the administrator at first."""

    root: bytes
    timestamp: bytes = b""
    snapshot: bytes = b""


class Resolved(msgspec.Struct, frozen=True):
    """The answer, and what to keep. *role*: who said it; *expires*: the timestamp's end."""

    digest: str
    role: str
    versions: dict[str, int]
    expires: str
    trusted: Trusted


def resolve(trusted: Trusted, fetched: Mapping[str, bytes], target: str, now: datetime) -> Resolved:
    """The digest of *target* (``repository:tag``).

    *fetched*: file names as in a TUF repository with consistent snapshots off (``timestamp.json``, ``2.root.json``,
    ``team.json``). Raises :class:`FreshnessInvalid`, :class:`FreshnessExpired`, :class:`FreshnessRollback`,
    :class:`TagUnknown`.
    """
    return Standing(trusted, fetched, target, now).resolve(target, now)


class Standing:
    """What a publisher showed, verified once, to be asked for many tags: 20,000 of them are 2.7 MB of metadata.

    Signatures, versions and delegations are checked when it is made, or when a role is first asked; that nothing has
    ended, at each question. *about*: what errors call it. Raises as :func:`resolve` does.
    """

    def __init__(self, trusted: Trusted, fetched: Mapping[str, bytes], about: str, now: datetime) -> None:
        self._fetched = fetched
        self._asked: dict[str, Targets] = {}
        #: Of all questions: metadata are kept by name, so a name belongs to one delegator as long as this stands.
        self._delegator_of = {"targets": "root"}
        with _told(about, now):
            self._roles, self._trusted = _standing(trusted, fetched, now)

    def resolve(self, target: str, now: datetime) -> Resolved:
        """The digest of *target*, by what stands."""
        roles = self._roles
        with _told(target, now):
            roles.reference_time = now
            for name in ("root", "timestamp", "snapshot"):
                _still_holds(roles[name], name, now)
            digest, asked = self._search(target, now)
        versions = {name: roles[name].version for name in ("root", "timestamp", "snapshot", *asked)}
        return Resolved(digest, asked[-1], versions, roles.timestamp.expires.isoformat(), self._trusted)

    def _search(self, target: str, now: datetime) -> tuple[str, list[str]]:
        """5.6.7: pre-order through the delegations; the digest, and the roles that were asked, the last of which knew.

        No role name may be delegated to from two places.
        """
        waiting = [("targets", "root")]
        asked: list[str] = []
        while waiting:
            name, delegator = waiting.pop()
            if name in asked:
                continue
            asked.append(name)
            if len(asked) > _MAX_DELEGATIONS:
                raise FreshnessInvalid(f"{target}: more than {_MAX_DELEGATIONS} roles would have to be asked")
            found = self._role(name, delegator, now)
            if target in found.targets:
                return _digest(found.targets[target].hashes, target), asked
            if found.delegations is None:
                continue
            # Metadata are kept by name: a second delegator of a name could have its own taken for the first one's.
            for child in found.delegations.roles or ():
                if self._delegator_of.setdefault(child, name) != name:
                    raise FreshnessInvalid(
                        f"{self._delegator_of[child]} and {name} both delegate to a role named {child!r}"
                    )
            children = []
            for child, terminating in found.delegations.get_roles_for_target(target):
                children.append((child, name))
                if terminating:
                    waiting = []
                    break
            waiting.extend(reversed(children))
        raise TagUnknown(f"none of the roles {', '.join(asked)} names {target}")

    def _role(self, name: str, delegator: str, now: datetime) -> Targets:
        found = self._asked.get(name)
        if found is None:
            data = _take(self._fetched, f"{name}.json", "targets")
            found = self._asked[name] = self._roles.update_delegated_targets(data, name, delegator)
        else:
            _still_holds(found, name, now)
        return found


def _standing(trusted: Trusted, fetched: Mapping[str, bytes], now: datetime) -> tuple[TrustedMetadataSet, Trusted]:
    """Root, timestamp and snapshot, verified; and what is to be kept of them."""
    from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet  # noqa: PLC0415 - lazily
    from tuf.ngclient.config import EnvelopeType  # noqa: PLC0415

    roles = TrustedMetadataSet(trusted.root, EnvelopeType.METADATA)
    roles.reference_time = now
    root = _roots(roles, trusted.root, fetched)  # 5.3
    timestamp = _timestamp(roles, trusted.timestamp, fetched)  # 5.4
    snapshot = _snapshot(roles, trusted.snapshot, fetched)  # 5.5
    return roles, Trusted(root, timestamp, snapshot)


def _still_holds(signed: Signed, name: str, now: datetime) -> None:
    """5.3.10, 5.4.4, 5.5.6, 5.6.6, anew for metadata that were verified earlier."""
    from tuf.api.exceptions import ExpiredMetadataError  # noqa: PLC0415 - lazily

    if signed.is_expired(now):
        raise ExpiredMetadataError(f"{name} is expired")


@contextlib.contextmanager
def _told(about: str, now: datetime) -> Generator[None]:
    """What tuf raises within, as errors of ours; *about* stands before each."""
    try:
        from tuf.api import exceptions  # noqa: PLC0415 - lazily
    except ImportError as error:
        raise HostLacks("the Python package tuf is not installed", remedy="pip install 'tuf>=7,<8'") from error
    before = f"{about}: " if about else ""
    try:
        yield
    except exceptions.ExpiredMetadataError as error:
        raise FreshnessExpired(f"{before}{error}; the clock says {now.isoformat()}") from error
    except exceptions.BadVersionNumberError as error:
        raise FreshnessRollback(f"{before}{error}") from error
    except (exceptions.RepositoryError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise FreshnessInvalid(f"{before}{str(error)[:400]}") from error


class Refreshed(msgspec.Struct, frozen=True):
    """What a refresh brings: *trusted* and *files* to keep; *expires*: the timestamp's end; *versions*: by role."""

    trusted: Trusted
    files: dict[str, bytes]
    versions: dict[str, int]
    expires: str


def refresh(trusted: Trusted, fetched: Mapping[str, bytes], now: datetime) -> Refreshed:
    """Verify all that a publisher shows now, so that tags can be resolved later without asking.

    *fetched* may fetch when it is asked; it is asked for a role only after the snapshot that names it was verified.
    Raises as :func:`resolve` does.
    """
    with _told("", now):
        return _refresh(trusted, fetched, now)


def _refresh(trusted: Trusted, fetched: Mapping[str, bytes], now: datetime) -> Refreshed:
    roles, standing = _standing(trusted, fetched, now)
    names = sorted(roles.snapshot.meta)
    if len(names) > _MAX_ROLES or any(not _FILE.match(name) for name in names):
        raise FreshnessInvalid(f"the snapshot names {len(names)} roles, or one of a bad name; {_MAX_ROLES} are allowed")
    files = {name: _take(fetched, name, "targets") for name in names}
    if sum(map(len, files.values())) > _MAX_ALL_BYTES:
        raise FreshnessInvalid(f"the metadata have more than {_MAX_ALL_BYTES} bytes together")
    targets = roles.update_delegated_targets(files["targets.json"], "targets", "root")
    for name in (targets.delegations.roles or {}) if targets.delegations is not None else ():
        if f"{name}.json" in files:  # a team that has not signed yet is not there
            roles.update_delegated_targets(files[f"{name}.json"], name, "targets")
    versions = {"root": roles.root.version, "timestamp": roles.timestamp.version, "snapshot": roles.snapshot.version}
    versions |= {name.removesuffix(".json"): meta.version for name, meta in roles.snapshot.meta.items()}
    kept = files | {"timestamp.json": standing.timestamp, "snapshot.json": standing.snapshot}
    return Refreshed(standing, kept, versions, roles.timestamp.expires.isoformat())


def _take(fetched: Mapping[str, bytes], name: str, kind: str) -> bytes:
    data = fetched.get(name)
    if data is None:
        raise FreshnessInvalid(f"{name} was not given by the publisher")
    if len(data) > _MAX_BYTES[kind]:
        raise FreshnessInvalid(f"{name} has {len(data)} bytes; {_MAX_BYTES[kind]} are allowed")
    return data


def _roots(roles: TrustedMetadataSet, root: bytes, fetched: Mapping[str, bytes]) -> bytes:
    """5.3.2 to 5.3.9: each next root is signed by the last one's keys and by its own."""
    for _ in range(_MAX_ROOT_ROTATIONS):
        name = f"{roles.root.version + 1}.root.json"
        if name not in fetched:
            break
        root = _take(fetched, name, "root")
        roles.update_root(root)
    return root


def _timestamp(roles: TrustedMetadataSet, known: bytes, fetched: Mapping[str, bytes]) -> bytes:
    from tuf.api import exceptions  # noqa: PLC0415

    _load_known(lambda: roles.update_timestamp(known), known)
    data = _take(fetched, "timestamp.json", "timestamp")
    try:
        roles.update_timestamp(data)  # 5.4.3: not older than what is known; 5.4.4: not expired
    except exceptions.EqualVersionNumberError:
        data = known
    return data


def _snapshot(roles: TrustedMetadataSet, known: bytes, fetched: Mapping[str, bytes]) -> bytes:
    _load_known(lambda: roles.update_snapshot(known, trusted=True), known)
    data = _take(fetched, "snapshot.json", "snapshot")
    roles.update_snapshot(data)
    return data


def _load_known(load: Any, known: bytes) -> None:
    """What was trusted before is loaded to compare with; that it expired, or that its key was replaced, is no fault."""
    from tuf.api import exceptions  # noqa: PLC0415

    if known:
        try:
            load()
        except exceptions.RepositoryError:
            return


def _digest(hashes: Mapping[str, str], target: str) -> str:
    if "sha256" not in hashes:
        raise FreshnessInvalid(f"{target} is published without a SHA-256")
    return check_digest(f"sha256:{hashes['sha256']}")
