"""What referred to an image when it was fetched, kept beside it in the store: later checks need no network. Light.

One file for each subject (a manifest or an index) in each repository, ``evidence/HEX-REPOSITORY.json``: what one
repository says of a digest is not taken for what another says. It goes with its subject (garbage collection).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from casemate.image.store import Store
from casemate.spec.errors import Corrupt
from casemate.spec.ids import digest_hex

#: cosign's own bound on signatures is 50; who wants to keep an image from being verified must not be able to make us
#: fetch without end, so what bears more is refused as a whole.
MAX_ARTIFACTS = 50
#: An SBOM of a large image, signed, has some 5 MiB; all together stay below the memory of a child.
MAX_ARTIFACT_BYTES = 8 << 20
MAX_TOTAL_BYTES = 32 << 20
#: Base64, annotations and the frame around what may be fetched.
MAX_FILE_BYTES = 2 * MAX_TOTAL_BYTES


class Artifact(msgspec.Struct, frozen=True, omit_defaults=True):
    """One blob. *kind*: its media type; *annotations*: those of its descriptor; *manifest*: the one that names it."""

    kind: str
    data: bytes
    manifest: str
    annotations: dict[str, str] = {}


class Wanted(msgspec.Struct, frozen=True):
    """What is looked for: *suffixes* of tags (``sig``), *types* of referrers, and *kinds* of blobs in both."""

    suffixes: tuple[str, ...]
    types: tuple[str, ...]
    kinds: tuple[str, ...]


class Referring(msgspec.Struct, frozen=True):
    """*subject*: a digest; *repository*: with its registry; *fetched_at*: seconds since the epoch."""

    subject: str
    repository: str
    fetched_at: float
    artifacts: tuple[Artifact, ...]


_DECODER = msgspec.json.Decoder(Referring)


def path_of(store: Store, subject: str, repository: str) -> Path:
    name = hashlib.sha256(repository.encode()).hexdigest()[:16]
    return store.root / "evidence" / f"{digest_hex(subject)}-{name}.json"


def keep(store: Store, referring: Referring) -> None:
    """Store *referring* in place of what was kept before, whole or not at all."""
    store.write_whole(path_of(store, referring.subject, referring.repository), msgspec.json.encode(referring))


def kept(store: Store, subject: str, repository: str) -> Referring | None:
    """What was kept, or None when nothing was ever fetched. Raises :class:`Corrupt` for a file that is not that."""
    path = path_of(store, subject, repository)
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    try:
        found = _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"the kept signatures of {subject} cannot be read: {error}", digest=subject) from error
    if found.subject != subject or found.repository != repository:
        raise Corrupt(f"the kept signatures of {subject} are those of {found.subject[:80]!r}", digest=subject)
    return found
