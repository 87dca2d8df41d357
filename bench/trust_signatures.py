"""Signatures and decisions: the time from documents in memory to verified signers, and for one policy decision.

python3 bench/trust_signatures.py
"""

from __future__ import annotations

import base64
import json
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from casemate.trust.admission import Candidate
from casemate.trust.feed.match import Finding, Match
from casemate.trust.packages.merge import Found, ImageContents
from casemate.trust.packages.model import Package
from casemate.trust.rules.decide import Scan, decide
from casemate.trust.rules.model import GradeRule, Rule, TrustPolicy
from casemate.trust.signature.verify import Document, KeySigner, verify

DIGEST = "sha256:" + "ab" * 32
RUNS = 200


def main() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    image = {"docker-manifest-digest": DIGEST}
    critical = {"identity": {"docker-reference": ""}, "image": image, "type": "cosign container image signature"}
    payload = json.dumps({"critical": critical, "optional": None}).encode()
    signature = base64.b64encode(key.sign(payload, ec.ECDSA(hashes.SHA256()))).decode()
    document, signer = Document("cosign-simple", payload, signature), KeySigner("ada", pem.decode())
    now = datetime(2026, 11, 22, tzinfo=UTC)
    timed(
        "cosign key verification (budget 10 ms with the registry)",
        lambda: verify(DIGEST, "r/x", [document], [signer], now),
    )

    critical_rule = GradeRule("critical", "findings.exists(f, f.severity == 'critical' && f.fixable)", "refuse")
    policy = TrustPolicy((signer,), (Rule("r", "r", ("ada",), grades=(critical_rule,)),))
    finding = Finding(
        Found(Package("deb", "x", "1"), "var/lib/dpkg/status", 0), "CVE-2026-1111", severity="high", score=70
    )
    scan = Scan(ImageContents(), Match((finding,) * 500), (), "2026-11-22")
    evidence = verify(DIGEST, "r/x", [document], [signer], now)
    candidate = Candidate(DIGEST, "r/x:1", "default", "namespace")
    timed("decision with 500 findings", lambda: decide(policy, candidate, evidence, scan, date(2026, 11, 22)))


def timed(what: str, call: Callable[[], object]) -> None:
    start = time.perf_counter()
    call()
    first_ms = (time.perf_counter() - start) * 1000
    times_ms = []
    for _ in range(RUNS):
        start = time.perf_counter()
        call()
        times_ms.append((time.perf_counter() - start) * 1000)
    print(f"{what}: first {first_ms:.1f} ms, then {statistics.median(times_ms):.2f} ms")


if __name__ == "__main__":
    main()
