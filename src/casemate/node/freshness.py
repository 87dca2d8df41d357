"""Publishers that this host follows: fetched now and then, verified, kept; a tag below one means what it signed.

A repository that a publisher answers for fails closed: an unknown tag, metadata that ended or went back, and a registry
that says something else refuse the pull and the new container. What runs goes on; it was started by digest.
"""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3

import msgspec

from casemate.image.errors import DigestUnpublished
from casemate.node import audit, events, imagestore
from casemate.node.clock import rfc3339
from casemate.node.core import Caller, Core
from casemate.node.evidence import ask
from casemate.node.freshness_jobs import Fresh, RefreshJob, Tag, TagJob
from casemate.spec.api import AdmissionStep
from casemate.spec.api.publishers import PublisherList, PublisherRequest, PublisherRow, TagAnswer
from casemate.spec.errors import CasemateError, Conflict, GrantMissing, InvalidArgument, NotFound
from casemate.spec.reference import Reference, ReferenceInvalid, parse_prefix, parse_reference
from casemate.trust.freshness.resolve import Refreshed, Trusted

#: A pull asks the publisher when what is kept is older than this; the daemon asks of itself every hour.
STALE_S = 300.0
EVERY_S = 3600.0
MAX_PUBLISHERS = 64
GRANT = "trust"
ONLINE_S = 120.0
OFFLINE_S = 30.0


class PublisherNotFound(NotFound):
    code = "trust.publisher_not_found"
    title = "No such publisher"
    remedy = "`casemate trust source ls` lists those that are followed."


class Source(msgspec.Struct, frozen=True):
    """A row of the store, without what the publisher showed (:func:`_shown`). *root*: what was believed at first."""

    name: str
    location: str
    repositories: tuple[str, ...]
    root: bytes
    refreshed_at: float = 0.0
    error: str = ""
    expires: str = ""
    versions: dict[str, int] = {}
    #: Digest of what it showed last; empty: not known (stored by an older casemated).
    shown: str = ""

    def covers(self, repository: str) -> int:
        """The length of the longest of its prefixes that *repository* is below, else -1."""
        return max((len(p) for p in self.repositories if repository == p or repository.startswith(f"{p}/")), default=-1)


_SOURCE = msgspec.json.Decoder(Source)
_SHOWN = msgspec.json.Decoder(Refreshed)


def _all(db: sqlite3.Connection) -> list[Source]:
    return [_SOURCE.decode(row) for (row,) in db.execute("SELECT row FROM trust_sources ORDER BY name")]


def _shown(db: sqlite3.Connection, name: str) -> Refreshed | None:
    """What the publisher *name* showed last, verified; None where nothing was fetched yet."""
    found = db.execute("SELECT shown FROM trust_shown WHERE name=?", (name,)).fetchone()
    return _SHOWN.decode(found[0]) if found is not None else None


def _put(db: sqlite3.Connection, source: Source, shown: bytes) -> None:
    db.execute("INSERT INTO trust_sources VALUES (?, ?)", (source.name, msgspec.json.encode(source)))
    db.execute("INSERT INTO trust_shown VALUES (?, ?)", (source.name, shown))


async def _named(core: Core, name: str) -> Source:
    for source in await core.db.read(_all):
        if source.name == name:
            return source
    raise PublisherNotFound(f"publisher {name[:80]!r} is not followed", name=name[:80])


async def _for(core: Core, reference: Reference) -> Source | None:
    """The publisher with the longest prefix of *reference*'s repository."""
    repository = f"{reference.registry}/{reference.repository}"
    found = [(source.covers(repository), source) for source in await core.db.read(_all)]
    length, source = max(found, key=lambda pair: pair[0], default=(-1, None))
    return source if length >= 0 else None


async def follows_any(core: Core) -> bool:
    """Whether any publisher is followed at all."""
    return bool(await core.db.read(lambda db: db.execute("SELECT 1 FROM trust_sources LIMIT 1").fetchone()))


async def follows(core: Core, text: str) -> bool:
    """Whether a publisher is followed for the tag *text*."""
    try:
        reference = parse_reference(text)
    except ReferenceInvalid:
        return False
    return reference.digest is None and await _for(core, reference) is not None


def _demand(caller: Caller, what: str) -> None:
    """Who is followed decides what may run, as the trust policy does."""
    if GRANT not in caller.grants():
        raise GrantMissing(
            f"{what} needs the grant {GRANT!r}, which {caller.who} does not hold",
            remedy="The administrator adds the user under grants.trust in /etc/casemate/casemate.toml.", grant=GRANT,
        )  # fmt: skip


