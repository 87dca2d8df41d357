"""A Sigstore instance made here: authority, certificate log, signature log; and bundles that it vouches for."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from casemate.trust.signature.produce import statement
from casemate.trust.signature.statement import IN_TOTO, pae

ISSUER = "https://issuer.example"
SHA256 = ec.ECDSA(hashes.SHA256())


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def spki(key: Any) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )  # fmt: skip


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


class Instance:
    """Its keys, and the trusted root that a policy names."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC).replace(microsecond=0)
        self.ca_key, self.ct_key, self.log_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        self.ca = (
            x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(self.ca_key.public_key())
            .serial_number(1).not_valid_before(self.now - timedelta(days=1))
            .not_valid_after(self.now + timedelta(days=100))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage(key_cert_sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.ca_key.public_key()), critical=False)
            .sign(self.ca_key, hashes.SHA256())
        )  # fmt: skip

    def trusted_root(self) -> str:
        start = {"start": (self.now - timedelta(days=10)).isoformat().replace("+00:00", "Z")}

        def log(key: Any, url: str) -> dict[str, Any]:
            der = spki(key)
            public = {"rawBytes": b64(der), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": start}
            return {"baseUrl": url, "hashAlgorithm": "SHA2_256", "publicKey": public,
                    "logId": {"keyId": b64(hashlib.sha256(der).digest())}}  # fmt: skip

        certificate = self.ca.public_bytes(serialization.Encoding.DER)
        return json.dumps({
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [log(self.log_key, "https://log.example")],
            "ctlogs": [log(self.ct_key, "https://ct.example")],
            "certificateAuthorities": [{
                "subject": {"organization": "example", "commonName": "authority"}, "uri": "https://ca.example",
                "certChain": {"certificates": [{"rawBytes": b64(certificate)}]}, "validFor": start,
            }],
            "timestampAuthorities": [],
        })  # fmt: skip

    def certificate(self, key: Any, identity: str, issuer: str = ISSUER) -> x509.Certificate:
        """Ten minutes for *identity*, with the certificate log's word in it (RFC 6962, 3.2 and 3.3)."""
        san = x509.RFC822Name(identity) if "@" in identity and "//" not in identity else (
            x509.UniformResourceIdentifier(identity))  # fmt: skip
        builder = (
            x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(self.ca.subject)
            .public_key(key.public_key()).serial_number(x509.random_serial_number())
            .not_valid_before(self.now - timedelta(minutes=5)).not_valid_after(self.now + timedelta(minutes=5))
            .add_extension(usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.ca_key.public_key()), critical=False)
            .add_extension(x509.SubjectAlternativeName([san]), critical=True)
            .add_extension(x509.UnrecognizedExtension(
                ObjectIdentifier("1.3.6.1.4.1.57264.1.8"), der(0x0C, issuer.encode())), critical=False)
        )  # fmt: skip
        plain = builder.sign(self.ca_key, hashes.SHA256()).tbs_certificate_bytes
        stamp = int(self.now.timestamp() * 1000)
        entry = hashlib.sha256(spki(self.ca_key)).digest() + len(plain).to_bytes(3, "big") + plain
        signature = self.ct_key.sign(struct.pack("!BBQH", 0, 0, stamp, 1) + entry + b"\0\0", SHA256)
        log_id = hashlib.sha256(spki(self.ct_key)).digest()
        sct = b"\0" + log_id + struct.pack("!QHBBH", stamp, 0, 4, 3, len(signature)) + signature
        listed = struct.pack("!HH", len(sct) + 2, len(sct)) + sct
        extension = x509.UnrecognizedExtension(ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2"), der(4, listed))
        return builder.add_extension(extension, critical=False).sign(self.ca_key, hashes.SHA256())

    def bundle(
        self, identity: str, digest: str, predicate_type: str, predicate: Any = None, *, issuer: str = ISSUER,
        logged: dict[str, Any] | None = None, at: datetime | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """A bundle by *identity*. *logged*: another bundle, whose log entry this one shows for its own."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self.certificate(key, identity, issuer)
        payload = statement(digest, predicate_type, predicate or {})
        signature = key.sign(pae(IN_TOTO, payload), SHA256)
        if logged is not None:
            entry = logged["verificationMaterial"]["tlogEntries"][0]
        else:
            pem = certificate.public_bytes(serialization.Encoding.PEM)
            entry = self.entry(payload, signature, pem, at or self.now)
        envelope = {"payload": b64(payload), "payloadType": IN_TOTO, "signatures": [{"sig": b64(signature)}]}
        return {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {
                "certificate": {"rawBytes": b64(certificate.public_bytes(serialization.Encoding.DER))},
                "tlogEntries": [entry],
            },
            "dsseEnvelope": envelope,
        }

    def entry(self, payload: bytes, signature: bytes, pem: bytes, at: datetime) -> dict[str, Any]:
        """The signature log's entry: a tree of one leaf, its signed checkpoint, and its promise."""
        value = {"algorithm": "sha256", "value": hashlib.sha256(payload).hexdigest()}
        body = canonical({"apiVersion": "0.0.1", "kind": "dsse", "spec": {
            "envelopeHash": value, "payloadHash": value,
            "signatures": [{"signature": b64(signature), "verifier": b64(pem)}]}})  # fmt: skip
        root = hashlib.sha256(b"\0" + body).digest()
        log_id = hashlib.sha256(spki(self.log_key)).digest()
        note = f"log.example - 1\n1\n{b64(root)}\n"
        checkpoint = f"{note}\n— log.example {b64(log_id[:4] + self.log_key.sign(note.encode(), SHA256))}\n"
        promised = {"body": b64(body), "integratedTime": int(at.timestamp()), "logID": log_id.hex(), "logIndex": 0}
        return {
            "logIndex": "0", "logId": {"keyId": b64(log_id)}, "kindVersion": {"kind": "dsse", "version": "0.0.1"},
            "integratedTime": str(int(at.timestamp())),
            "inclusionPromise": {"signedEntryTimestamp": b64(self.log_key.sign(canonical(promised), SHA256))},
            "inclusionProof": {"logIndex": "0", "rootHash": b64(root), "treeSize": "1", "hashes": [],
                               "checkpoint": {"envelope": checkpoint}},
            "canonicalizedBody": b64(body),
        }  # fmt: skip


def usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature, key_cert_sign=key_cert_sign, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, crl_sign=False, encipher_only=False,
        decipher_only=False,
    )  # fmt: skip


def der(tag: int, data: bytes) -> bytes:
    length = bytes([len(data)]) if len(data) < 128 else b"\x82" + len(data).to_bytes(2, "big")
    return bytes([tag]) + length + data
