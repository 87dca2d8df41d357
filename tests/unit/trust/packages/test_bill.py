"""Packages out of attested bills of materials."""

from __future__ import annotations

from typing import Any

import pytest

from casemate.trust.packages import bill
from casemate.trust.packages.bill import CYCLONEDX, SPDX, is_bill, packages_of
from casemate.trust.packages.merge import Found, ImageContents
from casemate.trust.packages.model import Distribution, Package, PackageListInvalid
from casemate.trust.report.sbom import cyclonedx, spdx
from casemate.trust.rules.model import Rule
from casemate.trust.rules.settle import with_bills
from casemate.trust.signature.statement import Statement
from casemate.trust.signature.verify import Evidence

DIGEST = "sha256:" + "ab" * 32
PACKAGES = (
    Package("deb", "libssl3", "3.0.11-1~deb12u1", source="openssl", source_version="3.0.11-1~deb12u1"),
    Package("npm", "@scope/name", "1.2.3"), Package("maven", "org.example:lib", "4"), Package("pypi", "six", "1.16.0"),
    Package("golang", "github.com/a/b", "v1.0.0"),
)  # fmt: skip


def image(*packages: Package) -> ImageContents:
    return ImageContents(tuple(Found(one, "somewhere", 0) for one in packages), Distribution("debian", "12"))


@pytest.mark.parametrize(("kind", "write"), [(CYCLONEDX, cyclonedx), (f"{SPDX}/v2.3", spdx)])
def test_what_we_write_we_read(kind: str, write: Any) -> None:
    document = write(image(*PACKAGES), DIGEST, "app", "2026-11-22T00:00:00Z")
    assert is_bill(kind)
    found = packages_of("team", kind, document)
    assert {(one.package.type, one.package.name, one.package.version) for one in found} == {
        (one.type, one.name, one.version) for one in PACKAGES
    }
    (openssl,) = [one.package for one in found if one.package.name == "libssl3"]
    assert openssl.advisory_name == "openssl"


def test_junk_is_passed_over_or_told() -> None:
    parts: Any = ["x", 1, None, {"purl": 1}, {"purl": "pkg:deb/debian/a"}, {"purl": "pkg:odd/a@1"},
                  {"purl": "pkg:deb/debian/a%0Ab@1"}, {"purl": "pkg:npm/" + "a" * 700 + "@1"},
                  {"components": "x"}]  # fmt: skip
    assert packages_of("team", CYCLONEDX, {"components": parts}) == ()
    assert packages_of("team", SPDX, {"packages": [1, {"externalRefs": 2}, {"externalRefs": [3, {}]}]}) == ()
    for predicate in (None, [], "x"):
        with pytest.raises(PackageListInvalid):
            packages_of("team", SPDX, predicate)
    deep: dict[str, Any] = {}
    for _ in range(50):
        deep = {"components": [deep]}
    with pytest.raises(PackageListInvalid):
        packages_of("team", CYCLONEDX, deep)


def test_more_than_there_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bill, "MAX_PACKAGES", 3)
    document = {"components": [{"purl": f"pkg:npm/a@{number}"} for number in range(5)]}
    with pytest.raises(PackageListInvalid):
        packages_of("team", CYCLONEDX, document)


def test_a_bill_adds_and_takes_nothing_away() -> None:
    def said(signer: str, predicate: Any) -> Evidence:
        statement = Statement("https://in-toto.io/Statement/v1", CYCLONEDX, (), predicate)
        return Evidence(DIGEST, attestations=((signer, statement),))

    rule = Rule("app", "", ("team",), bills=("team",))
    contents = image(PACKAGES[0])
    same = {"components": [{"purl": "pkg:deb/debian/libssl3@3.0.11-1~deb12u1"}]}
    assert with_bills(contents, rule, said("team", same)) is contents
    assert with_bills(contents, rule, None) is contents
    more = {"components": [{"purl": "pkg:golang/github.com/a/b@v1.0.0"}]}
    assert with_bills(contents, rule, said("thief", more)) is contents
    grown = with_bills(contents, rule, said("team", more))
    assert [one.package.name for one in grown.packages] == ["libssl3", "github.com/a/b"]
    assert with_bills(contents, rule, said("team", [])).unreadable  # then it is not wholly known
