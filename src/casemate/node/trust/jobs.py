"""What is asked of the trust child and what it answers: frozen values and their JSON. Pure; no effects.

One job goes to the child's standard input, then lines come back: any number of :class:`Told`, then one
:class:`Answer` or one :class:`Failure`. A line is at most :data:`MAX_LINE_BYTES` long.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from casemate.spec.api.scan import ScanLayer
from casemate.spec.errors import CasemateError
from casemate.trust.feed.ignores import Ignore
from casemate.trust.feed.model import FeedKind
from casemate.trust.rules.model import Rule
from casemate.trust.signature.verify import Evidence

MAX_JOB_BYTES = 64 << 20
#: A bill of materials of 200,000 packages as SPDX.
MAX_LINE_BYTES = 256 << 20

#: Below casemated's state folder.
FEED_FILE = "trust/feed.sqlite"

ReportForm = Literal["json", "sarif", "html", "cyclonedx", "spdx"]


class TrustChildFailed(CasemateError):
    code = "trust.child_failed"
    status = 500
    title = "The process that scans and judges failed"
    remedy = "See the daemon's journal; `casemate system doctor` checks memory and disk."


class ScanJob(msgspec.Struct, frozen=True, tag="scan", kw_only=True):
    """Judge the image *digest*, whose layers are *layers* from the lowest on, by the feed; answer in *form*.

    *name*: as it was asked for; *created*: RFC 3339, for bills of materials; *today*: ``YYYY-MM-DD``.
    """

    state: str
    digest: str
    name: str
    layers: tuple[ScanLayer, ...]
    today: str
    created: str
    version: str
    form: ReportForm = "json"
    ignores: tuple[Ignore, ...] = ()
    #: The rule for the image and what its signers say of it: signed VEX settles findings, signed bills add packages.
    rule: Rule | None = None
    evidence: Evidence | None = None
    max_feed_age_days: int = 0


class ImportJob(msgspec.Struct, frozen=True, tag="import", kw_only=True):
    """Put the file *origin* into the feed as the source *name*."""

    state: str
    kind: FeedKind
    origin: str
    name: str
    today: str
    made: str = ""
    digest: str = ""


class UpdateJob(msgspec.Struct, frozen=True, tag="update", kw_only=True):
    """Fetch from the mirror at *url* what its manifest says is new, and import it.

    *keys* (PEM): so many of them as *threshold* have to have signed the manifest; none: it need not be signed.
    """

    state: str
    url: str
    today: str
    digest: str = ""
    names: tuple[str, ...] = ()
    insecure: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    threshold: int = 1


class RemoveJob(msgspec.Struct, frozen=True, tag="remove", kw_only=True):
    state: str
    name: str


class FeedsJob(msgspec.Struct, frozen=True, tag="feeds", kw_only=True):
    """List the feeds; *thorough* counts every row and has every page checked."""

    state: str
    today: str
    max_feed_age_days: int = 0
    thorough: bool = False


Job = ScanJob | ImportJob | UpdateJob | RemoveJob | FeedsJob


class Told(msgspec.Struct, frozen=True, tag="told"):
    """Progress of *item*."""

    item: str
    stage: str
    current_bytes: int = 0
    total_bytes: int = 0


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """The job is done. *value*: JSON of the job's own kind; *text*: a report as it is to be sent."""

    value: msgspec.Raw = msgspec.Raw(b"null")
    text: str = ""


class Failure(msgspec.Struct, frozen=True, tag="failure"):
    """The job failed; *problem* is what ``CasemateError.to_problem()`` gives."""

    problem: dict[str, Any]


Message = Told | Answer | Failure

_JOBS: msgspec.json.Decoder[Job] = msgspec.json.Decoder(Job)
_MESSAGES: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


def encode(value: Job | Message) -> bytes:
    """*value* as one line of JSON, without the newline."""
    return msgspec.json.encode(value)


def answer(value: object) -> Answer:
    return Answer(msgspec.Raw(msgspec.json.encode(value)))


def decode_job(data: bytes) -> Job:
    """The job in *data*; wrong types are refused."""
    if len(data) > MAX_JOB_BYTES:
        raise TrustChildFailed(f"a job of {len(data)} bytes; {MAX_JOB_BYTES} are allowed")
    try:
        return _JOBS.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise TrustChildFailed(f"the job cannot be read: {error}") from error


def decode_message(line: bytes) -> Message:
    """One line of the child; raises :class:`TrustChildFailed` for anything else."""
    try:
        return _MESSAGES.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise TrustChildFailed(f"the trust child wrote a line that is no message: {error}") from error