async def add(core: Core, request: PublisherRequest, caller: Caller) -> PublisherRow:
    """Follow a publisher; what it shows now must verify, or nothing is stored."""
    _demand(caller, "to follow a publisher")
    if not request.location.startswith(("http://", "https://", "/")):
        raise InvalidArgument(f"location {request.location[:80]!r} is neither a URL nor an absolute path")
    prefixes = tuple(parse_prefix(text) for text in request.repositories)
    source = Source(request.name, request.location, prefixes, request.root.encode())
    known = await core.db.read(_all)
    for other in known:
        if other.name == source.name or set(other.repositories) & set(prefixes):
            raise Conflict(f"publisher {other.name} is followed for {', '.join(other.repositories)[:200]}")
    if len(known) >= MAX_PUBLISHERS:
        raise Conflict(f"{MAX_PUBLISHERS} publishers are followed already")
    source, shown = await _fetched(core, source, Trusted(source.root))
    at = core.clock()

    def work(db: sqlite3.Connection) -> None:
        _put(db, source, shown)
        audit.append(
            db, at, caller.who, "trust.source.add", source.name, location=source.location, repositories=list(prefixes)
        )

    await core.db.write(work)
    core.trust.change(f"publisher {source.name} is followed")
    return as_row(source)


async def _fetched(core: Core, source: Source, trusted: Trusted) -> tuple[Source, bytes]:
    """The source after it was asked, and what it showed, as it is stored."""
    job = RefreshJob(location=source.location, trusted=trusted, now_s=core.clock())
    answer = await ask(core.evidence_online, job, ONLINE_S)
    assert isinstance(answer, Fresh)
    fresh = answer.refreshed
    shown = msgspec.json.encode(fresh)
    row = msgspec.structs.replace(
        source, refreshed_at=core.clock(), error="", expires=fresh.expires, versions=fresh.versions,
        shown=hashlib.sha256(shown).hexdigest(),
    )  # fmt: skip
    return row, shown


async def refresh(core: Core, name: str, older_than_s: float = 0.0) -> PublisherRow:
    """Ask the publisher now, unless somebody did within *older_than_s*.

    What it is caught at (the past, a bad signature) is kept with it and told as an event.
    """
    async with core.lock(f"trust-source-{name}"):
        source = await _named(core, name)
        if core.clock() - source.refreshed_at < older_than_s:
            return as_row(source)
        known = await core.db.read(lambda db: _shown(db, name))
        try:
            fresh, shown = await _fetched(core, source, known.trusted if known is not None else Trusted(source.root))
        except CasemateError as error:
            failed = msgspec.structs.replace(source, error=f"{_code(error)}: {error.detail}"[:400])
            await core.db.write(lambda db: _failed(db, core, failed))
            core.events.wake()
            raise
        await core.db.write(lambda db: _update(db, fresh, shown))
    if known is None or signs(fresh.versions) != signs(source.versions):
        core.trust.change(f"publisher {name} signed anew")
    return as_row(fresh)


def signs(versions: dict[str, int]) -> dict[str, int]:
    """The versions of what decides what a tag means; a new timestamp or snapshot alone changes no tag."""
    return {role: version for role, version in versions.items() if role not in ("timestamp", "snapshot")}


def _code(error: CasemateError) -> str:
    return str(error.to_problem().get("code", error.code))


def _failed(db: sqlite3.Connection, core: Core, source: Source) -> None:
    _update(db, source)
    events.add(db, core.clock(), "trust", source.name, "refresh-failed", name=source.name, reason=source.error)


def _update(db: sqlite3.Connection, source: Source, shown: bytes | None = None) -> None:
    """Only a publisher that is still followed."""
    row = msgspec.json.encode(source)
    done = db.execute("UPDATE trust_sources SET row=? WHERE name=?", (row, source.name))
    if done.rowcount and shown is not None:
        db.execute("INSERT OR REPLACE INTO trust_shown VALUES (?, ?)", (source.name, shown))


async def remove(core: Core, name: str, caller: Caller) -> None:
    _demand(caller, "to follow a publisher no more")
    source = await _named(core, name)

    def work(db: sqlite3.Connection) -> None:
        db.execute("DELETE FROM trust_sources WHERE name=?", (name,))
        audit.append(db, core.clock(), caller.who, "trust.source.rm", name, location=source.location)

    await core.db.write(work)
    core.trust.change(f"publisher {name} is followed no more")


