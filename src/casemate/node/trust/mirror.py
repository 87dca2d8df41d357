"""Feeds from a mirror, by digest: a manifest says which files there are; what is new is fetched, checked, imported.

Runs in the trust child only. What a manifest is, and who vouches for it: :mod:`casemate.trust.feed.manifest`. A
transfer that was cut goes on where it stopped; nothing is imported before its digest is that of the manifest. Where
keys are named the manifest has to be signed by them, and which version each was seen with is kept in ``mirror.json``
beside the feeds before anything is fetched; else the manifest is believed by TLS, or by the digest that the caller
gives.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import os
from collections.abc import Callable, Generator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from urllib.parse import urljoin

import msgspec

from casemate.host.durable import write_atomic
from casemate.image.errors import RegistryUnavailable
from casemate.image.http import Answer as HttpAnswer
from casemate.image.http import Client, Url, parse_url
from casemate.node.trust.jobs import Told, UpdateJob
from casemate.spec.api.scan import FeedChange
from casemate.spec.errors import CasemateError
from casemate.trust.feed.apply import import_feed, open_feed
from casemate.trust.feed.manifest import (
    MAX_MANIFEST_BYTES,
    Manifest,
    Offered,
    Seen,
    parse_manifest,
    verify_manifest,
)
from casemate.trust.feed.model import FeedBusy, FeedDigestMismatch, FeedInvalid, FeedMissing
from casemate.trust.signature.keys import load_public_key

#: OSV's export of everything is 1.3 GiB.
MAX_FILE_BYTES = 8 << 30
TELL_EVERY_BYTES = 4 << 20
#: Keys come and go; so many are remembered, the newest seen last.
MAX_SEEN = 256
SEEN_FILE = "mirror.json"
_SEEN: msgspec.json.Decoder[dict[str, Seen]] = msgspec.json.Decoder(dict[str, Seen])


class FeedMirrorFailed(CasemateError):
    code = "trust.feed_mirror"
    status = 502
    title = "The mirror of feeds did not give what was asked for"
    remedy = "Check the address and that the mirror serves manifest.json; the feeds are as they were."
    retryable = True


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
    if (
        base.scheme == "http"
        and not (job.digest or job.keys)
        and not {base.host, f"{base.host}:{base.port}"} & set(job.insecure)
    ):
        raise FeedMirrorFailed(
            f"{base} is plain HTTP, and neither a key nor a digest of its manifest was given",
            remedy="Use https, name its maker's key (feed.keys, --trusted-key), give --digest sha256:..., or name the "
            "host in registry.insecure.",
        )
    client = Client()
    try:
        mirror = _Mirror(client, base, feed, date.fromisoformat(job.today), tell)
        data = mirror.manifest()
        if job.digest and f"sha256:{hashlib.sha256(data).hexdigest()}" != job.digest:
            raise FeedDigestMismatch(f"the manifest of {base} is not {job.digest}")
        offered = _believed(job, data, feed.with_name(SEEN_FILE)).feeds
        if unknown := set(job.names) - {row.name for row in offered}:
            raise FeedInvalid(f"the mirror offers no feed {sorted(unknown)[0]!r}")
        return tuple([mirror.bring(row) for row in offered if not job.names or row.name in job.names])
    except RegistryUnavailable as error:
        raise FeedMirrorFailed(error.detail) from error
    finally:
        client.close()


def _believed(job: UpdateJob, data: bytes, kept: Path) -> Manifest:
    """The manifest, verified where keys are named; what it was seen with is kept before it is acted upon."""
    if not job.keys:
        return parse_manifest(data)
    keys = [load_public_key(pem.encode()) for pem in job.keys]
    with _held(kept):
        floor = _read_seen(kept)
        found = verify_manifest(data, keys, job.threshold, date.fromisoformat(job.today), floor)
        newer = {ident: seen for ident, seen in found.seen.items() if floor.get(ident) != seen}
        if newer:
            rows = list((floor | newer).items())[-MAX_SEEN:]
            write_atomic(kept, msgspec.json.encode(dict(rows)))
    return found.manifest


def _read_seen(kept: Path) -> dict[str, Seen]:
    try:
        return _SEEN.decode(kept.read_bytes())
    except FileNotFoundError:
        return {}
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FeedInvalid(
            f"{kept}, which says what each key was seen with, cannot be read: {error}"[:300],
            remedy=f"Look at the disk; `rm {kept}` forgets what was seen, and with it the guard against older feeds.",
        ) from error


@contextlib.contextmanager
def _held(kept: Path) -> Generator[None]:
    """One update at a time reads and raises what was seen."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    number = os.open(kept.with_name(f".{kept.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FeedBusy(f"{kept}: another update reads it") from error
        yield
    finally:
        os.close(number)


def _present(feed: Path) -> dict[str, str]:
    try:
        database, sources = open_feed(feed)
    except FeedMissing:
        return {}
    database.close()
    return {source.name: source.digest for source in sources}
