"""What casemated asks of the child that fetches and checks signatures, and what it answers. Pure.

A message is four bytes length (big endian) and JSON; to a job comes one answer or one failure.
"""

from __future__ import annotations

import msgspec

from casemate.image.jobs import Endpoints, Failure
from casemate.image.referring import Wanted
from casemate.node.freshness_jobs import Forgotten, Fresh, RefreshJob, Tag, TagJob
from casemate.trust.signature.cosign import BUNDLE_TYPES, DSSE_TYPE, SIMPLE_SIGNING
from casemate.trust.signature.notation import ARTIFACT_TYPE, ENVELOPE_TYPE
from casemate.trust.signature.verify import Evidence, Signer

#: Everything that may vouch for an image: cosign's two layouts, attestations, Notation.
WANTED = Wanted(
    ("sig", "att"), (*BUNDLE_TYPES, ARTIFACT_TYPE), (SIMPLE_SIGNING, DSSE_TYPE, *BUNDLE_TYPES, ENVELOPE_TYPE)
)

#: What most images bear, for a first look: two requests in the place of seven.
FIRST = Wanted(("sig",), (), (SIMPLE_SIGNING,))


class CheckJob(msgspec.Struct, frozen=True, tag="check", kw_only=True):
    """Check what vouches for an image.

    *subjects*: the image's manifest and, where it came out of one, its index; empty: *reference* is resolved at its
    registry. *endpoints* None: nothing is fetched, what the store kept is checked. *now_s*: the clock.
    *predicates*: types of attestations of which what they say is answered, too.
    """

    state: str
    reference: str
    subjects: tuple[str, ...] = ()
    endpoints: Endpoints | None = None
    max_manifest_bytes: int = 4 << 20
    signers: tuple[Signer, ...] = ()
    now_s: float
    predicates: tuple[str, ...] = ()
    #: Keep what was fetched beside the image.
    keep: bool = False
    #: So many of these signers are all that is asked for: where the first look at the registry finds them (and the
    #: image is not here, where everything is to be kept), nothing more is fetched. 0: everything is.
    enough: int = 0
    counting: tuple[str, ...] = ()


class ResolveJob(msgspec.Struct, frozen=True, tag="resolve", kw_only=True):
    """Ask the registry what *reference* leads to."""

    reference: str
    endpoints: Endpoints
    max_manifest_bytes: int = 4 << 20


class PushedBlob(msgspec.Struct, frozen=True, kw_only=True):
    """One signature to be put at the registry (see :class:`casemate.image.attach.Attachment`)."""

    kind: str
    data: bytes
    annotations: dict[str, str] = {}
    suffix: str = ""
    type: str = ""
    on_manifest: dict[str, str] = {}


class AttachJob(msgspec.Struct, frozen=True, tag="attach", kw_only=True):
    """Put *blobs* beside the image *digest* of *reference*'s repository; with *keep* also into the store."""

    state: str
    reference: str
    digest: str
    endpoints: Endpoints
    blobs: tuple[PushedBlob, ...]
    max_manifest_bytes: int = 4 << 20
    now_s: float
    keep: bool = False


EvidenceJob = CheckJob | ResolveJob | AttachJob | RefreshJob | TagJob


class Checked(msgspec.Struct, frozen=True, tag="checked"):
    """*digest*: of what was checked. *source*: ``registry`` or ``stored``; *fetched_at*: 0 where nothing ever was."""

    digest: str
    evidence: Evidence
    source: str
    fetched_at: float


class Found(msgspec.Struct, frozen=True, tag="found"):
    digest: str
    media_type: str
    size_bytes: int


class Attached(msgspec.Struct, frozen=True, tag="attached"):
    """The digest of the manifest that names each blob."""

    manifests: tuple[str, ...]


Good = Checked | Found | Attached | Fresh | Tag | Forgotten
Answer = Checked | Found | Attached | Fresh | Tag | Forgotten | Failure

JOBS: msgspec.json.Decoder[EvidenceJob] = msgspec.json.Decoder(EvidenceJob)
ANSWERS: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)
