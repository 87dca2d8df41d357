"""The child's part in freshness: files of a publisher, fetched one by one as verification asks for them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from casemate.image.errors import RegistryError, RegistryUnavailable
from casemate.image.http import Client, parse_url
from casemate.node.freshness_jobs import Forgotten, Fresh, RefreshJob, Tag, TagJob
from casemate.trust.freshness.resolve import FreshnessInvalid, Standing, refresh

#: The largest role (targets) may have 5 MB; one byte more shows that it is larger.
MAX_FILE_BYTES = 5_000_000
#: Roots, and one file for each role.
MAX_FETCHES = 600


class Shown(Mapping[str, bytes]):
    """A publisher's files by name; each is fetched when it is asked for, once."""

    def __init__(self, client: Client, location: str) -> None:
        self._client = client
        self._location = location.rstrip("/")
        self._known: dict[str, bytes | None] = {}

    def __getitem__(self, name: str) -> bytes:
        if name not in self._known:
            if len(self._known) >= MAX_FETCHES:
                raise FreshnessInvalid(f"{self._location}: more than {MAX_FETCHES} files would have to be fetched")
            over = self._location.startswith(("http://", "https://"))
            self._known[name] = self._get(name) if over else self._read(name)
        data = self._known[name]
        if data is None:
            raise KeyError(name)
        return data

    def __iter__(self) -> Iterator[str]:
        return iter(())  # nobody lists a publisher

    def __len__(self) -> int:
        return 0

    def _get(self, name: str) -> bytes | None:
        url = parse_url(f"{self._location}/{name}")
        with self._client.retrying(lambda: self._client.send("GET", url, {})) as answer:
            if answer.status in (403, 404):  # some stores answer 403 for what is not there
                return None
            if answer.status != 200:
                raise RegistryError(f"{self._location}/{name}: status {answer.status}")
            return answer.read(MAX_FILE_BYTES)

    def _read(self, name: str) -> bytes | None:
        try:
            descriptor = os.open(f"{self._location}/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RegistryUnavailable(
                f"{self._location}/{name}: {error.strerror}", remedy="The user casemate has to be able to read it."
            ) from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise FreshnessInvalid(f"{self._location}/{name} is no file")
            with os.fdopen(descriptor, "rb", closefd=False) as stream:
                return stream.read(MAX_FILE_BYTES + 1)
        finally:
            os.close(descriptor)


def refreshed(client: Client, job: RefreshJob) -> Fresh:
    return Fresh(refresh(job.trusted, Shown(client, job.location), datetime.fromtimestamp(job.now_s, UTC)))


#: Verified metadata by key, and how many bytes they were.
Standings = dict[str, tuple[Standing, int]]
#: As objects they take some ten times what they had as JSON.
MAX_STANDING_BYTES = 16 << 20
MAX_STANDINGS = 16


def tag(job: TagJob, standings: Standings) -> Tag | Forgotten:
    """By what stands under the job's key, or by the files that come with it; those are remembered, within bounds."""
    now = datetime.fromtimestamp(job.now_s, UTC)
    if not job.files:
        known = standings.pop(job.key, None)
        if known is None:
            return Forgotten()
        standings[job.key] = known
        return _answer(known[0], job, now)
    if job.trusted is None:
        raise FreshnessInvalid(f"{job.target}: no root to verify with")
    standing = Standing(job.trusted, job.files, job.target, now)
    size = sum(map(len, job.files.values()))
    if job.key and size <= MAX_STANDING_BYTES:
        standings[job.key] = standing, size
        while len(standings) > MAX_STANDINGS or sum(row[1] for row in standings.values()) > MAX_STANDING_BYTES:
            del standings[next(iter(standings))]
    return _answer(standing, job, now)


def _answer(standing: Standing, job: TagJob, now: datetime) -> Tag:
    found = standing.resolve(job.target, now)
    return Tag(found.digest, found.role, found.expires)
