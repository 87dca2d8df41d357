"""The numbered plan (see the package's docstring): documents and a policy's signers in, verified signers out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec

from casemate.spec.ids import check_digest
from casemate.trust.signature import cosign, notation
from casemate.trust.signature.errors import (
    SignatureInvalid,
    SignatureLimit,
    SignatureMissing,
    SignatureNoMatch,
    ThresholdNotMet,
)
from casemate.trust.signature.keyless import KeylessSigner, check_names, verify_keyless
from casemate.trust.signature.keys import PublicKey, load_public_key
from casemate.trust.signature.statement import Statement, parse_envelope, parse_statement

#: cosign's own bound is 50; an image that bears more is a denial of service.
MAX_DOCUMENTS = 50
MAX_DOCUMENT_BYTES = 8 << 20
MAX_TOTAL_BYTES = 32 << 20
MAX_SIGNERS = 64

#: ``dsse``: a bare envelope, as cosign's older layout keeps attestations (``sha256-HEX.att``).
DocumentKind = Literal["cosign-simple", "cosign-bundle", "notation-jws", "dsse"]


class Document(msgspec.Struct, frozen=True):
    """One signature as the registry gave it. *signature*: for ``cosign-simple``, the annotation beside the payload."""

    kind: DocumentKind
    data: bytes
    signature: str = ""


class KeySigner(msgspec.Struct, frozen=True, tag="key", forbid_unknown_fields=True):
    """Who signs with a key pair. *key*: PEM. *repositories*: where they may (prefixes); cosign v3 signs no name."""

    name: str
    key: str
    repositories: tuple[str, ...] = ()


class CertificateSigner(msgspec.Struct, frozen=True, tag="certificate", forbid_unknown_fields=True):
    """Who signs with a certificate under *roots* (PEM). *subject*: the leaf's RFC 4514 name; empty admits any."""

    name: str
    roots: str
    subject: str = ""
    level: notation.Level = "strict"
    repositories: tuple[str, ...] = ()


Signer = KeySigner | CertificateSigner | KeylessSigner


class Verified(msgspec.Struct, frozen=True):
    """One signer's proven word for the digest."""

    signer: str
    kind: DocumentKind
    detail: str = ""


class Evidence(msgspec.Struct, frozen=True):
    """The outcome of the plan. *refused*: why a document did not count, one line each; *attestations*: by signer."""

    digest: str
    verified: tuple[Verified, ...] = ()
    refused: tuple[str, ...] = ()
    documents: int = 0
    attestations: tuple[tuple[str, Statement], ...] = ()

    @property
    def signers(self) -> frozenset[str]:
        """Step 9: each once, however often they signed."""
        return frozenset(row.signer for row in self.verified)


def allowed_in(signer: Signer, repository: str) -> bool:
    """Whether *signer* may vouch for *repository*; prefixes end at a ``/``."""
    return not signer.repositories or any(
        repository == prefix.rstrip("/") or repository.startswith(prefix.rstrip("/") + "/")
        for prefix in signer.repositories
    )


def verify(
    digest: str, repository: str, documents: Sequence[Document], signers: Sequence[Signer], now: datetime
) -> Evidence:
    """All that *documents* prove of *digest* by *signers*; what is wrong with a document is noted, not raised.

    Raises :class:`SignatureLimit` (step 2) and :class:`KeyInvalid` for a policy's key.
    """
    check_digest(digest)  # 1
    _measure(documents, signers)  # 2
    tests = [(signer, _tester(signer, now)) for signer in signers if allowed_in(signer, repository)]
    verified: dict[Verified, None] = {}
    attestations: list[tuple[str, Statement]] = []
    refused: list[str] = []
    for number, document in enumerate(documents):
        found = False
        for signer, test in tests:
            try:
                claim = test(document, digest, repository)  # 3 to 8
            except SignatureInvalid as error:
                refused.append(f"signature {number} ({document.kind}), {signer.name}: {error.detail}"[:400])
                continue
            if claim is None:
                continue
            found = True
            if isinstance(claim, Statement):
                attestations.append((signer.name, claim))
            else:
                verified[Verified(signer.name, document.kind, claim)] = None
        if not found:
            refused.append(
                f"signature {number} ({document.kind}) is by none of the {len(tests)} signers for {repository}"[:400]
            )
    return Evidence(digest, tuple(verified), tuple(refused), len(documents), tuple(attestations))


