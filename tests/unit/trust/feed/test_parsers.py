"""Each form of feed, and feeds that lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from casemate.trust.feed import alpine, csaf, debian, osv, scores
from casemate.trust.feed.ecosystems import import_command, normal, of_distribution
from casemate.trust.feed.model import BY_NAME, BY_SOURCE, Affected, FeedInvalid
from casemate.trust.feed.severity import base_score, from_score, from_word
from casemate.trust.packages.model import Distribution

pytest.importorskip("cvss", reason="missing: cvss")


def record(*events: dict[str, str], ecosystem: str = "AlmaLinux:8", **more: Any) -> bytes:
    affected = {
        "package": {"ecosystem": ecosystem, "name": "x"},
        "ranges": [{"type": "ECOSYSTEM", "events": list(events)}],
    }
    return json.dumps({"id": "T-1", "modified": "2024-01-02T03:04:05Z", "affected": [affected], **more}).encode()


def rows(data: bytes) -> list[tuple[str, str, str]]:
    found = osv.parse("t.json", data)
    assert found is not None
    return [(row.introduced, row.fixed, row.last) for row in found.affected]


def test_osv_ranges() -> None:
    assert rows(record({"introduced": "0"}, {"fixed": "2"})) == [("", "2", "")]
    assert rows(record({"introduced": "0"})) == [("", "", "")]
    assert rows(record({"introduced": "1"}, {"last_affected": "3"})) == [("1", "", "3")]
    # Events may come in any order, and open and close more than once.
    assert rows(
        record({"fixed": "4"}, {"introduced": "3"}, {"introduced": "0"}, {"fixed": "10"}, {"introduced": "9"})
    ) == [
        ("", "4", ""),
        ("9", "10", ""),
    ]
    assert rows(record({"introduced": "0"}, {"fixed": "0"}, {"introduced": "5"}, {"fixed": "6"})) == [("5", "6", "")]


def test_osv_an_impossible_range_is_every_version() -> None:
    found = osv.parse("t.json", record({"introduced": "9"}, {"fixed": "2"}))
    assert found is not None
    assert found.doubtful == 1
    assert Affected("AlmaLinux:8", "x", BY_NAME) in found.affected


def test_osv_listed_versions_and_names() -> None:
    value = {"id": "M-1", "affected": [{"package": {"ecosystem": "PyPI", "name": "A_b"}, "versions": ["1", "2"]}]}
    found = osv.parse("t.json", json.dumps(value).encode())
    assert found is not None
    assert found.affected == (
        Affected("PyPI", "a-b", BY_NAME, "1", "", "1"),
        Affected("PyPI", "a-b", BY_NAME, "2", "", "2"),
    )


def test_osv_severity_and_aliases() -> None:
    vector = [{"type": "CVSS_V3", "score": "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H"}]
    found = osv.parse(
        "t.json", record({"introduced": "0"}, severity=vector, aliases=["CVE-2024-1"], related=["T-1", "CVE-2024-2"])
    )
    assert found is not None
    assert (found.severity, found.score, found.aliases) == ("critical", 98, ("CVE-2024-1", "CVE-2024-2"))
    found = osv.parse("t.json", record({"introduced": "0"}, summary="Important: kernel update"))
    assert found is not None
    assert found.severity == "high"
    assert osv.parse("t.json", record({"introduced": "0"}, withdrawn="2024-01-01T00:00:00Z")) is None
    assert osv.parse("t.json", record({"introduced": "0"}, ecosystem="Unheard-of")) is None


def test_cvss_words() -> None:
    assert base_score("AV:N/AC:L/Au:N/C:C/I:C/A:C") == 100
    assert base_score("CVSS:4.0/AV:N/AC:L/AT:N/PR:N/UI:N/VC:H/VI:H/VA:H/SC:N/SI:N/SA:N") == 93
    assert [from_score(score) for score in (-1, 0, 1, 39, 40, 70, 90, 100)] == [
        "unknown", "none", "low", "low", "medium", "high", "critical", "critical",
    ]  # fmt: skip
    assert [from_word(word) for word in ("MODERATE", "Important", "unimportant", "?")] == [
        "medium",
        "high",
        "none",
        "unknown",
    ]


HEADER = "advisory\trelease\tsource\tfixed\tcves\n"


def test_debian_advisories() -> None:
    data = f"{HEADER}DSA-5380-1\tbullseye\txorg-server\t2:1.20.11-1+deb11u6\tCVE-2023-1393 CVE-2023-1394\n".encode()
    data += b"DSA-1-1\tlenny\tvlc\t<not-affected>\tCVE-2011-1684\nDSA-2\tjessie\tvirtualbox\t<end-of-life>\t\n"
    found, unrepaired = debian.parse_advisories("t", data)
    assert unrepaired.affected == (Affected("Debian:8", "virtualbox", BY_SOURCE),)
    assert found.affected == (Affected("Debian:11", "xorg-server", BY_SOURCE, "", "2:1.20.11-1+deb11u6"),)
    assert found.aliases == ("CVE-2023-1393", "CVE-2023-1394")


def test_debian_tracker() -> None:
    state = {
        "bookworm": {"status": "open", "urgency": "high"},
        "bullseye": {"status": "resolved", "fixed_version": "1.2-3"},
        "buster": {"status": "resolved", "fixed_version": "0"},
        "sid": {"status": "open"},
    }
    (found,) = debian.parse_tracker(
        "t", json.dumps({"zlib": {"CVE-2024-1": {"releases": state, "description": "d"}}}).encode()
    )
    assert found.severity == "high"
    assert found.affected == (
        Affected("Debian:12", "zlib", BY_SOURCE),
        Affected("Debian:11", "zlib", BY_SOURCE, "", "1.2-3"),
    )


def test_alpine() -> None:
    fixes = {"1.2.3-r0": ["CVE-2020-1 CVE-2020-2 (+ regression fix)", "XSA-3"], "0": ["CVE-2020-9"], "1.1-r0": None}
    data = {"distroversion": "v3.18", "reponame": "main", "packages": [{"pkg": {"name": "musl", "secfixes": fixes}}]}
    found = list(alpine.parse("main.json", json.dumps(data).encode()))
    assert [(row.ident, row.aliases) for row in found] == [("CVE-2020-1", ("CVE-2020-2",)), ("XSA-3", ())]
    assert found[0].affected == (Affected("Alpine:v3.18", "musl", BY_SOURCE, "", "1.2.3-r0"),)


def vex(**changes: Any) -> dict[str, Any]:
    def product(ident: str, **helper: str) -> dict[str, Any]:
        return {"product": {"product_id": ident, "name": ident, "product_identification_helper": helper}}

    def relation(platform: str, component: str) -> dict[str, Any]:
        return {
            "full_product_name": {"product_id": f"{platform}:{component}", "name": ""},
            "product_reference": component,
            "relates_to_product_reference": platform,
        }

    branches = [
        {"branches": [product("BaseOS-9", cpe="cpe:/o:redhat:enterprise_linux:9::baseos")]},
        product("EUS", cpe="cpe:/o:redhat:rhel_eus:9.2::baseos"),
        product("openssl-1:3.0.7-25.el9.x86_64", purl="pkg:rpm/redhat/openssl@3.0.7-25.el9?arch=x86_64&epoch=1"),
        product("openssl-1:3.0.7-25.el9.src", purl="pkg:rpm/redhat/openssl@3.0.7-25.el9?arch=src&epoch=1"),
        product("compat-openssl11"),
    ]  # fmt: skip
    names = ["openssl-1:3.0.7-25.el9.x86_64", "openssl-1:3.0.7-25.el9.src", "compat-openssl11"]
    value = {
        "document": {
            "category": "csaf_vex",
            "aggregate_severity": {"text": "Moderate"},
            "tracking": {"current_release_date": "2024-05-01T0"},
        },
        "product_tree": {
            "branches": branches,
            "relationships": [relation(p, n) for p in ("BaseOS-9", "EUS") for n in names],
        },
        "vulnerabilities": [
            {
                "cve": "CVE-2024-5",
                "title": "openssl: x",
                "product_status": {
                    "fixed": [f"{p}:{n}" for p in ("BaseOS-9", "EUS") for n in names[:2]],
                    "known_affected": ["BaseOS-9:compat-openssl11"],
                },
                "scores": [{"cvss_v3": {"vectorString": "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H"}}],
            }
        ],
    }
    return value | changes


def test_csaf() -> None:
    (found,) = csaf.parse("t.json", json.dumps(vex()).encode())
    assert (found.ident, found.severity, found.score, found.modified) == ("CVE-2024-5", "medium", 98, "2024-05-01")
    assert found.affected == (
        Affected("Red Hat:9", "openssl", BY_NAME, "", "1:3.0.7-25.el9"),
        Affected("Red Hat:9", "compat-openssl11", BY_SOURCE),
    )


def test_scores() -> None:
    assert list(scores.parse_epss("t", b"#model_version:v1\ncve,epss,percentile\nCVE-2024-1111,0.5,0.9\n")) == [
        ("CVE-2024-1111", 0.5)
    ]
    data = {"count": 1, "vulnerabilities": [{"cveID": "CVE-2024-1111", "dateAdded": "2024-02-03"}]}
    assert list(scores.parse_kev("t", json.dumps(data).encode())) == [("CVE-2024-1111", "2024-02-03")]


def test_names_of_ecosystems() -> None:
    assert normal("Red Hat:enterprise_linux:8::appstream") == "Red Hat:8"
    assert normal("Ubuntu:22.04:LTS") == "Ubuntu:22.04"
    assert of_distribution(Distribution("alpine", "3.18.4")) == "Alpine:v3.18"
    assert of_distribution(Distribution("almalinux", "8.9")) == "AlmaLinux:8"
    assert of_distribution(Distribution("debian", "")) is None
    assert of_distribution(None) is None


def osv_all(path: str, data: bytes) -> list[Any]:
    return [osv.parse(path, data)]


DEEP = b'{"id":"x","affected":' + b"[" * 100_000
BAD_VECTOR = record({"introduced": "0"}, severity=[{"type": "CVSS_V3", "score": "CVSS:3.1/AV:X"}])


@pytest.mark.parametrize(
    ("parse", "data"),
    [
        (osv_all, b""),
        (osv_all, b"{"),
        (osv_all, b"[]"),
        (osv_all, DEEP),
        (osv_all, b'{"id":"\xff"}'),
        (osv_all, record()),
        (osv_all, record({"fixed": "1"})),
        (osv_all, record({"unheard": "1"})),
        (osv_all, record({"introduced": "0"}, {"fixed": "1" * 10_000_000})),
        (osv_all, record({"introduced": "0"}, id="x" * 1000)),
        (osv_all, record({"introduced": "0"}, id="x\x1b[0m")),
        (osv_all, record({"introduced": "0"}, aliases=["a"] * 10 + [f"A-{n}" for n in range(600)])),
        (osv_all, record(*[{"introduced": "0"}] * 20_000)),
        (osv_all, BAD_VECTOR),
        (osv_all, record({"introduced": "0"}, severity=[{"type": "CVSS_V3", "score": "CVSS:3.1/" + "A" * 1_000_000}])),
        (debian.parse_advisories, b""),
        (debian.parse_advisories, HEADER.encode() + b"DSA-1-1\tbookworm\tx\t1\tCVE-2024-1111"),
        (debian.parse_advisories, HEADER.encode() + b"DSA-1-1\tbookworm\tx\n"),
        (debian.parse_advisories, HEADER.encode() + b"DSA-1-1\tnowhere\tx\t1\t\n"),
        (debian.parse_advisories, HEADER.encode() + b"DSA-1-1\tbookworm\tx\t-\t\n"),
        (debian.parse_advisories, HEADER.encode() + b"DSA-1-1\tbookworm\tx\t1\tDROP TABLE\n"),
        (debian.parse_advisories, b"\xff\xfe\n"),
        (debian.parse_tracker, b'{"x":{"CVE-1":{"releases":{"bookworm":{"status":"new word"}}}}}'),
        (debian.parse_tracker, b'{"x":{"CVE-1":{"releases":{"bookworm":{"status":"resolved"}}}}}'),
        (debian.parse_tracker, b'{"x":{"CVE-1":{"rel'),
        (alpine.parse, b'{"distroversion":"../x","packages":[]}'),
        (alpine.parse, b'{"distroversion":"v3.18","packages":[{"pkg":{"name":"x","secfixes":{"1":[" "]}}}]}'),
        (alpine.parse, b'{"distroversion":"v3.18"}'),
        (csaf.parse, json.dumps(vex(document={"category": "csaf_base"})).encode()),
        (csaf.parse, b'{"document":{"category":"csaf_vex"},"product_tree":{"branches":' + b'[{"branches":' * 100_000),
        (scores.parse_epss, b"cve,epss,percentile\nCVE-2024-1111,0.5"),
        (scores.parse_epss, b"cve,epss,percentile\nCVE-2024-1111,7\n"),
        (scores.parse_epss, b"cve,epss,percentile\nCVE-2024-1111,nan\n"),
        (scores.parse_epss, b"html\n"),
        (scores.parse_kev, b'{"count":2,"vulnerabilities":[{"cveID":"CVE-2024-1111","dateAdded":"2024-01-01"}]}'),
        (scores.parse_kev, b'{"count":1,"vulnerabilities":[{"cveID":"x","dateAdded":"2024-01-01"}]}'),
    ],
)
def test_a_feed_that_lies_is_refused(parse: Callable[[str, bytes], Any], data: bytes) -> None:
    with pytest.raises(FeedInvalid) as caught:
        list(parse("t.json", data))
    assert len(caught.value.detail) < 1000


def test_the_command_that_brings_a_feed() -> None:
    """What an error tells people to type works as it is: kinds that do not say their day get it from the flag."""
    for ecosystem, told in (
        ("Debian:12", "debian-tracker FILE --date YYYY-MM-DD"),
        ("Alpine:v3.20", "alpine-secdb FILE --date YYYY-MM-DD"),
        ("Red Hat:9", "csaf-vex FILE"),
        ("AlmaLinux:8", "osv FILE"),
        ("PyPI", "osv FILE"),
    ):
        assert import_command(ecosystem) == f"`casemate feed import {told}`"
