"""Signatures by keys and certificates made here: what holds, and every way in which one may not."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

crypto = pytest.importorskip("cryptography", reason="missing: cryptography")

from cryptography import x509  # noqa: E402
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa  # noqa: E402
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature  # noqa: E402
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID  # noqa: E402

from casemate.trust.signature import cosign, notation  # noqa: E402
from casemate.trust.signature.errors import (  # noqa: E402
    KeyInvalid,
    SignatureInvalid,
    SignatureLimit,
    SignatureMissing,
    SignatureNoMatch,
    ThresholdNotMet,
)
from casemate.trust.signature.keys import load_public_key  # noqa: E402
from casemate.trust.signature.statement import IN_TOTO, pae, parse_envelope, parse_statement  # noqa: E402
from casemate.trust.signature.verify import (  # noqa: E402
    CertificateSigner,
    Document,
    Evidence,
    KeySigner,
    allowed_in,
    require,
    verify,
)

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
DIGEST = "sha256:" + "ab" * 32
OTHER = "sha256:" + "cd" * 32
REPOSITORY = "registry.example/team/app"


def pem(key: Any) -> str:
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


KEY, OTHER_KEY = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
ADA, BOB = KeySigner("ada", pem(KEY)), KeySigner("bob", pem(OTHER_KEY))


def sign(key: Any, data: bytes) -> bytes:
    match key:
        case ed25519.Ed25519PrivateKey():
            return key.sign(data)
        case rsa.RSAPrivateKey():
            return key.sign(data, padding.PKCS1v15(), hashes.SHA256())
        case _:
            algorithm = {"secp256r1": hashes.SHA256, "secp384r1": hashes.SHA384, "secp521r1": hashes.SHA512}[
                key.curve.name
            ]
            return key.sign(data, ec.ECDSA(algorithm()))


def simple(key: Any = KEY, digest: str = DIGEST, reference: str = REPOSITORY, **critical: Any) -> Document:
    value = {
        "critical": {
            "identity": {"docker-reference": reference},
            "image": {"docker-manifest-digest": digest},
            "type": "cosign container image signature",
            **critical,
        },
        "optional": None,
    }
    payload = json.dumps(value).encode()
    return Document("cosign-simple", payload, b64(sign(key, payload)))


def bundle(
    key: Any = KEY,
    digest: str = DIGEST,
    predicate: str = cosign.SIGN_PREDICATE,
    entry: dict[str, Any] | None = None,
    **changes: Any,
) -> Document:
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {"sha256": digest[7:]}}],
        "predicateType": predicate,
        "predicate": {"builder": {"id": "b"}},
    }
    payload = json.dumps(statement).encode()
    signature = sign(key, pae(IN_TOTO, payload))
    entries = [{"canonicalizedBody": b64(json.dumps(entry_of(payload, key, signature) | (entry or {})).encode())}]
    value = {
        "mediaType": cosign.BUNDLE_TYPES[0],
        "verificationMaterial": {"publicKey": {"hint": ""}, "tlogEntries": entries},
        "dsseEnvelope": {"payload": b64(payload), "payloadType": IN_TOTO, "signatures": [{"sig": b64(signature)}]},
    }
    return Document("cosign-bundle", json.dumps(value | changes).encode())


def entry_of(payload: bytes, key: Any, signature: bytes) -> dict[str, Any]:
    spec = {
        "payloadHash": {"algorithm": "sha256", "value": hashlib.sha256(payload).hexdigest()},
        "signatures": [{"verifier": b64(pem(key).encode()), "signature": b64(signature)}],
    }
    return {"apiVersion": "0.0.1", "kind": "dsse", "spec": spec}


def proven(*documents: Document, signers: tuple[Any, ...] = (ADA, BOB), repository: str = REPOSITORY) -> Evidence:
    return verify(DIGEST, repository, documents, signers, NOW)


KEYS = [
    ec.generate_private_key(ec.SECP384R1()),
    ec.generate_private_key(ec.SECP521R1()),
    ed25519.Ed25519PrivateKey.generate(),
    rsa.generate_private_key(65537, 2048),
]


@pytest.mark.parametrize("key", KEYS, ids=lambda key: type(key).__name__)
@pytest.mark.parametrize("make", [simple, bundle])
def test_every_kind_of_key_and_layout(key: Any, make: Any) -> None:
    found = proven(make(key), signers=(KeySigner("x", pem(key)),))
    assert found.signers == {"x"}
    assert not found.refused


def test_two_of_three() -> None:
    found = proven(simple(), bundle(OTHER_KEY), simple())
    assert found.signers == {"ada", "bob"}
    assert require(found, ["ada", "bob", "eve"], 2) is found
    with pytest.raises(ThresholdNotMet, match="missing eve"):
        require(found, ["ada", "bob", "eve"], 3)


def test_the_same_signer_twice_is_one() -> None:
    with pytest.raises(ThresholdNotMet):
        require(proven(simple(), bundle(), simple()), ["ada", "bob"], 2)


def test_none_and_none_that_matches_are_different() -> None:
    with pytest.raises(SignatureMissing):
        require(proven(), ["ada"], 1)
    with pytest.raises(SignatureNoMatch):
        require(proven(simple(KEYS[0])), ["ada"], 1)


REFUSED = {
    "over another digest": simple(digest=OTHER),
    "for another repository": simple(reference="registry.example/evil/app"),
    "by another key": simple(KEYS[0]),
    "of another type": simple(type="something else"),
    "with an unknown critical member": simple(unknown=1),
    "with a changed payload": Document("cosign-simple", simple().data.replace(b"team", b"evil"), simple().signature),
    "with junk for a signature": Document("cosign-simple", simple().data, "!!!"),
    "with an empty signature": Document("cosign-simple", simple().data, ""),
    "with a payload that is too long": Document("cosign-simple", b"x" * 100_000, ""),
    "bundle over another digest": bundle(digest=OTHER),
    "bundle by another key": bundle(KEYS[0]),
    "bundle of an old type": bundle(mediaType="application/vnd.dev.sigstore.bundle+json;version=0.1"),
    "bundle without an envelope": bundle(dsseEnvelope=None),
    "bundle with a certificate and a key": bundle(verificationMaterial={"publicKey": {}, "certificate": {}}),
    "bundle with neither": bundle(verificationMaterial={}),
    "bundle with a thousand entries": bundle(verificationMaterial={"publicKey": {}, "tlogEntries": [{}] * 1000}),
    "bundle that is junk": Document("cosign-bundle", b"\xff"),
    "bundle that is deep": Document("cosign-bundle", b'{"mediaType":' + b"[" * 100_000),
    "log entry of another content": bundle(entry=entry_of(b"other", KEY, sign(KEY, b"other"))),
    "log entry of another kind": bundle(entry={"kind": "rpm"}),
    "log entry without a body": bundle(entry={"spec": {}}),
    "log entry that is no object": bundle(entry={"spec": [1]}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    found = proven(REFUSED[case], signers=(ADA,))
    assert not found.verified
    assert found.refused


def test_a_log_entry_by_another_key_or_of_another_signature() -> None:
    """CVE-2026-22703: the entry that came along was never compared with what was verified."""
    value = json.loads(bundle().data)
    payload = base64.b64decode(value["dsseEnvelope"]["payload"])
    good = sign(KEY, pae(IN_TOTO, payload))
    for entry in (entry_of(payload, OTHER_KEY, good), entry_of(payload, KEY, sign(KEY, b"another"))):
        value["verificationMaterial"]["tlogEntries"] = [{"canonicalizedBody": b64(json.dumps(entry).encode())}]
        found = proven(Document("cosign-bundle", json.dumps(value).encode()))
        assert not found.verified
        assert "another" in found.refused[0]


def test_logged_forms() -> None:
    value = json.loads(bundle().data)
    envelope = parse_envelope(json.dumps(value["dsseEnvelope"]).encode())
    (signature,) = envelope.signatures
    verifier = b64(pem(KEY).encode())
    payload_hash = {"value": hashlib.sha256(envelope.payload).hexdigest()}
    intoto = {
        "content": {
            "payloadHash": payload_hash,
            "envelope": {"signatures": [{"sig": b64(b64(signature).encode()), "publicKey": verifier}]},
        }
    }
    hashed = {
        "data": {"hash": {"value": hashlib.sha256(envelope.signed).hexdigest()}},
        "signature": {"content": b64(signature), "publicKey": {"content": verifier}},
    }
    key = load_public_key(pem(KEY).encode())
    other = load_public_key(pem(OTHER_KEY).encode())
    for kind, spec, told in (
        ("hashedrekord", hashed, hashed["data"]["hash"]["value"]),
        ("intoto", intoto, payload_hash["value"]),
    ):
        body = json.dumps({"kind": kind, "spec": spec}).encode()
        cosign.check_entry(body, envelope, key, (signature,))
        for wrong_body, wrong_key in ((body, other), (body.replace(told.encode(), b"00"), key)):
            with pytest.raises(SignatureInvalid):
                cosign.check_entry(wrong_body, envelope, wrong_key, (signature,))


def test_attestations_are_kept_apart_from_signatures() -> None:
    found = proven(bundle(predicate="https://slsa.dev/provenance/v1"))
    assert not found.verified
    assert found.attestations[0][0] == "ada"
    assert found.attestations[0][1].predicate["builder"]["id"] == "b"


def test_a_signer_is_bound_to_repositories() -> None:
    bound = KeySigner("ada", pem(KEY), ("registry.example/team/",))
    assert proven(bundle(), signers=(bound,)).signers == {"ada"}
    for repository in ("registry.example/teams/app", "evil.example/registry.example/team/app", "registry.example"):
        assert not proven(bundle(), signers=(bound,), repository=repository).verified
    assert allowed_in(bound, "registry.example/team")


def test_a_reference_may_carry_tag_and_digest() -> None:
    for reference in (f"{REPOSITORY}:1.2", f"{REPOSITORY}@{DIGEST}", "", "registry.example:5000/x"):
        found = proven(simple(reference=reference))
        assert bool(found.verified) == (reference != "registry.example:5000/x")


def test_counts_and_sizes_are_bounded() -> None:
    with pytest.raises(SignatureLimit):
        proven(*[simple()] * 51)
    with pytest.raises(SignatureLimit):
        proven(Document("cosign-simple", bytes(9 << 20), ""))
    with pytest.raises(SignatureLimit):
        proven(*[Document("cosign-bundle", bytes(7 << 20))] * 5)
    with pytest.raises(SignatureLimit):
        proven(simple(), signers=(ADA,) * 65)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"junk", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", b"\x30\x82\xff\xff",
        b"-----BEGIN " * 10_000,
        pem(ec.generate_private_key(ec.SECP256K1())).encode(), pem(rsa.generate_private_key(65537, 1024)).encode(),
    ],
)  # fmt: skip
def test_keys_that_are_refused(data: bytes) -> None:
    with pytest.raises(KeyInvalid):
        load_public_key(data)


def test_dsse_encodes_lengths() -> None:
    assert pae("a", b"bc") == b"DSSEv1 1 a 2 bc"
    for data in (b"{}", json.dumps({"payload": "", "payloadType": "x", "signatures": []}).encode()):
        with pytest.raises(SignatureInvalid):
            parse_envelope(data)
    envelope = parse_envelope(
        json.dumps({"payload": b64(b"{}"), "payloadType": IN_TOTO, "signatures": [{"sig": b64(b"x")}]}).encode()
    )
    with pytest.raises(SignatureInvalid):
        parse_statement(envelope)


# Notation


def certificate(
    name: str, key: Any, issuer: tuple[x509.Certificate, Any] | None = None, *, ca: bool = False,
    start: datetime = NOW - timedelta(days=1), days: int = 10, signing: bool = True,
    purpose: Any = ExtendedKeyUsageOID.CODE_SIGNING,
) -> x509.Certificate:  # fmt: skip
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    unused = "content_commitment key_encipherment data_encipherment key_agreement crl_sign encipher_only decipher_only"
    usage = dict.fromkeys(unused.split(), False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=signing and not ca, key_cert_sign=ca, **usage), critical=True)
    )
    if not ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    return builder.sign(issuer[1] if issuer else key, hashes.SHA256())


ROOT_KEY, LEAF_KEY = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
ROOT = certificate("root", ROOT_KEY, ca=True, days=1000, start=NOW - timedelta(days=100))
LEAF = certificate("leaf", LEAF_KEY, (ROOT, ROOT_KEY))


def url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def jws(
    chain: tuple[x509.Certificate, ...] = (LEAF, ROOT),
    key: Any = LEAF_KEY,
    digest: str = DIGEST,
    critical: Any = None,
    **protected: Any,
) -> Document:
    header = {
        "alg": "ES256",
        "cty": notation.MEDIA_TYPE,
        "crit": [notation.SCHEME] if critical is None else critical,
        notation.SCHEME: "notary.x509",
        notation.TIME: "2026-11-22T10:00:00Z",
    } | protected
    head = url64(json.dumps(header).encode())
    body = url64(json.dumps({"targetArtifact": {"mediaType": "m", "digest": digest, "size": 2}}).encode())
    signed = f"{head}.{body}".encode()
    if isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(signed, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())
    else:
        signature = b"".join(
            part.to_bytes(32, "big") for part in decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA256())))
        )
    chained = [b64(row.public_bytes(serialization.Encoding.DER)) for row in chain]
    value = {"payload": body, "protected": head, "header": {"x5c": chained}, "signature": url64(signature)}
    return Document("notation-jws", json.dumps(value).encode())


def by_certificate(document: Document, root: x509.Certificate = ROOT, **more: Any) -> Evidence:
    signer = CertificateSigner("notary", root.public_bytes(serialization.Encoding.PEM).decode(), **more)
    return proven(document, signers=(signer,))


def test_notation() -> None:
    assert by_certificate(jws()).signers == {"notary"}
    assert by_certificate(jws(), subject="CN=leaf").signers == {"notary"}
    assert not by_certificate(jws(), subject="CN=other").verified
    rsa_leaf = certificate("leaf", KEYS[3], (ROOT, ROOT_KEY))
    assert by_certificate(jws((rsa_leaf, ROOT), KEYS[3], alg="PS256")).verified


EVIL_KEY = ec.generate_private_key(ec.SECP256R1())
EVIL_ROOT = certificate("root", EVIL_KEY, ca=True)
EXPIRED = certificate("leaf", LEAF_KEY, (ROOT, ROOT_KEY), start=NOW - timedelta(days=50))
NOT_NOTATION = {
    "another root of the same name": jws((certificate("leaf", LEAF_KEY, (EVIL_ROOT, EVIL_KEY)), EVIL_ROOT)),
    "the right root put at the end": jws((certificate("leaf", LEAF_KEY, (EVIL_ROOT, EVIL_KEY)), ROOT)),
    "a leaf that issues": jws((certificate("x", EVIL_KEY, (LEAF, LEAF_KEY)), LEAF, ROOT), EVIL_KEY),
    "no root in the chain": jws((LEAF,)),
    "another digest": jws(digest=OTHER),
    "an unknown critical header": jws(critical=[notation.SCHEME, "evil"], evil=1),
    "a critical header that is missing": jws(critical=[notation.SCHEME, notation.EXPIRY]),
    "a scheme that is not critical": jws(critical=[]),
    "critical that is no list": jws(critical="x"),
    "no algorithm": jws(alg="none"),
    "an algorithm for another key": jws(alg="PS256"),
    "HMAC with the public key": jws(alg="HS256"),
    "an unknown scheme": jws(**{notation.SCHEME: "own"}),
    "another payload type": jws(cty="text/plain"),
    "an expiry that has passed": jws(
        critical=[notation.SCHEME, notation.EXPIRY], **{notation.EXPIRY: "2026-11-22T11:00:00Z"}
    ),
    "an expiry that is not critical": jws(**{notation.EXPIRY: "2030-01-01T00:00:00Z"}),
    "a signing time that is no time": jws(**{notation.TIME: "soon"}),
    "a signing time in the future": jws(**{notation.TIME: "2027-01-01T00:00:00Z"}),
    "an expired certificate": jws((EXPIRED, ROOT)),
    "a leaf for servers": jws(
        (certificate("leaf", LEAF_KEY, (ROOT, ROOT_KEY), purpose=ExtendedKeyUsageOID.SERVER_AUTH), ROOT)
    ),
    "a leaf that may not sign": jws((certificate("leaf", LEAF_KEY, (ROOT, ROOT_KEY), signing=False), ROOT)),
    "another key's signature": jws(key=EVIL_KEY),
    "a chain of a hundred": jws((LEAF, *[ROOT] * 100)),
    "an empty chain": jws(()),
    "junk": Document("notation-jws", b"{"),
}


@pytest.mark.parametrize("case", NOT_NOTATION)
def test_notation_refused(case: str) -> None:
    found = by_certificate(NOT_NOTATION[case])
    assert not found.verified
    assert found.refused


def test_notation_levels() -> None:
    for level in ("permissive", "audit"):
        found = by_certificate(jws((EXPIRED, ROOT)), level=level)
        assert "certificate 0 is valid" in found.verified[0].detail


def test_nothing_of_it_touches_the_network_or_loads_before_it_is_needed() -> None:
    """The audit hook sees every socket; importing the module loads no cryptography."""
    program = (
        "import sys\n"
        "import casemate.trust.signature.verify\n"
        "assert 'cryptography' not in sys.modules\n"
        "def hook(event, arguments):\n"
        "    assert not event.startswith('socket.'), event\n"
        "sys.addaudithook(hook)\n"
        "import pytest\n"
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-k', 'not network', sys.argv[1]]))\n"
    )
    command = [sys.executable, "-c", program, __file__]
    answer = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, cwd=sys.path[0] or None)
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-2000:]
