"""Who vouches for an image: asks the child that fetches and checks, and puts new signatures beside an image.

:func:`signature_evidence` is what admission uses: offline, from what was kept when the image was pulled.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from casemate.image.errors import DigestUnpublished, ImageNotFound
from casemate.image.jobs import Endpoints
from casemate.node import audit, events, freshness, images, imagestore
from casemate.node.clock import rfc3339
from casemate.node.core import Caller, Core
from casemate.node.evidence import ask
from casemate.node.evidence_jobs import (
    Attached,
    AttachJob,
    Checked,
    CheckJob,
    EvidenceJob,
    Found,
    Good,
    PushedBlob,
    ResolveJob,
)
from casemate.spec.api.signatures import (
    AttachAnswer,
    AttachRequest,
    AttestationRow,
    ResolveAnswer,
    ResolveRequest,
    SignatureRow,
    VerifyAnswer,
    VerifyRequest,
)
from casemate.spec.errors import InvalidArgument
from casemate.spec.reference import Reference, ReferenceInvalid, parse_reference
from casemate.trust.signature.errors import SignatureMissing, SignatureNoMatch, ThresholdNotMet
from casemate.trust.signature.keyless import KeylessSigner
from casemate.trust.signature.verify import CertificateSigner, Evidence, KeySigner, Signer, require

#: A registry may be slow, and is asked some six times.
ONLINE_S = 90.0
#: Reading a file and checking 50 signatures takes below 100 ms.
OFFLINE_S = 30.0


async def signature_evidence(
    core: Core, reference: str, digest: str, signers: Sequence[Signer], predicates: tuple[str, ...] = ()
) -> Evidence:
    """What vouches for the stored image *digest* (a manifest) as an image of *reference*'s repository. Offline.

    Checks what was kept when the image was pulled, for the manifest and for the index that it came out of. An image of
    which nothing was ever fetched has evidence without documents: it is unsigned as far as this host knows.
    *predicates*: types of attestations whose content is answered too; of others only that they are there.
    """
    subjects = await _subjects(core, digest)
    return (await _check(core, reference, subjects, signers, None, predicates=predicates)).evidence


async def _subjects(core: Core, digest: str) -> tuple[str, ...]:
    """The manifest and its index, of a stored image; the digest alone for one that is not here."""

    def work(db: sqlite3.Connection) -> tuple[str, ...]:
        try:
            row = imagestore.find(db, digest)
        except ImageNotFound:
            return (digest,)
        index = row.the_record().index_digest
        return (row.manifest_digest, index) if index else (row.manifest_digest,)

    return await core.db.read(work)


async def _check(
    core: Core, reference: str, subjects: tuple[str, ...], signers: Sequence[Signer], endpoints: Endpoints | None, *,
    predicates: tuple[str, ...] = (), enough: int = 0, counting: tuple[str, ...] = (),
) -> Checked:  # fmt: skip
    job = CheckJob(
        state=core.settings.text("paths.state"), reference=reference, subjects=subjects, endpoints=endpoints,
        max_manifest_bytes=core.settings.number("image.max_manifest_bytes"), signers=tuple(signers), now_s=core.clock(),
        keep=True, predicates=predicates, enough=enough, counting=counting,
    )  # fmt: skip
    answer = await _ask(core, job, online=endpoints is not None)
    assert isinstance(answer, Checked)
    return answer


async def _ask(core: Core, job: EvidenceJob, *, online: bool) -> Good:
    """Through the child of its own kind: a registry that hangs holds up no admission."""
    return await ask(core.evidence_online if online else core.evidence_offline, job, ONLINE_S if online else OFFLINE_S)


def _signers(request: VerifyRequest) -> tuple[Signer, ...]:
    found: list[Signer] = [KeySigner(row.name, row.key) for row in request.keys]
    found += [CertificateSigner(row.name, row.roots, row.subject, row.level) for row in request.authorities]
    found += [KeylessSigner(row.name, row.identity, row.issuer, row.trusted_root) for row in request.identities]
    names = [signer.name for signer in found]
    if len(set(names)) != len(names):
        raise InvalidArgument(f"two signers have one name: {', '.join(sorted(names))[:200]}")
    return tuple(found)


async def verify(core: Core, request: VerifyRequest) -> VerifyAnswer:
    """Check the signatures of *request*'s image by the signers that it names."""
    signers, threshold, attestations = _signers(request), request.threshold, request.attestations
    wanted = [signer.name for signer in signers]
    if request.policy:
        if signers:
            raise InvalidArgument("either the policy's signers, or some that are named")
        signers, wanted, threshold, more = _of_policy(core, request.reference)
        attestations = (*attestations, *more)
    elif not signers:
        raise InvalidArgument(
            "no signer to verify with",
            remedy="Give `--key FILE` or `--authority FILE`; the policy's signers: `--policy`.",
        )
    if wanted and threshold > len(wanted):
        raise InvalidArgument(f"a threshold of {threshold} with {len(wanted)} signers can never be met")
    if request.offline:
        reference, row = await _stored(core, request.reference)
        await freshness.check(core, request.reference, row)
        index = row.the_record().index_digest
        subjects = (row.manifest_digest, index) if index else (row.manifest_digest,)
        checked = await _check(core, str(reference), subjects, signers, None)
    else:
        reference = parse_reference(request.reference)
        endpoints = images.endpoints(core, request.auth, reference.registry, plain_http=request.plain_http)
        published = await freshness.published(core, reference)
        enough = 0 if attestations else threshold
        checked = await _check(core, str(reference), (), signers, endpoints, enough=enough, counting=tuple(wanted))
        if published and checked.digest != published:
            raise DigestUnpublished(
                f"{reference.familiar} leads to {checked.digest} at the registry; its publisher signed {published}",
                found=checked.digest, published=published,
            )  # fmt: skip
        await core.trust.fetched_again(core.db, checked.digest, f"what vouches for {reference.familiar}")
    return _answer(reference, checked, wanted, threshold, attestations)


