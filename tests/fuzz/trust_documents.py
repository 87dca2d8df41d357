"""Fuzzer of what vouches for images and of what signs: manifests, log entries, VEX, bills, addresses, metadata.

``python tests/fuzz/trust_documents.py [seconds] [folder]`` (default 60) keeps what finds new paths in the folder, by
default ``tests/fuzz/trust-documents-corpus``. The first byte picks the parser.
Whatever the bytes, there are values or a CasemateError, never another exception.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

if __name__ == "__main__":
    import atheris

    # Modules are instrumented while they are imported, and only within this block.
    with atheris.instrument_imports(include=["casemate.trust", "casemate.image"]):
        import casemate.image.artifacts
        import casemate.trust.freshness.publisher
        import casemate.trust.keys.uri
        import casemate.trust.packages.bill
        import casemate.trust.signature.vex  # noqa: F401

from casemate.image.artifacts import decode_artifact, decode_list
from casemate.spec.errors import CasemateError
from casemate.trust.freshness.publisher import Publisher
from casemate.trust.freshness.resolve import Trusted, refresh, resolve
from casemate.trust.freshness.roles import tuf_key
from casemate.trust.keys.private import load_private_key, new_key
from casemate.trust.keys.uri import parse_address
from casemate.trust.packages import bill
from casemate.trust.signature import cosign
from casemate.trust.signature.keys import load_public_key
from casemate.trust.signature.statement import IN_TOTO, Envelope, Statement, pae
from casemate.trust.signature.verify import Document, KeySigner, verify
from casemate.trust.signature.vex import statements_of

NOW = datetime(2026, 11, 22, tzinfo=UTC)
DIGEST = "sha256:" + "ab" * 32
KEY = new_key()
PUBLIC = load_public_key(KEY.public_pem.encode())
SIGNER = KeySigner("team", KEY.public_pem)
ENVELOPE = Envelope(b"{}", IN_TOTO, pae(IN_TOTO, b"{}"), (b"signature",))


def predicate(read: Callable[[Any], object]) -> Callable[[bytes], None]:
    """A parser of what stands in an attestation: any JSON value."""

    def target(data: bytes) -> None:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            return
        read(value)

    return target


def said(value: Any) -> Statement:
    return Statement("https://in-toto.io/Statement/v1", "https://openvex.dev/ns", (), value)


def documents(data: bytes) -> None:
    """All kinds at once, as a registry would give them, by a signer whose key is none of theirs."""
    half = len(data) // 2
    text = data[half:].decode("latin-1")
    given = [Document(kind, data[:half], text) for kind in ("cosign-simple", "cosign-bundle", "notation-jws", "dsse")]
    assert not verify(DIGEST, "r/x", given, [SIGNER], NOW).verified  # type: ignore[arg-type]


def metadata(data: bytes) -> None:
    """A publisher's folder, and a client's first look at it."""
    parts = {"root.json": data, "targets.json": data, "timestamp.json": data, "snapshot.json": data, "team.json": data}
    for name in parts:
        with contextlib.suppress(CasemateError):
            Publisher({name: data}, [KEY], NOW).rows()
    for ask in (lambda: resolve(Trusted(data), parts, "a:1", NOW), lambda: refresh(Trusted(data), parts, NOW)):
        with contextlib.suppress(CasemateError):
            ask()


TARGETS: list[Callable[[bytes], object]] = [
    lambda data: decode_artifact(data, "x"),
    lambda data: decode_list(data, "x"),
    lambda data: cosign.check_entry(data, ENVELOPE, PUBLIC, (b"signature",)),
    documents,
    predicate(lambda value: statements_of("team", said(value), DIGEST)),
    predicate(lambda value: bill.packages_of("team", bill.CYCLONEDX, value)),
    predicate(lambda value: bill.packages_of("team", bill.SPDX, value)),
    lambda data: parse_address("pkcs11:" + data.decode("latin-1")),
    load_private_key,
    lambda data: tuf_key(data.decode("latin-1")),
    metadata,
]


def fuzz_one(data: bytes) -> None:
    if data:
        with contextlib.suppress(CasemateError):
            TARGETS[data[0] % len(TARGETS)](data[1:])


def main() -> None:
    seconds = sys.argv[1] if len(sys.argv) > 1 else "60"
    corpus = Path(sys.argv[2] if len(sys.argv) > 2 else Path(__file__).with_name("trust-documents-corpus"))
    corpus.mkdir(exist_ok=True)
    flags = [f"-max_total_time={seconds}", "-max_len=4096", "-timeout=10"]
    atheris.Setup(["trust-documents", *flags, str(corpus)], fuzz_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
