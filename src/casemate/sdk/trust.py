"""Trust through the API: scans and feeds, the trust policy, signatures, publishers, and why something may run.

::

    from casemate.sdk import Client

    trust = Client().trust
    trust.import_feed("debian-tracker", open("debian.json", "rb"), date="2026-11-21")
    for upgrade in trust.scan("debian:12").upgrades:
        print(upgrade.package, upgrade.version, "->", upgrade.to or "no repair yet")
    print(trust.why("web").now.reason)

Every answer is a value of :mod:`casemate.spec.api`; every refusal an :class:`~casemate.sdk.errors.ApiError` whose
``problem_code`` is listed in the reference of errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import quote

import msgspec

from casemate.sdk.errors import ApiBroken, ApiError
from casemate.spec import api as schema
from casemate.spec.api import publishers as following
from casemate.spec.api import scan as scans
from casemate.spec.api import signatures
from casemate.spec.api import trust as rules

if TYPE_CHECKING:
    from casemate.sdk.client import Client
    from casemate.trust.keys.private import SigningKey

T = TypeVar("T")
#: What a scan can be answered as besides a value.
Document = Literal["sarif", "html", "cyclonedx", "spdx"]
#: So much of a file goes into one piece of an upload.
PIECE_BYTES = 1 << 20


class Trust:
    """Of one :class:`~casemate.sdk.client.Client`; reached as ``client.trust``."""

    def __init__(self, client: Client) -> None:
        self._client = client

    # what is in an image

    def scan(self, image: str) -> scans.ScanAnswer:
        """What is known to be wrong in *image* and what to upgrade; see ``whole`` and ``gaps`` before "clean"."""
        return self._get("/v1/images/scan", scans.ScanAnswer, {"ref": image})

    def scan_document(self, image: str, form: Document) -> bytes:
        """The same as SARIF 2.1.0, a self-contained page, or a bill of materials (CycloneDX 1.6, SPDX 2.3)."""
        return self._client.transport.ask("GET", "/v1/images/scan", _pairs({"ref": image, "format": form}))

    # feeds

    def feeds(self, *, verify: bool = False) -> scans.FeedList:
        """The feeds; with *verify* every page and count of their file is checked first."""
        return self._get("/v1/feeds", scans.FeedList, {"verify": verify})

    def import_feed(
        self, kind: scans.FeedKindText, content: Iterable[bytes], *, name: str = "", date: str = "", digest: str = ""
    ) -> scans.FeedRow:
        """Import *content* (a file opened in binary, or pieces) as the feed *name* (its kind), and wait for the end.

        *date* (``YYYY-MM-DD``): for kinds that do not say; *digest* (``sha256:...``): what it must hash to.
        """
        pairs = _pairs({"kind": kind, "name": name or kind, "date": date, "digest": digest})
        with self._client.transport.send("POST", "/v1/feeds/import", pairs, _pieces(content)) as response:
            begun = self._decode(response.read(), schema.Operation)
        self._ended(begun)
        return next(row for row in self.feeds().feeds if row.name == (name or kind))

    def update_feeds(
        self, *names: str, url: str = "", digest: str = "", keys: Sequence[str] = (), threshold: int = 1
    ) -> tuple[scans.FeedChange, ...]:
        """Bring feeds up to a mirror (the setting ``feed.mirror``), and wait for the end.

        *keys* (PEM): *threshold* of them must have signed its manifest; none: those of the setting ``feed.keys``.
        """
        request = scans.FeedUpdateRequest(url=url, digest=digest, names=names, keys=tuple(keys), threshold=threshold)
        ended = self._ended(self._post("/v1/feeds/update", request, schema.Operation))
        return self._value(ended.result.get("changes", []), tuple[scans.FeedChange, ...])

    def remove_feed(self, name: str) -> None:
        self._client.transport.ask("DELETE", "/v1/feeds", _pairs({"name": name}))

    # the policy

    def policies(self) -> tuple[rules.TrustPolicyRow, ...]:
        return self._get("/v1/trust/policies", rules.TrustPolicyList).policies

    def policy(self, name: str) -> rules.TrustPolicyDocument:
        return self._get("/v1/trust/policy", rules.TrustPolicyDocument, {"name": name})

    def apply_policy(self, text: str, *, origin: str = "the request") -> tuple[str, ...]:
        """Put the documents in *text* (YAML, JSON) in force, all or none; their names."""
        return self._post("/v1/trust/policy", rules.TrustPolicyText(text, origin), rules.TrustApplied).applied

    def remove_policy(self, name: str) -> None:
        self._client.transport.ask("DELETE", "/v1/trust/policy", _pairs({"name": name}))

    def test_policy(self, cases: str, *, policy: str = "") -> rules.TrustTestAnswer:
        """Run *cases* (``TrustPolicyTest``) against the documents *policy*, or against what is in force."""
        request = rules.TrustTestRequest(cases, policy)
        return self._post("/v1/trust/policy/test", request, rules.TrustTestAnswer)

    def dry_run(self, text: str) -> rules.TrustDryRun:
        """What the documents in *text* would change among the containers."""
        return self._post("/v1/trust/policy/dry-run", rules.TrustPolicyText(text), rules.TrustDryRun)

    # why, and what runs

    def why(self, name: str) -> rules.TrustWhy:
        """Why the container or image *name* may run, or may not, with each step."""
        return self._get("/v1/trust/why", rules.TrustWhy, {"name": name, "project": self._client.project})

    def judgements(self, *, follow: bool = False, since: str = "") -> Iterator[rules.TrustJudgement]:
        """What judging anew found of what is in use: one row where another answer came out than the one before.

        Of all projects. *follow*: go on as it happens; *since*: an instant (RFC 3339) or so long ago (``1h``).
        """
        pairs = [("follow", _text(follow)), ("filter", "event=judged")]
        if since:
            pairs.append(("since", since))
        for event, data in self._client.events_of("/v1/events", pairs):
            if event == "event":
                row = self._decode(data, schema.EventRow)
                about = {"container": row.subject, "name": row.name, "project": row.project, "at": row.at}
                yield self._value({**row.facts, **about}, rules.TrustJudgement)

    # signatures

    def verify(self, image: str, **fields: Any) -> signatures.VerifyAnswer:
        """Who signed *image*; *fields* are those of :class:`casemate.spec.api.signatures.VerifyRequest`.

        An image that nobody signed is an answer (``outcome``), not an error; an error is what could not be checked.
        """
        return self._post("/v1/trust/verify", signatures.VerifyRequest(image, **fields), signatures.VerifyAnswer)

    def resolve(self, image: str, **fields: Any) -> signatures.ResolveAnswer:
        """What the registry has under *image* now."""
        return self._post("/v1/trust/resolve", signatures.ResolveRequest(image, **fields), signatures.ResolveAnswer)

    def sign(
        self,
        image: str,
        key: SigningKey,
        *,
        layouts: tuple[Literal["simple", "bundle"], ...] = ("simple", "bundle"),
        plain_http: bool = False,
        auth: schema.RegistryAuth | None = None,
    ) -> signatures.AttachAnswer:
        """Sign what the registry has under *image* now, and put the signatures beside it. The key stays here."""
        from casemate.trust.signature.produce import sign_image  # noqa: PLC0415 - only who signs loads cryptography

        found = self.resolve(image, plain_http=plain_http, auth=auth)
        made = sign_image(key, found.repository, found.digest, layouts)
        blobs = tuple(msgspec.convert(blob, signatures.SignedBlob, from_attributes=True) for blob in made)
        request = signatures.AttachRequest(image, found.digest, blobs, plain_http, auth)
        return self._post("/v1/trust/attach", request, signatures.AttachAnswer)

    # publishers

    def publishers(self) -> tuple[following.PublisherRow, ...]:
        """The publishers that this host follows."""
        return self._get("/v1/trust/sources", following.PublisherList).publishers

    def add_publisher(self, name: str, location: str, root: str, repositories: Sequence[str]) -> following.PublisherRow:
        """Follow the publisher at *location*; *root* is the text of its ``root.json``, which came by another way."""
        request = following.PublisherRequest(name, location, root, tuple(repositories))
        return self._post("/v1/trust/sources", request, following.PublisherRow)

    def refresh_publisher(self, name: str) -> following.PublisherRow:
        return self._post(f"/v1/trust/sources/{quote(name, '')}/refresh", None, following.PublisherRow)

    def remove_publisher(self, name: str) -> None:
        self._client.transport.ask("DELETE", f"/v1/trust/sources/{quote(name, '')}")

    def tag(self, image: str) -> following.TagAnswer:
        """What the tag *image* means by its publisher."""
        return self._get("/v1/trust/tag", following.TagAnswer, {"ref": image})

    def _ended(self, begun: schema.Operation) -> schema.Operation:
        """*begun* at its end; raises the problem with which it failed."""
        ended = self._client.follow(begun)
        if ended.status != "done":
            problem = ended.problem or {"code": "operation.cancelled", "detail": f"{begun.kind} was {ended.status}"}
            status = problem.get("status")
            raise ApiError(problem, status if isinstance(status, int) else 500)
        return ended

    def _get(self, path: str, kind: type[T], query: dict[str, object] | None = None) -> T:
        return self._decode(self._client.transport.ask("GET", path, _pairs(query or {})), kind)

    def _post(self, path: str, body: object, kind: type[T]) -> T:
        data = None if body is None else msgspec.json.encode(body)
        return self._decode(self._client.transport.ask("POST", path, (), data), kind)

    def _decode(self, data: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(data, type=kind)
        except msgspec.MsgspecError as error:
            raise ApiBroken(f"an answer is no {kind}: {error}") from error

    def _value(self, found: object, kind: type[T]) -> T:
        try:
            return msgspec.convert(found, kind)
        except msgspec.MsgspecError as error:
            raise ApiBroken(f"an answer is no {kind}: {error}") from error


def _pairs(query: dict[str, object]) -> list[tuple[str, str]]:
    """What is empty is left out: the API has its own default."""
    return [(key, _text(value)) for key, value in query.items() if value != ""]


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _pieces(content: Iterable[bytes]) -> Iterator[bytes]:
    """*content* in pieces; a file is read in large ones, not by lines."""
    read = getattr(content, "read", None)
    if read is None:
        yield from content
        return
    while data := read(PIECE_BYTES):
        yield data