async def listing(core: Core) -> PublisherList:
    return PublisherList(tuple(as_row(source) for source in await core.db.read(_all)))


def as_row(source: Source) -> PublisherRow:
    return PublisherRow(
        source.name, source.location, source.repositories, rfc3339(source.refreshed_at) if source.refreshed_at else "",
        source.expires, source.versions, source.error,
    )  # fmt: skip


async def tag(core: Core, text: str) -> TagAnswer:
    """What the tag *text* means by what is kept."""
    reference = parse_reference(text)
    source = await _for(core, reference)
    if source is None or reference.tag is None:
        return TagAnswer(reference.familiar, "")
    found = await _meaning(core, source, reference)
    return TagAnswer(reference.familiar, source.name, found.digest, found.role, found.expires)


async def _meaning(core: Core, source: Source, reference: Reference) -> Tag:
    target = f"{reference.registry}/{reference.repository}:{reference.tag}"
    if source.shown:  # thousands of tags are megabytes: the child that has verified them is asked without them
        known = TagJob(target=target, key=source.shown, now_s=core.clock())
        if isinstance(answer := await ask(core.evidence_offline, known, OFFLINE_S), Tag):
            return answer
    shown = await core.db.read(lambda db: _shown(db, source.name))
    if shown is None:
        raise PublisherNotFound(f"publisher {source.name} is followed no more", name=source.name)
    job = TagJob(
        target=target, trusted=shown.trusted, files=shown.files, key=source.shown, now_s=core.clock()
    )  # fmt: skip
    answer = await ask(core.evidence_offline, job, OFFLINE_S)
    assert isinstance(answer, Tag)
    return answer


async def published(core: Core, reference: Reference) -> str:
    """The digest that *reference*'s tag must lead to; empty where nobody is followed for it, or it names a digest.

    Asks the publisher when what is kept is older than five minutes. One that cannot be reached is no fault while what
    is kept has not ended; one that shows the past, or signs badly, is.
    """
    source = await _for(core, reference) if reference.digest is None else None
    if source is None:
        return ""
    if core.clock() - source.refreshed_at > STALE_S:
        try:
            await refresh(core, source.name, STALE_S)
        except CasemateError as error:
            if not _code(error).startswith(("registry.", "operation.", "image.worker")):
                raise
        source = await _named(core, source.name)
    return (await _meaning(core, source, reference)).digest


async def check(core: Core, text: str, row: imagestore.ImageRow, *, is_tag: bool = False) -> tuple[AdmissionStep, ...]:
    """The image *row* must be what the tag *text* means. Asks no network.

    *is_tag*: *text* was resolved once, even if no image is called so any more.

    The step that admission records; none where nobody is followed for the tag, or no tag is resolved.
    Raises :class:`DigestUnpublished`, and what makes metadata unfit.
    """
    try:
        reference = parse_reference(text)
    except ReferenceInvalid:
        return ()  # an id, or a digest: no tag is resolved
    if reference.digest is not None:
        return ()
    if not is_tag and not await core.db.read(lambda db: _has_name(db, str(reference))):
        return ()
    source = await _for(core, reference)
    if source is None:
        return ()
    meaning = await _meaning(core, source, reference)
    digest = meaning.digest
    have = (row.manifest_digest, row.the_record().index_digest)
    if digest not in have:
        raise DigestUnpublished(
            f"{reference.familiar} is {row.manifest_digest} here; publisher {source.name} signed {digest}",
            remedy=f"Fetch it anew: `casemate pull {reference.familiar}`; or run it by its digest.",
            found=row.manifest_digest, published=digest,
        )  # fmt: skip
    said = f"{meaning.role} signed that {reference.familiar} is {digest}, until {meaning.expires}"
    return (AdmissionStep(f"publisher {source.name}", "ok", said),)


def _has_name(db: sqlite3.Connection, name: str) -> bool:
    return db.execute("SELECT 1 FROM image_names WHERE name=?", (name,)).fetchone() is not None


async def keep_fresh(core: Core) -> None:
    """Ask every publisher each hour; never returns. What fails is told as an event, and stands in the list."""
    while True:
        await asyncio.sleep(EVERY_S)
        for source in await core.db.read(_all):
            try:
                await refresh(core, source.name)
            except CasemateError:
                continue
