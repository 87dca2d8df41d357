"""Each parser on a small list of its kind, and on lists that lie."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import struct
import time
import zlib
from collections.abc import Callable, Iterable

import pytest
from tests.unit.trust.packages.samples import BASH, elf, go_info, header, jar, ndb

from casemate.trust.packages import alpine, archive, binaries, debian, java, languages, rpm_database, rpm_header
from casemate.trust.packages.content import Content
from casemate.trust.packages.distribution import end_of_life, parse_os_release
from casemate.trust.packages.model import Distribution, Package, PackageListInvalid, make_package

Parser = Callable[[str, Content], Iterable[Package]]

STATUS = b"""Package: libc6
Status: install ok installed
Architecture: amd64
Source: glibc
Version: 2.36-9+deb12u4
Description: GNU C Library
 Package: not-a-field
Conffiles:
 /etc/ld.so.conf.d/x 0123

Package: zlib1g
Status: install ok installed
Architecture: amd64
Source: zlib (1:1.2.13.dfsg-1)
Version: 1:1.2.13.dfsg-1+b1

Package: gone
Status: deinstall ok config-files
Version: 1
"""


def packages(parser: Parser, data: bytes, path: str = "x") -> list[Package]:
    return list(parser(path, Content(data)))


def test_dpkg_status() -> None:
    assert packages(debian.parse_status, STATUS) == [
        Package("deb", "libc6", "2.36-9+deb12u4", source="glibc", architecture="amd64"),
        Package("deb", "zlib1g", "1:1.2.13.dfsg-1+b1", "zlib", "1:1.2.13.dfsg-1", "amd64"),
    ]
    assert packages(debian.parse_status, b"") == []


def test_dpkg_status_d() -> None:
    data = b"Package: tzdata\nVersion: 2024a-0+deb12u1\nArchitecture: all\n"
    assert packages(debian.parse_status, data, "var/lib/dpkg/status.d/tzdata")[0].version == "2024a-0+deb12u1"
    with pytest.raises(PackageListInvalid, match="no field Status"):
        packages(debian.parse_status, data)


def test_owned_files() -> None:
    assert debian.owned_files("a.list", Content(b"/.\n/usr/bin/x\n\n"), {b"usr/bin/x", b"y", b""}) == {b"usr/bin/x"}
    assert debian.owned_files("a.md5sums", Content(b"0" * 32 + b"  a/x\njunk\n"), {b"a/x", b"y"}) == {b"a/x"}
    assert alpine.owned_files(Content(b"P:a\nF:\nR:top\nF:usr/bin\nR:x\nR:y\n")) == {b"top", b"usr/bin/x", b"usr/bin/y"}


def test_apk() -> None:
    data = b"C:Q1abc=\nP:musl\nV:1.2.4-r2\nA:x86_64\no:musl\nF:lib\nR:ld.so\n\nP:libssl3\nV:3.1.4-r5\no:openssl\n\n"
    assert packages(alpine.parse_installed, data) == [
        Package("apk", "musl", "1.2.4-r2", architecture="x86_64"),
        Package("apk", "libssl3", "3.1.4-r5", source="openssl"),
    ]


def test_python() -> None:
    data = b"Metadata-Version: 2.1\r\nName: Ruamel_YAML\r\nVersion: 0.18.5\r\n\r\nVersion: 9\n"
    assert packages(languages.parse_metadata, data) == [Package("pypi", "ruamel-yaml", "0.18.5")]


def test_npm() -> None:
    assert packages(languages.parse_package_json, b'{"name":"@a/b","version":"1.0.0","x":[{}]}') == [
        Package("npm", "@a/b", "1.0.0")
    ]
    assert packages(languages.parse_package_json, b'{"type":"module"}') == []


def test_composer() -> None:
    row = {"name": "Symfony/HTTP-Foundation", "version": "v6.3.1", "extra": None}
    for value in ([row], {"packages": [row], "dev": True}):
        assert packages(languages.parse_composer, json.dumps(value).encode()) == [
            Package("composer", "symfony/http-foundation", "v6.3.1")
        ]


def test_gem() -> None:
    stub = b"# -*- encoding: utf-8 -*-\n# stub: nokogiri 1.15.4 x86_64-linux lib\n\nGem::Specification.new do |s|\n"
    assert packages(languages.parse_gemspec, stub) == [Package("gem", "nokogiri", "1.15.4")]
    plain = b'Gem::Specification.new do |s|\n  s.name = "rake".freeze\n  s.version = Gem::Version.new("13.0.6")\nend\n'
    assert packages(languages.parse_gemspec, plain) == [Package("gem", "rake", "13.0.6")]


def test_go() -> None:
    text = (
        b"path\texample.org/x\nmod\texample.org/x\t(devel)\t\ndep\tgolang.org/x/net\tv0.17.0\th1:a=\n"
        b"dep\tgithub.com/a/old\tv1.0.0\n=>\tgithub.com/b/new\tv1.0.1\th1:b=\n"
    )
    found = packages(binaries.parse_executable, elf({b".text": b"x" * 64, b".go.buildinfo": go_info(text)}))
    assert [(row.name, row.version) for row in found] == [
        ("stdlib", "1.21.3"),
        ("golang.org/x/net", "v0.17.0"),
        ("github.com/b/new", "v1.0.1"),
    ]


def test_rust() -> None:
    crates = {
        "packages": [
            {"name": "serde", "version": "1.0.1", "source": "crates.io"},
            {"name": "cc", "version": "1", "kind": "build"},
        ]
    }
    data = elf({b".dep-v0": zlib.compress(json.dumps(crates).encode())})
    assert packages(binaries.parse_executable, data) == [Package("cargo", "serde", "1.0.1")]


def test_an_executable_without_either() -> None:
    assert packages(binaries.parse_executable, elf({b".text": b"x"})) == []
    assert packages(binaries.parse_executable, b"#!/bin/sh\n") == []


POM = b"#Generated\ngroupId=org.apache.logging.log4j\nartifactId=log4j-core\nversion=2.14.1\n"
POM_PATH = "META-INF/maven/org.apache.logging.log4j/log4j-core/pom.properties"


def test_java_nested() -> None:
    inner = jar({POM_PATH: POM})
    manifest = b"Manifest-Version: 1.0\r\nImplementation-Title: app\r\nImplementation-Version: 3.2\r\n\r\n"
    outer = jar(
        {
            "META-INF/MANIFEST.MF": manifest,
            "BOOT-INF/lib/log4j-core-2.14.1.jar": inner,
            "lib/guava-31.1-jre.jar": jar({"a": b""}),
        }
    )
    found = packages(java.parse_archive, b"#!/bin/sh\nexec java -jar $0\n" + outer, "srv/app-3.2.jar")
    assert [(row.name, row.version) for row in found] == [
        ("app", "3.2"),
        ("org.apache.logging.log4j:log4j-core", "2.14.1"),
        ("guava", "31.1-jre"),
    ]


def bundle(*lines: str) -> bytes:
    return "\r\n".join(("Manifest-Version: 1.0", *lines, "", "")).encode()


GUICE = bundle("Bundle-SymbolicName: com.google.inject;singleton:=true", "Bundle-Version: 4.2.3")
CGLIB = b"groupId=cglib\nartifactId=cglib\nversion=3.2.12\n"


@pytest.mark.parametrize(
    ("path", "manifest", "poms", "names"),
    [
        # What was shaded into it has its properties; its own name stands in the manifest alone.
        ("usr/share/java/guice.jar", GUICE, {"cglib/cglib": CGLIB},
         ["cglib:cglib 3.2.12", "com.google.inject:guice 4.2.3"]),
        ("x/log4j-core-2.14.1.jar", GUICE, {"org.apache.logging.log4j/log4j-core": POM},
         ["org.apache.logging.log4j:log4j-core 2.14.1"]),
        # Debian's other name for the same version.
        ("x/maven3-cglib.jar", bundle("Implementation-Version: 3.2.12", "Bundle-SymbolicName: a.b"),
         {"cglib/cglib": CGLIB}, ["cglib:cglib 3.2.12"]),
        ("x/commons-lang3.jar", bundle("Bundle-SymbolicName: org.apache.commons.lang3", "Bundle-Version: 3.12.0"), {},
         ["org.apache.commons:commons-lang3 3.12.0"]),
        ("x/guava-31.1-jre.jar", bundle("Bundle-SymbolicName: com.google.guava"), {}, ["guava 31.1-jre"]),
        ("x/a-1.jar", bundle("Implementation-Vendor-Id: org.v", "Bundle-SymbolicName: b.c"), {}, ["org.v:a 1"]),
        ("x/a.jar", bundle("Bundle-SymbolicName: b c", "Bundle-Version: 1"), {}, []),
        ("x/a.jar", bundle("Implementation-Version: 1"), {}, []),
    ],
)  # fmt: skip
def test_java_by_manifest(path: str, manifest: bytes, poms: dict[str, bytes], names: list[str]) -> None:
    files = {f"META-INF/maven/{where}/pom.properties": data for where, data in poms.items()}
    found = packages(java.parse_archive, jar({"META-INF/MANIFEST.MF": manifest, **files}), path)
    assert [f"{row.name} {row.version}" for row in found] == names


def test_os_release_and_its_end() -> None:
    data = b'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\nID=debian\n'
    found = parse_os_release("etc/os-release", Content(data))
    assert found == Distribution("debian", "12", "bookworm", "Debian GNU/Linux 12 (bookworm)")
    assert end_of_life(found) == "2028-06-30"
    assert end_of_life(Distribution("alpine", "3.18.4")) == "2025-05-09"
    assert end_of_life(Distribution("almalinux", "8.9")) == "2029-05-31"
    assert end_of_life(Distribution("plan9", "4")) is None


# rpm


def test_rpm_header() -> None:
    found = rpm_header.parse(header(BASH), want_files=True)
    assert found.package == Package("rpm", "bash", "2:5.1.8-6.el9", "", "5.1.8-6.el9", "x86_64", "m:1")
    assert found.files == {b"usr/bin/bash", b"bin/sh"}
    assert rpm_header.parse(header({1000: "gpg-pubkey", 1001: "1"}), want_files=True).package is None


def test_rpm_ndb() -> None:
    data = ndb([header(BASH), header({**BASH, 1000: "bash-doc"})])
    owned: set[bytes] = set()
    assert [row.name for row in rpm_database.parse_database("Packages.db", Content(data), owned)] == [
        "bash",
        "bash-doc",
    ]
    assert owned == {b"usr/bin/bash", b"bin/sh"}


# hostile


@pytest.mark.parametrize(
    ("parser", "data"),
    [
        (debian.parse_status, b"Package: a\nPackage: b\nStatus: x ok installed\nVersion: 1\n"),
        (debian.parse_status, b"Status: install ok installed\nVersion: 1\n"),
        (debian.parse_status, b"Package: a\nStatus: install ok installed\n"),
        (debian.parse_status, b"\x7fELF junk\n"),
        (debian.parse_status, b"Package: a\nStatus: install ok installed\nVersion: 1\nSource: a (b) c\n"),
        (debian.parse_status, b"Package: a\x1b[31m\nStatus: install ok installed\nVersion: 1\n"),
        (debian.parse_status, b"Package: a\nStatus: install ok installed\nVersion: " + b"1" * 10_000_000 + b"\n"),
        (alpine.parse_installed, b"P:a\nP:b\nV:1\n\n"),
        (alpine.parse_installed, b"V:1\n\n"),
        (alpine.parse_installed, b"\0\0\0\0"),
        (alpine.parse_installed, b"P:a\nV:" + b"9" * 10_000_000 + b"\n\n"),
        (languages.parse_metadata, b"Name: a\n\nVersion: 1\n"),
        (languages.parse_metadata, b"Name: a\nVersion: 1\xe2\x80\xae2\n"),
        (languages.parse_package_json, b"{"),
        (languages.parse_package_json, b"[" * 1_000_000),
        (languages.parse_package_json, b'{"name":["a"],"version":"1"}'),
        (languages.parse_package_json, b'{"name":"a","version":"' + b"1" * 10_000_000 + b'"}'),
        (languages.parse_package_json, b'{"name":"\xff\xfe","version":"1"}'),
        (languages.parse_composer, b'{"packages":[{"name":1}]}'),
        (languages.parse_composer, b'"x"'),
        (languages.parse_gemspec, b"Gem::Specification.new do |s|\n  s.name = File.read('x')\nend"),
        (rpm_database.parse_database, b"\0" * 4096),
        (rpm_database.parse_database, b"SQLite format 3\0" + b"\xff" * 4096),
        (rpm_database.parse_database, b"RpmP" + b"\xff" * 4096),
        (rpm_database.parse_database, ndb([header(BASH)])[:4100]),
        (rpm_database.parse_database, ndb([header(BASH)]).replace(b"BlbS", b"BlbX")),
        (rpm_database.parse_database, ndb([b"\xff" * 64])),
        (binaries.parse_executable, elf({b".go.buildinfo": go_info(b"")[:40]})),
        (binaries.parse_executable, elf({b".go.buildinfo": b"x" * 64})),
        (binaries.parse_executable, elf({b".go.buildinfo": b"\xff Go buildinf:\x08\x00" + bytes(32)})),
        (binaries.parse_executable, elf({b".go.buildinfo": b"\xff Go buildinf:\x08\x02" + bytes(16) + b"\xff" * 32})),
        (binaries.parse_executable, elf({b".go.buildinfo": go_info(b"dep\n")})),
        (binaries.parse_executable, elf({b".dep-v0": b"x"})),
        (binaries.parse_executable, elf({b".dep-v0": zlib.compress(bytes(100_000_000))})),
        (binaries.parse_executable, elf({b".dep-v0": zlib.compress(b'{"packages":[{"name":1}]}')})),
        (java.parse_archive, b"PK\3\4 cut off"),
        (java.parse_archive, jar({POM_PATH: POM})[:-30]),
        (java.parse_archive, jar({POM_PATH: POM}).replace(b"PK\3\4", b"PK\3\5")),
        (java.parse_archive, jar({POM_PATH: b"version=" + b"1" * 70_000})),
        (java.parse_archive, jar({POM_PATH: POM.replace(b"2.14.1", b"1" * 1000)})),
    ],
)  # fmt: skip
def test_a_list_that_lies_is_refused(parser: Parser, data: bytes) -> None:
    with pytest.raises(PackageListInvalid) as caught:
        packages(parser, data)
    assert len(caught.value.detail) < 1000


def test_archives_in_archives_end() -> None:
    data = jar({"a": b""})
    for _ in range(6):
        data = jar({"x.jar": data})
    with pytest.raises(PackageListInvalid, match="deep"):
        packages(java.parse_archive, data)


def test_a_bomb_inside_an_archive() -> None:
    """A gibibyte of zeros in a jar in a jar; the bound is met before the bytes are."""
    inner = jar({"b.jar": bytes(300 << 20)})
    with pytest.raises(PackageListInvalid, match="allowed"):
        packages(java.parse_archive, inner)
    lying = bytearray(jar({POM_PATH: bytes(50 << 20)}))
    place = lying.rfind(b"PK\1\2")
    lying[place + 24 : place + 28] = struct.pack("<I", 100)
    with pytest.raises(PackageListInvalid, match="and says 100"):
        packages(java.parse_archive, bytes(lying))


def test_a_directory_that_says_it_has_too_many_entries() -> None:
    with pytest.raises(PackageListInvalid, match="unpacks to more"):
        list(archive.members("x", Content(jar({"a": b"", "b": b""})), archive.Budget(1 << 20, entries=3)))


def test_a_path_trick_in_a_jar_stays_a_name() -> None:
    data = jar({"../../../etc/cron.d/x.jar": jar({"../../pwn": b"x"}), f"../../{POM_PATH}": POM})
    assert [row.name for row in packages(java.parse_archive, data)] == ["org.apache.logging.log4j:log4j-core"]


def sqlite_bytes(script: str, rows: Iterable[tuple[object, ...]] = ()) -> bytes:
    database = sqlite3.connect(":memory:")
    database.executescript(script)
    database.executemany("INSERT INTO Packages VALUES (?, ?)", rows) if rows else None
    database.commit()
    return database.serialize()


PACKAGES_TABLE = "CREATE TABLE Packages (hnum INTEGER PRIMARY KEY, blob BLOB NOT NULL);"


def test_rpm_sqlite() -> None:
    data = bytearray(sqlite_bytes(PACKAGES_TABLE, [(1, header(BASH)), (2, header({1000: "gpg-pubkey"}))]))
    data[18:20] = b"\2\2"  # as rpm leaves it: with a write-ahead log
    assert [row.name for row in packages(rpm_database.parse_database, bytes(data))] == ["bash"]


ENDLESS = (
    "CREATE VIEW Packages AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x AS blob FROM n;"
)


@pytest.mark.parametrize(
    "script",
    [
        ENDLESS,
        "CREATE TABLE Other (x);",
        "CREATE TABLE Packages (hnum, x);",
        PACKAGES_TABLE + "INSERT INTO Packages VALUES (1, 'text');",
    ],
)
def test_a_database_that_is_a_program_is_refused(script: str) -> None:
    with pytest.raises(PackageListInvalid):
        packages(rpm_database.parse_database, sqlite_bytes(script))


def test_a_generated_column_cannot_run_for_ever() -> None:
    script = (
        "CREATE TABLE Packages (hnum INTEGER PRIMARY KEY, blob AS (zeroblob(200000000)));"
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 2000) "
        "INSERT INTO Packages (hnum) SELECT x FROM n;"
    )
    start = time.monotonic()
    with pytest.raises(PackageListInvalid):
        packages(rpm_database.parse_database, sqlite_bytes(script))
    assert time.monotonic() - start < 10


def test_a_name_or_version_must_be_there_and_bounded() -> None:
    for name, version in (("", "1"), ("a", ""), ("a" * 513, "1"), ("a", "1" * 513), ("a b", "1"), ("a", "1\n")):
        with pytest.raises(PackageListInvalid):
            make_package("deb", name, version)


SHAPES = [
    b"\n",
    b" ",
    b"a",
    b"Package: ",
    b"P:",
    b"\t",
    b"Name :",
    b"s.name = ",
    b'"',
    b"(",
    b"# stub: ",
    b"groupId",
    b"{",
    b"[",
    b"A=",
    b"=",
    b"\0",
    b"PK\5\6",
]
PARSERS: list[Parser] = [
    debian.parse_status,
    alpine.parse_installed,
    languages.parse_metadata,
    languages.parse_package_json,
    languages.parse_composer,
    languages.parse_gemspec,
    java.parse_archive,
    rpm_database.parse_database,
    lambda path, content: [Package("deb", parse_os_release(path, content).id, "1")],
]


@pytest.mark.parametrize("shape", SHAPES)
def test_no_shape_makes_a_parser_slow(shape: bytes) -> None:
    for parser in PARSERS:
        for data in (
            shape * (200_000 // len(shape)),
            b"Package:" + shape * (200_000 // len(shape)) + b"x",
            b"Name:" + shape * 100_000 + b"\nx",
        ):
            start = time.monotonic()
            with contextlib.suppress(PackageListInvalid):
                list(parser("x", Content(data)))
            assert time.monotonic() - start < 3, (parser, shape)
