"""Fuzzer of everything in trust that parses what came from outside: package lists, feeds, signatures, versions.

``python tests/fuzz/trust_parsers.py [seconds] [folder]`` (default 60) keeps what finds new paths in the folder,
by default ``tests/fuzz/trust-corpus``. The first byte picks the parser.
Whatever the bytes, there are values or a CasemateError, never another exception.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

if __name__ == "__main__":
    import atheris

    # Modules are instrumented while they are imported, and only within this block.
    with atheris.instrument_imports(include=["casemate.trust"]):
        import casemate.trust.feed.alpine
        import casemate.trust.feed.csaf
        import casemate.trust.feed.debian
        import casemate.trust.feed.osv
        import casemate.trust.feed.scores
        import casemate.trust.packages.routes
        import casemate.trust.packages.scanner
        import casemate.trust.signature.verify  # noqa: F401

from casemate.spec.errors import CasemateError
from casemate.trust.feed import alpine as feed_alpine
from casemate.trust.feed import csaf, osv, scores
from casemate.trust.feed import debian as feed_debian
from casemate.trust.packages import alpine, binaries, debian, java, languages, leaked, rpm_database, rpm_header
from casemate.trust.packages.content import Content
from casemate.trust.packages.distribution import parse_os_release
from casemate.trust.signature import cosign, notation
from casemate.trust.signature.keys import load_public_key
from casemate.trust.signature.statement import parse_envelope, parse_statement
from casemate.trust.version.order import SCHEMES, compare

NOW = datetime(2026, 11, 22, tzinfo=UTC)


def versions(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    half = len(text) // 2
    for scheme in SCHEMES:
        assert compare(scheme, text[:half], text[half:]) == -compare(scheme, text[half:], text[:half]), scheme
        assert compare(scheme, text, text) == 0, scheme


def contents(parse: Callable[[str, Content], object]) -> Callable[[bytes], None]:
    def target(data: bytes) -> None:
        found = parse("x", Content(data[: len(data) // 2], data[len(data) // 2 :]))
        for _ in found if hasattr(found, "__next__") else ():
            pass

    return target


def feeds(parse: Callable[[str, bytes], object]) -> Callable[[bytes], None]:
    def target(data: bytes) -> None:
        found = parse("x", data)
        for _ in found if hasattr(found, "__next__") else ():
            pass

    return target


TARGETS: list[Callable[[bytes], object]] = [
    versions,
    contents(debian.parse_status),
    contents(lambda path, content: debian.owned_files(path + ".md5sums", content, {b"x"})),
    contents(alpine.parse_installed),
    contents(lambda _, content: alpine.owned_files(content)),
    contents(languages.parse_metadata),
    contents(languages.parse_package_json),
    contents(languages.parse_composer),
    contents(languages.parse_gemspec),
    contents(binaries.parse_executable),
    contents(java.parse_archive),
    contents(rpm_database.parse_database),
    contents(leaked.by_content),
    contents(parse_os_release),
    lambda data: rpm_header.parse(data, want_files=True),
    lambda data: binaries.wanted(data, 64 << 20),
    feeds(osv.parse),
    feeds(feed_debian.parse_advisories),
    feeds(feed_debian.parse_tracker),
    feeds(feed_alpine.parse),
    feeds(csaf.parse),
    feeds(scores.parse_epss),
    feeds(scores.parse_kev),
    lambda data: parse_statement(parse_envelope(data)),
    cosign.parse_bundle,
    lambda data: notation.verify_jws(data, (), NOW),
    load_public_key,
]


def fuzz_one(data: bytes) -> None:
    if data:
        with contextlib.suppress(CasemateError):
            TARGETS[data[0] % len(TARGETS)](data[1:])


def main() -> None:
    seconds = sys.argv[1] if len(sys.argv) > 1 else "60"
    corpus = Path(sys.argv[2] if len(sys.argv) > 2 else Path(__file__).with_name("trust-corpus"))
    corpus.mkdir(exist_ok=True)
    atheris.Setup(["trust", f"-max_total_time={seconds}", "-max_len=4096", "-timeout=10", str(corpus)], fuzz_one)
    atheris.Fuzz()


def seed(corpus: Path, number: int, data: bytes) -> None:
    """Put one input for the parser *number* into *corpus*, named by its digest as the fuzzer does."""
    whole = bytes([number]) + data
    (corpus / hashlib.sha1(whole, usedforsecurity=False).hexdigest()).write_bytes(whole)


if __name__ == "__main__":
    main()