def _of_policy(core: Core, text: str) -> tuple[tuple[Signer, ...], list[str], int, tuple[str, ...]]:
    """What the trust policy wants of the repository: all signers, the names that count, how many, and attestations."""
    policy = core.trust.policy
    reference = parse_reference(text)
    repository = f"{reference.registry}/{reference.repository}"
    rule = policy.rule_for(repository) if policy is not None else None
    if policy is None or rule is None:
        why = "no trust policy is applied" if policy is None else f"no rule of the trust policy covers {repository}"
        raise InvalidArgument(why, remedy="`casemate trust policy ls` lists the documents; or give `--key FILE`.")
    return policy.signers, list(rule.signers), rule.threshold, rule.attestations


async def _stored(core: Core, text: str) -> tuple[Reference, imagestore.ImageRow]:
    """An image that is here, and its reference."""

    def work(db: sqlite3.Connection) -> tuple[Reference, imagestore.ImageRow]:
        row = imagestore.find(db, text)
        names = imagestore.names_of(db, row.manifest_digest)
        try:
            reference = parse_reference(text)
            if names and str(reference) not in names and reference.digest is None:
                reference = parse_reference(names[0])  # it was named by its id
        except ReferenceInvalid:
            if not names:
                raise
            reference = parse_reference(names[0])
        return reference, row

    return await core.db.read(work)


