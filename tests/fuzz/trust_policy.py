"""Fuzzer of trust policies, their test cases, mirrors' manifests, and the judging child's jobs.

``python tests/fuzz/trust_policy.py [seconds] [folder]`` (default 60) keeps what finds new paths in the folder,
by default ``tests/fuzz/trust-policy-corpus``. The first byte picks the parser. Whatever the bytes, there are values or
a CasemateError; a policy that is taken decides about any image without another exception.
"""

from __future__ import annotations

import base64
import contextlib
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

if __name__ == "__main__":
    import atheris

    # Modules are instrumented while they are imported, and only within this block.
    with atheris.instrument_imports(include=["casemate.node.trust", "casemate.trust", "casemate.policy"]):
        import casemate.node.trust.judge_child
        import casemate.node.trust.mirror  # noqa: F401

import msgspec

from casemate.image.jobs import Failure
from casemate.node.trust.documents import combine, parse_cases, parse_policies
from casemate.node.trust.judge_child import answer
from casemate.node.trust.judging import Judge
from casemate.spec.errors import CasemateError
from casemate.trust.admission import Candidate
from casemate.trust.feed.manifest import PAYLOAD_TYPE, Seen, is_signed, parse_manifest, verify_manifest
from casemate.trust.feed.match import Match
from casemate.trust.keys.private import new_key
from casemate.trust.packages.merge import ImageContents
from casemate.trust.rules.decide import Scan, decide
from casemate.trust.signature.keys import load_public_key
from casemate.trust.signature.statement import pae

TODAY = date(2026, 11, 22)
DIGEST = "sha256:" + "ab" * 32
JUDGE = Judge()
KEY = new_key()
PUBLIC = load_public_key(KEY.public_pem.encode())


def policies(data: bytes) -> None:
    policy = combine(parse_policies(data.decode("utf-8", "replace"), "fuzz"), TODAY)
    for scan in (None, Scan(ImageContents(), Match(), (), "2026-11-22")):
        found = decide(policy, Candidate(DIGEST, "r.example/a/b:1", "default", "namespace"), None, scan, TODAY)
        assert found.answer in ("admit", "refuse")
        assert found.steps


def cases(data: bytes) -> None:
    parse_cases(data.decode("utf-8", "replace"), "fuzz")


def jobs(data: bytes) -> None:
    found = answer(JUDGE, data)
    assert isinstance(found, Failure) or found.__struct_fields__


def manifests(data: bytes) -> None:
    """As it says of itself; as a payload that its key did sign; and against the key."""
    if not is_signed(data):
        data = sealed(data)
    with contextlib.suppress(CasemateError):
        parse_manifest(data)
    verify_manifest(data, [PUBLIC], 1, TODAY, {PUBLIC.ident: Seen(3, "")})


def sealed(payload: bytes) -> bytes:
    signature = base64.b64encode(KEY.sign(pae(PAYLOAD_TYPE, payload))).decode()
    whole = {"payload": base64.b64encode(payload).decode(), "payloadType": PAYLOAD_TYPE}
    return msgspec.json.encode({**whole, "signatures": [{"sig": signature}]})


TARGETS: list[Callable[[bytes], object]] = [policies, cases, manifests, jobs]


def fuzz_one(data: bytes) -> None:
    if not data:
        return
    with contextlib.suppress(CasemateError):
        TARGETS[data[0] % len(TARGETS)](data[1:])


if __name__ == "__main__":
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    corpus = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).with_name("trust-policy-corpus")
    corpus.mkdir(exist_ok=True)
    arguments = [sys.argv[0], f"-max_total_time={seconds}", "-max_len=16384", "-timeout=10", str(corpus)]
    atheris.Setup(arguments, fuzz_one)
    atheris.Fuzz()
