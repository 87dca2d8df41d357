"""Images: transfers, builds, names, what is stored."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from casemate.spec.api.fields import Labels, Reference
from casemate.spec.workload import Text, Value


class RegistryAuth(Value, frozen=True):
    """Credentials for one registry, for one operation; never stored, never logged."""

    registry: str
    username: str = ""
    password: str = ""
    identity_token: str = ""


class PullRequest(Value, frozen=True):
    reference: Reference
    platform: Annotated[str, Meta(max_length=64)] | None = None
    auth: RegistryAuth | None = None
    plain_http: bool = False
    quiet: bool = False


class PushRequest(Value, frozen=True):
    reference: Reference
    #: Push the image that *source* names under *reference*; None: the same.
    source: Reference | None = None
    auth: RegistryAuth | None = None
    plain_http: bool = False


class BuildDebianRequest(Value, frozen=True):
    suite: Annotated[str, Meta(pattern=r"\A[a-z][a-z0-9.-]{1,40}\Z")]
    tag: Reference
    packages: Annotated[
        tuple[Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9+.:=~-]{0,200}\Z")], ...], Meta(max_length=500)
    ] = ()
    variant: Literal["extract", "custom", "essential", "apt", "minbase"] = "essential"
    mirror: Annotated[str, Meta(max_length=512)] | None = None
    command: tuple[Text, ...] | None = None
    env: tuple[Text, ...] = ()
    labels: Labels = {}


class TagRequest(Value, frozen=True):
    source: Reference
    target: Reference


class ImageSummary(Value, frozen=True):
    """A row of ``image ls``: *id* is the digest of the config, as the field has it."""

    id: str
    digest: str
    names: tuple[str, ...]
    platform: str
    created_at: str
    size_bytes: int
    shared_bytes: int = 0
    containers: int = 0
    labels: dict[str, str] = {}


class ImageList(Value, frozen=True):
    images: tuple[ImageSummary, ...]


class ImageDetail(Value, frozen=True):
    summary: ImageSummary
    config: dict[str, object]
    layers: tuple[dict[str, object], ...]
    manifest: dict[str, object]


class HistoryRow(Value, frozen=True):
    created_at: str
    created_by: str
    size_bytes: int
    comment: str = ""
    empty: bool = False


class HistoryAnswer(Value, frozen=True):
    history: tuple[HistoryRow, ...]


class Removed(Value, frozen=True):
    """What a removal or a prune took away."""

    removed: tuple[str, ...]
    untagged: tuple[str, ...] = ()
    freed_bytes: int = 0
