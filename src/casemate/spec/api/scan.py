"""What is in an image, as the scan answers it; and feeds, by which it is judged."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from casemate.spec.workload import Value

Severity = Literal["unknown", "none", "low", "medium", "high", "critical"]
FeedKindText = Literal[
    "osv", "debian-tracker", "debian-advisories", "alpine-secdb", "csaf-vex", "epss", "kev"
]  # fmt: skip


class ScanFinding(Value, frozen=True, omit_defaults=True):
    """One advisory that speaks of one package. *score*: CVSS base score, *epss*: probability, -1 where unknown.

    *ignored*: by whom and why, for a finding that an ignore of the trust policy covers.
    """

    id: str
    package: str
    version: str
    type: str
    path: str
    layer: int
    severity: Severity = "unknown"
    score: float = -1.0
    fixed: str = ""
    source: str = ""
    aliases: tuple[str, ...] = ()
    summary: str = ""
    epss: float = -1.0
    exploited: bool = False
    ignored: str = ""


class ScanUpgrade(Value, frozen=True, omit_defaults=True):
    """What to do about one package (all that was built from one source): go *to* this version, which repairs
    *repaired* of its findings; *open* have no repair yet. Findings that an ignore covers are not counted.
    """

    package: str
    version: str
    type: str
    layer: int
    path: str
    worst: Severity
    to: str = ""
    repaired: int = 0
    open: int = 0
    exploited: bool = False
    advisories: tuple[str, ...] = ()
    #: The installed packages, where the distribution built several from one source.
    installed: tuple[str, ...] = ()


class ScanLayer(Value, frozen=True):
    """A layer, from the lowest on: the step of the build that made it, and the image that it came with.

    *base*: the name of a stored image (or what the manifest's annotation names) whose layers this one belongs to.
    """

    diff_id: str
    created_by: str = ""
    base: str = ""


class ScanSecret(Value, frozen=True, omit_defaults=True):
    """What looks like a secret; *hidden*: a layer above removes the file, but the image still carries it."""

    path: str
    rule: str
    layer: int
    line: int = 0
    hidden: bool = False


class ScanSetuid(Value, frozen=True):
    """A file that runs as its owner or group; *mode* in octal."""

    path: str
    mode: str
    uid: int
    gid: int


class FeedRow(Value, frozen=True):
    """One imported feed. *date*: the day of its content; *age_days* -1: it is of the future."""

    name: str
    kind: FeedKindText
    date: str
    imported: str
    digest: str
    rows: int
    advisories: int
    doubtful: int
    ecosystems: tuple[str, ...]
    age_days: int = 0
    stale: bool = False


class ScanAnswer(Value, frozen=True):
    """``image scan``. *whole* is false where something could not be judged; *gaps* says what, one line each.

    *counts*: findings that no ignore covers, by severity; *findings* holds the worst 20,000 of all. *settled*: what a
    signed OpenVEX statement answers, by a signer whom the trust policy's rule for the image names.
    """

    image: str
    digest: str
    scanned_on: str
    whole: bool
    gaps: tuple[str, ...]
    counts: dict[str, int]
    distribution: str = ""
    end_of_life: str = ""
    past_end_of_life: bool = False
    packages: int = 0
    findings: tuple[ScanFinding, ...] = ()
    upgrades: tuple[ScanUpgrade, ...] = ()
    layers: tuple[ScanLayer, ...] = ()
    secrets: tuple[ScanSecret, ...] = ()
    setuid: tuple[ScanSetuid, ...] = ()
    feeds: tuple[FeedRow, ...] = ()
    settled: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class FeedList(Value, frozen=True):
    """Every feed. *path*: the file that holds them."""

    path: str
    feeds: tuple[FeedRow, ...]
    bytes: int = 0


class FeedUpdateRequest(Value, frozen=True):
    """Bring feeds up to what the mirror at *url* offers (empty: the setting ``feed.mirror``).

    *digest*: ``sha256:...`` that its manifest must have; *names*: only these (empty: all that it lists). *keys* (PEM):
    *threshold* of them have to have signed the manifest (empty: those of the setting ``feed.keys``).
    """

    url: Annotated[str, Meta(max_length=2048)] = ""
    digest: Annotated[str, Meta(pattern=r"\A(sha256:[0-9a-f]{64})?\Z")] = ""
    names: Annotated[tuple[Annotated[str, Meta(max_length=100)], ...], Meta(max_length=256)] = ()
    keys: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=16_384)], ...], Meta(max_length=16)] = ()
    threshold: Annotated[int, Meta(ge=1, le=16)] = 1


class FeedChange(msgspec.Struct, frozen=True):
    """What an update did to one feed: *outcome* ``unchanged`` or ``imported``."""

    name: str
    outcome: str
    date: str = ""
    rows: int = 0