def _answer(
    reference: Reference, checked: Checked, wanted: list[str], threshold: int, attestations: tuple[str, ...]
) -> VerifyAnswer:
    evidence = checked.evidence
    if not wanted:
        return _told(reference, checked, threshold, ("not_asked", "the policy's rule asks for no signature", ""))
    outcome, detail, remedy = "verified", f"signed by {', '.join(sorted(evidence.signers & set(wanted)))}", ""
    given = {statement.predicate_type for name, statement in evidence.attestations if name in wanted}
    missing = [kind for kind in attestations if kind not in given]
    try:
        # Who asks for an attestation alone is satisfied by it: it names the digest as a signature does.
        if not (attestations and not missing and threshold == 1):
            require(evidence, wanted, threshold)
        if missing:
            outcome, detail = "attestation_missing", f"no attestation {', '.join(missing)} by {', '.join(wanted)}"
            remedy = "Its publisher has to attest it; the detail names the predicate types."
        elif not evidence.signers:
            detail = f"attested: {', '.join(sorted(given))}"
    except (SignatureMissing, SignatureNoMatch, ThresholdNotMet) as error:
        outcomes = {SignatureMissing: "unsigned", SignatureNoMatch: "no_match", ThresholdNotMet: "too_few"}
        outcome, detail, remedy = outcomes[type(error)], error.detail, error.remedy
    return _told(reference, checked, threshold, (outcome, detail, remedy))


def _told(reference: Reference, checked: Checked, threshold: int, told: tuple[str, str, str]) -> VerifyAnswer:
    outcome, detail, remedy = told
    evidence = checked.evidence
    return VerifyAnswer(
        reference=reference.familiar, repository=f"{reference.registry}/{reference.repository}", digest=checked.digest,
        outcome=outcome,  # type: ignore[arg-type]  # the words of the Literal
        detail=detail, remedy=remedy, threshold=threshold, documents=evidence.documents,
        source=checked.source,  # type: ignore[arg-type]  # likewise
        fetched_at=rfc3339(checked.fetched_at) if checked.fetched_at else "",
        signatures=tuple(SignatureRow(row.signer, row.kind, row.detail) for row in evidence.verified),
        attestations=tuple(AttestationRow(name, row.predicate_type) for name, row in evidence.attestations),
        refused=evidence.refused,
    )  # fmt: skip


async def resolve(core: Core, request: ResolveRequest) -> ResolveAnswer:
    """What the registry has under the reference now."""
    reference = parse_reference(request.reference)
    job = ResolveJob(
        reference=str(reference),
        endpoints=images.endpoints(core, request.auth, reference.registry, plain_http=request.plain_http),
        max_manifest_bytes=core.settings.number("image.max_manifest_bytes"),
    )
    found = await _ask(core, job, online=True)
    assert isinstance(found, Found)
    repository = f"{reference.registry}/{reference.repository}"
    return ResolveAnswer(reference.familiar, repository, found.digest, found.media_type, found.size_bytes)


async def attach(core: Core, request: AttachRequest, caller: Caller) -> AttachAnswer:
    """Push signatures that the client made; an image that is here keeps them too."""
    reference = parse_reference(request.reference)
    job = AttachJob(
        state=core.settings.text("paths.state"), reference=str(reference), digest=request.digest,
        endpoints=images.endpoints(core, request.auth, reference.registry, plain_http=request.plain_http),
        blobs=tuple(
            PushedBlob(
                kind=row.kind, data=row.data, annotations=row.annotations, suffix=row.suffix, type=row.type,
                on_manifest=row.on_manifest,
            )
            for row in request.blobs
        ),
        max_manifest_bytes=core.settings.number("image.max_manifest_bytes"), now_s=core.clock(), keep=True,
    )  # fmt: skip
    if any(bool(row.suffix) == bool(row.type) for row in request.blobs):
        raise InvalidArgument("a blob goes under a tag's suffix or as a referrer of a type, and names one of them")
    attached = await _ask(core, job, online=True)
    assert isinstance(attached, Attached)
    at = core.clock()

    def work(db: sqlite3.Connection) -> None:
        name = f"{reference.registry}/{reference.repository}"
        audit.append(db, at, caller.who, "trust.attach", request.digest, repository=name, count=len(request.blobs))
        events.add(db, at, "image", request.digest, "sign", name=name, digest=request.digest)

    await core.db.write(work)
    core.events.wake()
    await core.trust.fetched_again(core.db, request.digest, f"what vouches for {reference.familiar}")
    return AttachAnswer(request.digest, attached.manifests)
