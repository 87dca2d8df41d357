"""Bills of materials and SARIF: what they name, that they are the same twice, and that what is not whole says so."""

from __future__ import annotations

import json
import re

import pytest

from casemate.trust.feed.match import Finding
from casemate.trust.packages.merge import Found, ImageContents
from casemate.trust.packages.model import Distribution, Package, PackageType, Unreadable
from casemate.trust.report.purl import purl
from casemate.trust.report.sarif import sarif
from casemate.trust.report.sbom import cyclonedx, spdx

DIGEST = "sha256:" + "ab" * 32
WHEN = "2026-11-22T12:00:00Z"
DEBIAN = Distribution("debian", "12")
ZLIB = Package("deb", "zlib1g", "1:1.2.13.dfsg-1+b1", "zlib", "1:1.2.13.dfsg-1", "amd64")
CONTENTS = ImageContents(
    (Found(ZLIB, "var/lib/dpkg/status", 0), Found(Package("npm", "@a/b", "1.0"), "x/package.json", 1)),
    DEBIAN,
    unreadable=(Unreadable("x.jar", "cut off"),),
)


@pytest.mark.parametrize(
    ("kind", "name", "wanted"),
    [
        ("pypi", "requests", "pkg:pypi/requests@1"),
        ("npm", "@a/b", "pkg:npm/%40a/b@1"),
        ("golang", "github.com/a/b", "pkg:golang/github.com/a/b@1"),
        ("maven", "org.a:b", "pkg:maven/org.a/b@1"),
        ("maven", "b", "pkg:maven/b@1"),
        ("gem", "a/../../b?x#y", "pkg:gem/a%2F..%2F..%2Fb%3Fx%23y@1"),
    ],
)
def test_purl(kind: PackageType, name: str, wanted: str) -> None:
    assert purl(Package(kind, name, "1"), DEBIAN) == wanted


def test_purl_of_a_distribution() -> None:
    assert purl(ZLIB, DEBIAN) == (
        "pkg:deb/debian/zlib1g@1%3A1.2.13.dfsg-1%2Bb1?arch=amd64&distro=debian-12&upstream=zlib%401%3A1.2.13.dfsg-1"
    )
    assert purl(Package("apk", "musl", "1"), None) == "pkg:apk/musl@1"


def test_bills_name_every_package_and_what_could_not_be_read() -> None:
    bill = cyclonedx(CONTENTS, DIGEST, "registry.example/app", WHEN)
    assert bill == cyclonedx(CONTENTS, DIGEST, "registry.example/app", WHEN)
    assert [row["name"] for row in bill["components"]] == ["zlib1g", "@a/b", "debian"]
    assert bill["metadata"]["component"]["hashes"][0]["content"] == DIGEST[7:]
    assert bill["metadata"]["properties"][0]["value"] == "x.jar: cut off"
    assert re.fullmatch(
        r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-8[0-9a-f]{3}-[0-9a-f]{12}", bill["serialNumber"]
    )
    document = spdx(CONTENTS, DIGEST, "registry.example/app", WHEN)
    assert len({row["SPDXID"] for row in document["packages"]}) == 3
    assert len(document["relationships"]) == 2
    assert "x.jar" in document["comment"]
    json.dumps([bill, document])


def test_sarif() -> None:
    finding = Finding(CONTENTS.packages[0], "DSA-1-1", ("CVE-2026-1111", "CVE-2026-1111"), "critical", 98, "1:1.3")
    run = sarif((finding, finding), ("no feed speaks of npm",), DIGEST, "0.1.0")["runs"][0]
    assert len(run["tool"]["driver"]["rules"]) == 1
    assert run["results"][0]["level"] == "error"
    assert "upgrade to 1:1.3" in run["results"][0]["message"]["text"]
    assert not run["invocations"][0]["executionSuccessful"]
    assert run["invocations"][0]["toolExecutionNotifications"][0]["message"]["text"] == "no feed speaks of npm"
    assert run["tool"]["driver"]["rules"][0]["properties"]["security-severity"] == "9.8"
    assert run["tool"]["driver"]["rules"][0]["properties"]["tags"].count("CVE-2026-1111") == 1
    assert sarif((), (), DIGEST, "0.1.0")["runs"][0]["invocations"][0]["executionSuccessful"]


def test_sarif_names_files_by_uri() -> None:
    found = CONTENTS.packages[0]
    odd = Found(found.package, "a b/\u00e9%\n#?.jar", found.layer)
    run = sarif((Finding(odd, "DSA-1-1", (), "low", -1, ""),), (), DIGEST, "0.1.0")["runs"][0]
    uri = run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert uri == "a%20b/%C3%A9%25%0A%23%3F.jar"
