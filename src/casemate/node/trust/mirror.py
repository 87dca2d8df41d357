"""Feeds from a mirror, by digest: a manifest says which files there are; what is new is fetched, checked, imported.

Runs in the trust child only. The manifest is JSON::

    {"feeds": [{"name": "debian", "kind": "debian-tracker", "file": "debian.json.xz", "sha256": "<64 digits>",
                "date": "2026-11-20"}]}

``file`` is relative to the manifest's own address. A transfer that was cut goes on where it stopped; nothing is
imported before its digest is that of the manifest. The manifest itself is believed by TLS, or by the digest that the
caller gives.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated
from urllib.parse import urljoin

import msgspec
from msgspec import Meta

from casemate.image.errors import RegistryUnavailable
from casemate.image.http import Answer as HttpAnswer
from casemate.image.http import Client, Url, parse_url
from casemate.node.trust.jobs import Told, UpdateJob
from casemate.spec.api.scan import FeedChange
from casemate.spec.errors import CasemateError
from casemate.trust.feed.apply import import_feed, open_feed
from casemate.trust.feed.model import FeedDigestMismatch, FeedInvalid, FeedKind, FeedMissing

MAX_MANIFEST_BYTES = 1 << 20
MAX_FEEDS = 1000
#: OSV's export of everything is 1.3 GiB.
MAX_FILE_BYTES = 8 << 30
TELL_EVERY_BYTES = 4 << 20
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}(/[A-Za-z0-9][A-Za-z0-9._-]{0,199}){0,8}\Z")


class FeedMirrorFailed(CasemateError):
    code = "trust.feed_mirror"
    status = 502
    title = "The mirror of feeds did not give what was asked for"
    remedy = "Check the address and that the mirror serves manifest.json; the feeds are as they were."
    retryable = True


class Offered(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of the manifest."""

    name: Annotated[str, Meta(min_length=1, max_length=100)]
    kind: FeedKind
    file: str
    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    date: Annotated[str, Meta(pattern=r"\A([0-9]{4}-[0-9]{2}-[0-9]{2})?\Z")] = ""


class Manifest(msgspec.Struct, frozen=True):
    feeds: Annotated[tuple[Offered, ...], Meta(min_length=1, max_length=MAX_FEEDS)]


def parse_manifest(data: bytes) -> Manifest:
    """The manifest; raises :class:`FeedInvalid`. Names are there once, files stay below the manifest's folder."""
    try:
        found = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise FeedInvalid(f"the mirror's manifest: {error}"[:300]) from error
    names = [row.name for row in found.feeds]
    if len(set(names)) != len(names):
        raise FeedInvalid("the mirror's manifest names a feed twice")
    for row in found.feeds:
        if not _FILE.match(row.file) or not row.name.isprintable():
            raise FeedInvalid(f"the mirror's manifest: {row.file[:100]!r} is no file below the manifest's folder")
    return found


