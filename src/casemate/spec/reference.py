"""Image references: ``alpine`` -> ``docker.io/library/alpine:latest``.

The grammar is that of the OCI distribution specification (``<name>`` and ``<reference>``) with Docker's short
forms: no registry means ``docker.io``, no ``/`` there means ``library/``, neither tag nor digest means
``latest``. The first component is a registry when it holds ``.`` or ``:``, or is ``localhost``, or has an
upper-case letter (which no repository may have).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from casemate.spec.errors import InvalidArgument

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
#: What Docker and the OCI specification's implementations bound a repository's name at.
MAX_NAME_BYTES = 255
#: registry (255) + repository (255) + tag (128) + digest (71) + separators, rounded up.
MAX_REFERENCE_BYTES = 768

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]{0,61}[a-zA-Z0-9])"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]{{2,45}}\])(?::([0-9]{{1,5}}))?\Z")


class ReferenceInvalid(InvalidArgument):
    """A text is not an image reference."""

    code = "image.reference_invalid"
    title = "The image reference is not valid"
    remedy = "Write [REGISTRY[:PORT]/]NAME[:TAG][@sha256:DIGEST], the name in lower case; for example debian:12."


@dataclass(frozen=True, slots=True)
class Reference:
    """A whole reference: *registry* ``host[:port]``, *repository*, and *tag* or *digest* or both.

    When both are there the digest decides what is fetched, the tag is only a name.
    """

    registry: str
    repository: str
    tag: str | None
    digest: str | None

    def __str__(self) -> str:
        text = f"{self.registry}/{self.repository}"
        if self.tag is not None:
            text += f":{self.tag}"
        if self.digest is not None:
            text += f"@{self.digest}"
        return text

    @property
    def wanted(self) -> str:
        """What a registry is asked for: the digest if there is one, else the tag."""
        return self.digest or self.tag or DEFAULT_TAG

    @property
    def familiar(self) -> str:
        """The short form that people type, as Docker shows it."""
        text = str(self)
        for prefix in (f"{DEFAULT_REGISTRY}/library/", f"{DEFAULT_REGISTRY}/"):
            if text.startswith(prefix):
                return text[len(prefix) :]
        return text

    def with_digest(self, digest: str) -> Reference:
        """The same repository, by *digest* alone."""
        return replace(self, tag=None, digest=_digest(digest, str(self)))


def parse_reference(text: str) -> Reference:
    """*text* as a normalised :class:`Reference`; raises :class:`ReferenceInvalid`."""
    if not text or len(text.encode("utf-8", "surrogatepass")) > MAX_REFERENCE_BYTES:
        raise ReferenceInvalid(
            f"reference {text[:80]!r} has {len(text)} characters; 1 to {MAX_REFERENCE_BYTES} are allowed"
        )
    name, at, digest = text.partition("@")
    registry, path = _split_registry(name, text)
    repository, colon, tag = path.partition(":")
    if colon and not _TAG.match(tag):
        raise ReferenceInvalid(f"tag {tag[:140]!r} of {text[:80]!r} is not 1 to 128 of [A-Za-z0-9_.-]")
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        repository = f"library/{repository}"
    if not _REPOSITORY.match(repository) or len(registry) + 1 + len(repository) > MAX_NAME_BYTES:
        raise ReferenceInvalid(
            f"name {repository[:80]!r} of {text[:80]!r} is not lower-case words separated by . _ __ - or / "
            f"(at most {MAX_NAME_BYTES} bytes with the registry)"
        )
    if re.fullmatch(r"[0-9a-f]{64}", name):
        raise ReferenceInvalid(f"{name[:12]}... is an id, not a name; write NAME@sha256:{name[:12]}...")
    return Reference(
        registry=registry,
        repository=repository,
        tag=tag if colon else (None if at else DEFAULT_TAG),
        digest=_digest(digest, text) if at else None,
    )


def parse_prefix(text: str) -> str:
    """A prefix of repositories, whole: ``registry.example`` (all of it), ``registry.example/team``, ``team/app``.

    Raises :class:`ReferenceInvalid`, also for what names a tag or a digest.
    """
    plain = text.rstrip("/")
    if "/" not in plain and ("." in plain or ":" in plain or plain == "localhost"):
        return parse_reference(f"{plain}/x").registry
    reference = parse_reference(plain)
    if reference.digest is not None or ":" in plain.rpartition("/")[2]:
        raise ReferenceInvalid(f"{text[:80]!r} names an image; a prefix names repositories")
    return f"{reference.registry}/{reference.repository}"


def _split_registry(name: str, text: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    is_host = slash and ("." in first or ":" in first or first == "localhost" or first.lower() != first)
    if not is_host:
        return DEFAULT_REGISTRY, name
    matched = _HOST.match(first)
    if not matched or (matched[1] is not None and not 0 < int(matched[1]) <= 65_535):
        raise ReferenceInvalid(f"registry {first[:80]!r} of {text[:80]!r} is not a host name with an optional port")
    registry = first.lower()
    return (DEFAULT_REGISTRY if registry == "index.docker.io" else registry), rest


def _digest(digest: str, text: str) -> str:
    if not _DIGEST.match(digest):
        raise ReferenceInvalid(
            f"digest {digest[:90]!r} of {text[:80]!r} is not sha256: and 64 lower-case hexadecimal digits"
        )
    return digest
