"""Publishers of signed metadata that this host follows: which digest a tag has."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from casemate.spec.workload import Value

PublisherName = Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9_.-]{0,62}\Z")]
Prefix = Annotated[str, Meta(min_length=1, max_length=255)]


class PublisherRequest(Value, frozen=True):
    """Follow the publisher at *location* (http(s) URL, or a folder that the daemon can read) for *repositories*.

    *root*: its ``root.json``, which came by another way than the rest.
    """

    name: PublisherName
    location: Annotated[str, Meta(min_length=1, max_length=2048)]
    root: Annotated[str, Meta(min_length=2, max_length=512_000)]
    repositories: Annotated[tuple[Prefix, ...], Meta(min_length=1, max_length=64)]


class PublisherRow(Value, frozen=True):
    """*expires*: until when what was fetched last may be believed; *error*: why the last refresh failed, if it did."""

    name: str
    location: str
    repositories: tuple[str, ...]
    refreshed_at: str
    expires: str
    versions: dict[str, int] = {}
    error: str = ""


class PublisherList(Value, frozen=True):
    publishers: tuple[PublisherRow, ...]


class TagAnswer(Value, frozen=True):
    """What a tag means. *publisher* empty: none is followed for it."""

    reference: str
    publisher: str
    digest: str = ""
    role: str = ""
    expires: str = ""
