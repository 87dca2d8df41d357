"""Names, ids and digests, each with the one place that says what is allowed."""

from __future__ import annotations

import re
from typing import NewType

from casemate.spec.errors import InvalidArgument

ContainerId = NewType("ContainerId", str)
PodId = NewType("PodId", str)
ExecId = NewType("ExecId", str)
VolumeId = NewType("VolumeId", str)
Digest = NewType("Digest", str)

#: Containers, pods and execs: 64 hexadecimal digits, shown as the first 12, as Docker and Podman do.
ID_LENGTH = 64
SHORT_ID_LENGTH = 12
DEFAULT_PROJECT = "default"

_ID = re.compile(r"[0-9a-f]{64}\Z")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}\Z")
_PROJECT = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_HOSTNAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*\Z")


def id_from_bytes(random: bytes) -> str:
    """A 64-digit id from 32 random bytes; the caller brings the randomness."""
    if len(random) != ID_LENGTH // 2:
        raise InvalidArgument(f"an id takes {ID_LENGTH // 2} random bytes, got {len(random)}")
    text = random.hex()
    # An id of decimal digits alone could be taken for a number (Docker skips those too).
    return text if not text[:SHORT_ID_LENGTH].isdigit() else "a" + text[1:]


def check_id(value: str) -> str:
    """*value*, when it is a whole id; raises :class:`InvalidArgument` otherwise."""
    if not _ID.match(value):
        raise InvalidArgument(f"id {value[:80]!r} is not 64 lower-case hexadecimal digits")
    return value


def check_name(value: str, what: str = "name") -> str:
    """*value*, when it is a name of a container, pod or volume."""
    if not _NAME.match(value):
        raise InvalidArgument(
            f"{what} {value[:140]!r} is not allowed: 1 to 128 of [a-zA-Z0-9_.-], the first a letter or digit"
        )
    return value


def check_project(value: str) -> str:
    """*value*, when it is a project's name (an RFC 1123 label)."""
    if not _PROJECT.match(value):
        raise InvalidArgument(f"project {value[:80]!r} is not a lower-case RFC 1123 label")
    return value


def check_hostname(value: str) -> str:
    """*value*, when it is a host name that the kernel takes (RFC 1123, at most 64 bytes)."""
    if len(value) > 64 or not _HOSTNAME.match(value):
        raise InvalidArgument(f"host name {value[:80]!r} is not an RFC 1123 name of at most 64 bytes")
    return value


def check_digest(value: str) -> Digest:
    """*value* as a digest: ``sha256:`` and 64 lower-case hexadecimal digits, nothing else."""
    if not _DIGEST.match(value):
        raise InvalidArgument(f"digest {value[:90]!r} is not sha256: and 64 lower-case hexadecimal digits")
    return Digest(value)


def digest_hex(digest: str) -> str:
    """The 64 hexadecimal digits of *digest*, checked."""
    return check_digest(digest)[7:]
