"""What a publisher's metadata are made of: roles, keys, lifetimes, a change as values. TUF's classes are loaded lazily.

TUF specification 1.0.34: 3 (roles), 4 (documents).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from casemate.spec.errors import HostLacks
from casemate.trust.freshness.errors import RepositoryInvalid, RoleInvalid
from casemate.trust.signature.errors import KeyInvalid
from casemate.trust.signature.keys import load_public_key

if TYPE_CHECKING:
    from tuf.api.metadata import Metadata

TOP = ("root", "targets", "snapshot", "timestamp")
MAX_TEAMS = 200
MAX_TARGETS = 20_000
#: Deepest repository below a delegated prefix, in parts: patterns match whole parts, one for each depth.
MAX_DEPTH = 6
ROLE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,250}\Z")
STAGED = "staged/"


class Lifetimes(msgspec.Struct, frozen=True):
    """Days until metadata expire. Long where people sign by hand; the timestamp's is how long a freeze goes unseen."""

    root: int = 365
    targets: int = 90
    snapshot: int = 7
    timestamp: int = 1

    def of(self, role: str) -> timedelta:
        return timedelta(days=getattr(self, role) if role in TOP else self.targets)


class RoleKeys(msgspec.Struct, frozen=True):
    """Public keys (PEM) of a role, and how many of them must sign."""

    keys: tuple[str, ...]
    threshold: int = 1


class Change(msgspec.Struct, frozen=True):
    """*files*: what is to be written, in this order (None: removed). *waiting*: role to what it still lacks."""

    files: dict[str, bytes | None]
    published: tuple[str, ...]
    waiting: dict[str, str]


class RoleRow(msgspec.Struct, frozen=True):
    """A role as people ask for it. *prefixes*: what was delegated to it; *staged*: it waits for signatures."""

    name: str
    version: int
    expires: str
    keys: tuple[str, ...]
    threshold: int
    prefixes: tuple[str, ...] = ()
    targets: tuple[tuple[str, str], ...] = ()
    staged: bool = False


def tuf_key(pem: str) -> Any:
    """A public key as TUF has it."""
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - lazily
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415

    load_public_key(pem.encode())  # our bounds on kinds and sizes
    try:
        import securesystemslib.signer as found  # noqa: PLC0415
    except ImportError as error:
        raise HostLacks("the Python package tuf is not installed", remedy="pip install 'tuf>=7,<8'") from error
    try:
        public = load_pem_public_key(pem.encode())
        # What a token and a file both make: PKCS#1 v1.5.
        scheme = "rsa-pkcs1v15-sha256" if isinstance(public, RSAPublicKey) else None
        signers: Any = found
        return signers.SSlibKey.from_crypto(public, scheme=scheme)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyInvalid(f"TUF knows no key of this kind: {error}") from error


def delegated_keys(delegator: Metadata[Any], role: str) -> list[str]:
    """The key ids that *delegator* names for *role*; none where it does not know the role."""
    try:
        return list(delegator.signed.get_delegated_role(role).keyids)
    except ValueError:
        return []


def set_threshold(delegated: Any, threshold: int) -> None:
    if not 1 <= threshold <= len(delegated.keyids):
        raise RoleInvalid(f"{threshold} of {len(delegated.keyids)} keys can never sign, or is none")
    delegated.threshold = threshold


def patterns(prefixes: Sequence[str]) -> list[str]:
    """TUF's path patterns for whole repositories below *prefixes*, up to :data:`MAX_DEPTH` parts deep."""
    found: list[str] = []
    for prefix in prefixes:
        plain = prefix.rstrip("/")
        found += [f"{plain}:*", *(plain + "/*" * depth for depth in range(1, MAX_DEPTH + 1))]
    return found


def tuf_api() -> Any:
    """``tuf``'s classes; loaded when the first metadata are."""
    try:
        import tuf.api.metadata as api  # noqa: PLC0415 - lazily
    except ImportError as error:
        raise HostLacks("the Python package tuf is not installed", remedy="pip install 'tuf>=7,<8'") from error
    return api


def of_role(metadata: Metadata[Any], role: str, name: str) -> Metadata[Any]:
    """*metadata*, when they are of the kind that *role* has."""
    kind = role if role in TOP else "targets"
    delegations = getattr(metadata.signed, "delegations", None)
    if metadata.signed.type != kind or (delegations is not None and delegations.roles is None):
        raise RepositoryInvalid(f"{name} holds metadata of the kind {metadata.signed.type!r}, or hashed bins")
    return metadata


def parse_metadata(data: bytes, name: str) -> Metadata[Any]:
    from tuf.api.exceptions import RepositoryError  # noqa: PLC0415 - lazily
    from tuf.api.serialization import DeserializationError  # noqa: PLC0415

    try:
        found: Metadata[Any] = tuf_api().Metadata.from_bytes(data)
        return found
    except (DeserializationError, RepositoryError, ValueError) as error:
        raise RepositoryInvalid(f"{name}: {error}"[:300]) from error
