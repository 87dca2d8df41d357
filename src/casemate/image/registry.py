"""One repository at a registry: manifests, blobs, uploads, with authentication. Worker only.

Source: OCI distribution-spec v1.1 ("Pull", "Push"), Docker Registry HTTP API V2.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from casemate.image import media
from casemate.image.challenge import basic, check_realm, parse_challenge, token_request
from casemate.image.errors import (
    DigestMismatch,
    ImageNotFound,
    ManifestTooLarge,
    RegistryBusy,
    RegistryDenied,
    RegistryError,
    RegistryUnauthorized,
    RegistryUnavailable,
)
from casemate.image.http import Answer, Client, Url, parse_url
from casemate.image.jobs import Endpoints, Login
from casemate.spec.reference import DEFAULT_REGISTRY, Reference

MAX_ERROR_BYTES = 16 << 10
MAX_TOKEN_BYTES = 256 << 10
DOCKER_HOST = "registry-1.docker.io"

T = TypeVar("T")


class Repository:
    """*reference*'s repository at one *host* (the registry or a mirror of it). *actions*: ``pull`` or ``pull,push``."""

    def __init__(self, client: Client, host: str, repository: str, actions: str, endpoints: Endpoints) -> None:
        self.host = host
        self.repository = repository
        self.plain = host in endpoints.insecure
        self._client = client
        self._login: Login | None = endpoints.logins.get(host)
        real_host = DOCKER_HOST if host == DEFAULT_REGISTRY else host
        self._base = f"{'http' if self.plain else 'https'}://{real_host}"
        self._actions = actions
        self._scope = f"repository:{repository}:{actions}"
        self._authorization = ""
        self._guard = threading.Lock()

    def url(self, path: str) -> Url:
        return parse_url(f"{self._base}/v2/{self.repository}/{path}")

    def call(
        self,
        method: str,
        url: Url,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
        *,
        accept: tuple[int, ...] = (200,),
        stream: Callable[[], Iterator[bytes]] | None = None,
    ) -> Answer:
        """One request with retries and authentication; an answer whose status is in *accept*, or an error."""
        asked = False
        while True:
            answer = self._client.retrying(lambda: self._send(method, url, headers, stream() if stream else body))
            if answer.status in accept:
                return answer
            if answer.status == 401 and not asked and self._same_host(url):
                asked = True
                with answer:
                    challenge = answer.header("WWW-Authenticate")
                    refusal = self._error(answer, method)
                if self._authenticate(challenge):
                    continue
                raise refusal
            with answer:
                raise self._error(answer, method)

    def manifest(self, wanted: str, max_bytes: int) -> tuple[bytes, str, str]:
        """The manifest or index *wanted* (tag or digest): its bytes, media type and verified digest."""
        with self.call("GET", self.url(f"manifests/{wanted}"), {"Accept": media.ACCEPT}) as answer:
            length = answer.length
            if length is not None and length > max_bytes:
                raise ManifestTooLarge(
                    f"manifest {wanted} of {self} has {length} bytes; image.max_manifest_bytes allows {max_bytes}"
                )
            data = answer.read(max_bytes)
            if length is not None and len(data) < min(length, max_bytes):
                raise RegistryUnavailable(f"manifest {wanted} of {self} ends after {len(data)} of {length} bytes")
            if len(data) > max_bytes:
                raise ManifestTooLarge(
                    f"manifest {wanted} of {self} has more than {max_bytes} bytes (image.max_manifest_bytes)"
                )
            stated, kind = answer.header("Docker-Content-Digest"), answer.header("Content-Type")
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if wanted.startswith("sha256:") and digest != wanted:
            raise DigestMismatch(f"manifest {wanted} of {self} hashes to {digest}", wanted=wanted, found=digest)
        if stated.startswith("sha256:") and digest != stated:
            raise DigestMismatch(f"manifest {wanted} of {self} hashes to {digest}, its header says {stated[:80]}")
        return data, kind, digest

    def blob(self, digest: str, offset: int = 0) -> Answer:
        """The blob from *offset* on; the caller reads, counts and hashes. 206 when the offset was taken, else 200."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        return self.call("GET", self.url(f"blobs/{digest}"), headers, accept=(200, 206) if offset else (200,))

    def small_blob(self, digest: str, size: int, max_bytes: int) -> bytes:
        """A configuration: whole, bounded and verified."""
        if size > max_bytes:
            raise ManifestTooLarge(
                f"blob {digest} of {self} has {size} bytes; image.max_manifest_bytes allows {max_bytes}"
            )
        with self.blob(digest) as answer:
            data = answer.read(size)
        found = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if found != digest:
            raise DigestMismatch(f"blob {digest} of {self} hashes to {found}", wanted=digest, found=found)
        return data

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}"

    def _send(
        self, method: str, url: Url, headers: dict[str, str] | None, body: bytes | Iterator[bytes] | None
    ) -> Answer:
        sent = dict(headers or {})
        if self._authorization and self._same_host(url):
            sent["Authorization"] = self._authorization
        return self._client.send(method, url, sent, body)

    def _same_host(self, url: Url) -> bool:
        return url.origin == parse_url(self._base).origin

    def _authenticate(self, header: str) -> bool:
        """Answer the challenge; False when there is nothing that we could say."""
        challenge = parse_challenge(header)
        if challenge is None:
            return False
        with self._guard:
            if challenge.scheme == "basic":
                if self._login is None or not self._login.username:
                    return False
                self._authorization = basic(self._login)
                return True
            check_realm(challenge.realm, parse_url(self._base).host, registry_is_plain=self.plain)
            method, text, headers, body = token_request(challenge, self._scope, self._login)
            url = parse_url(text)
            with self._client.retrying(lambda: self._client.send(method, url, headers, body)) as answer:
                if answer.status != 200:
                    raise self._error(answer, "asking for a token")
                data = answer.read(MAX_TOKEN_BYTES)
            self._authorization = f"Bearer {_token(data, url)}"
            return True

    def _error(self, answer: Answer, doing: str) -> RegistryError | ImageNotFound:
        words = _error_words(answer.read(MAX_ERROR_BYTES))
        detail = f"{self}: {doing} {answer.url.target[:200]}: status {answer.status}" + (f": {words}" if words else "")
        match answer.status:
            case 401:
                return RegistryUnauthorized(detail, registry=self.host)
            case 403:
                return RegistryDenied(detail, registry=self.host)
            case 404:
                return ImageNotFound(f"{detail}: the registry does not have it", registry=self.host)
            case 429:
                return RegistryBusy(detail, registry=self.host)
            case status if status >= 500:
                return RegistryUnavailable(detail, registry=self.host)
            case _:
                return RegistryError(detail, registry=self.host)


class Repositories:
    """The mirrors of a registry and the registry itself, asked in this order."""

    def __init__(self, client: Client, reference: Reference, endpoints: Endpoints) -> None:
        hosts = [
            right.strip()
            for left, _, right in (pair.partition("=") for pair in endpoints.mirrors)
            if left.strip() == reference.registry and right.strip()
        ]
        self.places = [
            Repository(client, host, reference.repository, "pull", endpoints) for host in (*hosts, reference.registry)
        ]

    def first(self, ask: Callable[[Repository], T]) -> T:
        """What the first place answers that can; the registry's own error when none can."""
        for place in self.places[:-1]:
            try:
                return ask(place)
            except (RegistryError, ImageNotFound):
                continue
        return ask(self.places[-1])


def _token(data: bytes, url: Url) -> str:
    try:
        document = json.loads(data)
        token = document.get("token") or document.get("access_token")
    except (ValueError, AttributeError, RecursionError) as error:
        raise RegistryError(f"the token server {url.host} answers something that is no token") from error
    if not isinstance(token, str) or not token.isascii() or not token.isprintable():
        raise RegistryError(f"the token server {url.host} answers something that is no token")
    return token


def _error_words(data: bytes) -> str:
    """The registry's own message, bounded and printable."""
    try:
        first = json.loads(data)["errors"][0]
        text = f"{first.get('code', '')}: {first.get('message', '')}"
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""
    return "".join(character if character.isprintable() else "?" for character in text)[:300]