@dataclass(frozen=True, slots=True)
class _Mirror:
    """One update: from *base*, the manifest's address, into the file *feed*."""

    client: Client
    base: Url
    feed: Path
    today: date
    tell: Callable[[Told], None]

    def bring(self, row: Offered) -> FeedChange:
        """Fetch and import what *row* offers, unless it is here."""
        if _present(self.feed).get(row.name) == f"sha256:{row.sha256}":
            self.tell(Told(row.name, "unchanged"))
            return FeedChange(row.name, "unchanged")
        origin = self._fetched(parse_url(urljoin(str(self.base), row.file)), row)
        try:
            self.tell(Told(row.name, "importing"))
            source = import_feed(
                self.feed, row.kind, origin, name=row.name, today=self.today, made=row.date,
                digest=f"sha256:{row.sha256}",
            )  # fmt: skip
        finally:
            origin.unlink(missing_ok=True)
        self.tell(Told(row.name, "done"))
        return FeedChange(row.name, "imported", source.date, source.rows)

    def manifest(self) -> bytes:
        with self.client.retrying(lambda: self.client.send("GET", self.base, {"Accept": "application/json"})) as found:
            if found.status != 200:
                raise FeedMirrorFailed(f"{self.base} answers {found.status}")
            data = found.read(MAX_MANIFEST_BYTES)
        if len(data) > MAX_MANIFEST_BYTES:
            raise FeedInvalid(f"the manifest of {self.base} is longer than {MAX_MANIFEST_BYTES} bytes")
        return data

    def _fetched(self, url: Url, row: Offered) -> Path:
        """The file, whole and of its digest, below the feed's folder. What came before a cut is kept and taken up."""
        path = self.feed.with_name("ingest") / f"{row.sha256}.part"
        path.parent.mkdir(parents=True, exist_ok=True)
        have = path.stat().st_size if path.exists() else 0
        headers = {"Range": f"bytes={have}-"} if have else {}
        with self.client.retrying(lambda: self.client.send("GET", url, headers)) as found:
            goes_on = found.status == 206 and found.header("Content-Range").startswith(f"bytes {have}-")
            if found.status not in (200, 206, 416) or (found.status == 206 and not goes_on):
                raise FeedMirrorFailed(f"{url} answers {found.status}, or another range than was asked for")
            if found.status != 416:  # 416: all of it is here, and the digest tells whether it is the right one
                self._save(path, found, url, row, goes_on=goes_on)
        with path.open("rb") as file:
            seen = hashlib.file_digest(file, "sha256").hexdigest()
        if seen != row.sha256:
            path.unlink()
            raise FeedDigestMismatch(f"{url} hashes to sha256:{seen}; the manifest says sha256:{row.sha256}")
        return path

    def _save(self, path: Path, found: HttpAnswer, url: Url, row: Offered, *, goes_on: bool) -> None:
        with path.open("ab" if goes_on else "wb") as file:
            begin = size = file.seek(0, os.SEEK_END)
            told = begin
            try:
                for chunk in found.chunks():
                    size += len(chunk)
                    if size > MAX_FILE_BYTES:
                        raise FeedInvalid(f"feed {row.name} is longer than {MAX_FILE_BYTES} bytes")
                    file.write(chunk)
                    if size - told >= TELL_EVERY_BYTES:
                        told = size
                        self.tell(Told(row.name, "downloading", size, begin + (found.length or 0)))
            except (OSError, http.client.HTTPException) as error:
                raise FeedMirrorFailed(f"{url} broke off after {size} bytes: {type(error).__name__}") from error
        if found.length is not None and size - begin < found.length:
            raise FeedMirrorFailed(f"{url} broke off after {size - begin} of {found.length} bytes")


def update(job: UpdateJob, feed: Path, tell: Callable[[Told], None]) -> tuple[FeedChange, ...]:
    """Bring the feed up to the mirror's manifest; what is the same already is left alone."""
    base = parse_url(job.url if job.url.endswith(".json") else job.url.rstrip("/") + "/manifest.json")
    if base.scheme == "http" and not job.digest and not {base.host, f"{base.host}:{base.port}"} & set(job.insecure):
        raise FeedMirrorFailed(
            f"{base} is plain HTTP, and no digest of its manifest was given",
            remedy="Use https, give --digest sha256:..., or name the host in registry.insecure.",
        )
    client = Client()
    try:
        mirror = _Mirror(client, base, feed, date.fromisoformat(job.today), tell)
        data = mirror.manifest()
        if job.digest and f"sha256:{hashlib.sha256(data).hexdigest()}" != job.digest:
            raise FeedDigestMismatch(f"the manifest of {base} is not {job.digest}")
        offered = parse_manifest(data).feeds
        if unknown := set(job.names) - {row.name for row in offered}:
            raise FeedInvalid(f"the mirror offers no feed {sorted(unknown)[0]!r}")
        return tuple([mirror.bring(row) for row in offered if not job.names or row.name in job.names])
    except RegistryUnavailable as error:
        raise FeedMirrorFailed(error.detail) from error
    finally:
        client.close()


def _present(feed: Path) -> dict[str, str]:
    try:
        database, sources = open_feed(feed)
    except FeedMissing:
        return {}
    database.close()
    return {source.name: source.digest for source in sources}