def require(evidence: Evidence, wanted: Sequence[str], threshold: int) -> Evidence:
    """*evidence*, when at least *threshold* of the signers *wanted* have signed; each lack has an error of its own."""
    have = evidence.signers & set(wanted)
    if len(have) >= threshold:
        return evidence
    if not evidence.documents:
        raise SignatureMissing(f"{evidence.digest} bears no signature; {threshold} of {', '.join(wanted)} are wanted")
    if not have:
        raise SignatureNoMatch(
            f"{evidence.digest} bears {evidence.documents} signatures, none by {', '.join(wanted)}: "
            + "; ".join(evidence.refused)[:1000]
        )
    missing = sorted(set(wanted) - have)
    raise ThresholdNotMet(
        f"{evidence.digest} is signed by {', '.join(sorted(have))}; {threshold} of {len(wanted)} are wanted, "
        f"missing {', '.join(missing)}"
    )


def _measure(documents: Sequence[Document], signers: Sequence[Signer]) -> None:
    if len(documents) > MAX_DOCUMENTS:
        raise SignatureLimit(f"the image bears {len(documents)} signatures; {MAX_DOCUMENTS} are looked at")
    sizes = [len(document.data) + len(document.signature) for document in documents]
    if max(sizes, default=0) > MAX_DOCUMENT_BYTES or sum(sizes) > MAX_TOTAL_BYTES:
        raise SignatureLimit(f"the image's signatures have up to {max(sizes)} bytes and {sum(sizes)} together")
    if len(signers) > MAX_SIGNERS:
        raise SignatureLimit(f"the policy names {len(signers)} signers; {MAX_SIGNERS} are allowed")


#: (document, digest, repository) -> a remark for a signature, a statement for an attestation; None: it proves nothing
Test = Callable[[Document, str, str], "str | Statement | None"]


def _tester(signer: Signer, now: datetime) -> Test:
    if isinstance(signer, KeySigner):
        return _key_test(load_public_key(signer.key.encode()))
    if isinstance(signer, KeylessSigner):
        return _keyless_test(signer)
    return _certificate_test(signer, notation.TrustStore(signer.name, signer.roots.encode()), now)


def _key_test(key: PublicKey) -> Test:
    def test(document: Document, digest: str, repository: str) -> Any:
        if document.kind == "cosign-simple":
            claim = cosign.verify_simple(document.data, document.signature, key)  # 5
            if claim is None:
                return None
            if claim.digest != digest:  # 6
                raise SignatureInvalid(f"is over {claim.digest[:80]}")
            if claim.repository and not _same_repository(claim.repository, repository):
                raise SignatureInvalid(f"is for {claim.repository[:200]}")
            return f"key {key.ident[:16]}"
        if document.kind == "cosign-bundle":
            bundle = cosign.parse_bundle(document.data)  # 3, 4
            if bundle.keyless or not cosign.verify_bundle(bundle, key):  # 5, 7
                return None
            statement = parse_statement(bundle.envelope)  # 6
            if not statement.is_about(digest):
                raise SignatureInvalid("is over another digest")
            return f"key {key.ident[:16]}" if statement.predicate_type == cosign.SIGN_PREDICATE else statement
        if document.kind == "dsse":
            return _attestation(document.data, digest, key)
        return None

    return test


def _attestation(data: bytes, digest: str, key: PublicKey) -> Statement | None:
    """A bare envelope proves an attestation alone; a signature is a bundle or a simple-signing claim."""
    envelope = parse_envelope(data)  # 3, 4
    if not any(key.verify(signature, envelope.signed) for signature in envelope.signatures):  # 5
        return None
    statement = parse_statement(envelope)  # 6
    if not statement.is_about(digest):
        raise SignatureInvalid("is over another digest")
    return statement


def _certificate_test(signer: CertificateSigner, store: notation.TrustStore, now: datetime) -> Test:
    def test(document: Document, digest: str, _repository: str) -> Any:
        if document.kind != "notation-jws":
            return None
        found = notation.verify_jws(document.data, (store,), now, signer.level)  # 3 to 8
        if found is None or (signer.subject and found.signer != signer.subject):
            return None
        if found.digest != digest:
            raise SignatureInvalid(f"is over {found.digest[:80]}")
        return "; ".join((found.signer, *found.warnings))[:400]

    return test


def _keyless_test(signer: KeylessSigner) -> Test:
    check_names(signer)

    def test(document: Document, digest: str, _repository: str) -> Any:
        if document.kind != "cosign-bundle":
            return None
        statement = verify_keyless(document.data, signer)  # 3 to 8
        if statement is None:
            return None
        if not statement.is_about(digest):
            raise SignatureInvalid("is over another digest")
        return f"identity {signer.identity}" if statement.predicate_type == cosign.SIGN_PREDICATE else statement

    return test


def _same_repository(signed: str, repository: str) -> bool:
    """cosign writes the name with or without a tag or digest."""
    name = signed.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}" == repository
