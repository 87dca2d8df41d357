"""Publishers of metadata: fetched, verified and asked by the child that checks signatures. Pure values."""

from __future__ import annotations

import msgspec

from casemate.trust.freshness.resolve import Refreshed, Trusted


class RefreshJob(msgspec.Struct, frozen=True, tag="refresh", kw_only=True):
    """Fetch what the publisher at *location* (a URL or an absolute folder) shows now, and verify it."""

    location: str
    trusted: Trusted
    now_s: float


class TagJob(msgspec.Struct, frozen=True, tag="tag", kw_only=True):
    """What *target* (``repository:tag``) means by the kept *files*; no network.

    *key*: what the files are known by (their digest). Without files, the child answers by what it verified under this
    key before, or :class:`Forgotten`. Empty: nothing is remembered.
    """

    target: str
    now_s: float
    trusted: Trusted | None = None
    files: dict[str, bytes] = {}
    key: str = ""


class Fresh(msgspec.Struct, frozen=True, tag="fresh"):
    refreshed: Refreshed


class Tag(msgspec.Struct, frozen=True, tag="tag_is"):
    """*role*: who says so; *expires*: the end of the timestamp that it stands under."""

    digest: str
    role: str
    expires: str


class Forgotten(msgspec.Struct, frozen=True, tag="forgotten"):
    """The child knows no files of this key (any more): they have to come with the question."""
