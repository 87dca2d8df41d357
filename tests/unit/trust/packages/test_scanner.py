"""A layer scanned while it is rewritten, and layers merged to what a container sees."""

from __future__ import annotations

import io
import tarfile
import zlib

import pytest
from tests.unit.trust.packages.samples import elf, go_info

from casemate.image.observe import LayerObserver
from casemate.image.rewrite import Rewriter
from casemate.trust.packages.merge import merge
from casemate.trust.packages.model import LayerContents, Package, Setuid
from casemate.trust.packages.scanner import LayerScanner

OWNER = b"Package: r\nStatus: install ok installed\nVersion: 1\n\n"
STATUS = b"Package: libc6\nStatus: install ok installed\nSource: glibc\nVersion: 2.36-9\n\n"
RELEASE = b"ID=debian\nVERSION_ID=12\n"
METADATA = b"Name: requests\nVersion: 2.31.0\n\n"


def tar(files: list[tuple[str, bytes | None]], *, mode: int = 0o644, pax: bool = False) -> bytes:
    """Names with contents; None makes a folder of it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT if pax else tarfile.USTAR_FORMAT) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            if data is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(data)
            info.mode = mode
            if pax:
                info.pax_headers = {"SCHILY.xattr.user.x": "1"}
            archive.addfile(info, io.BytesIO(data or b""))
    return out.getvalue()


def scan(data: bytes, chunk_bytes: int = 1000) -> LayerContents:
    """The contents of a layer, read in chunks that cut headers and files anywhere; the rewritten tar stays the same."""
    plain: list[bytes] = []
    seen: list[bytes] = []
    observer: LayerScanner | None
    for out in (plain, seen):
        observer = LayerScanner() if out is seen else None
        summary = rewrite(data, out, observer, chunk_bytes, frozenset())
        if summary:
            observer = LayerScanner() if observer else None
            out.clear()
            rewrite(data, out, observer, chunk_bytes, frozenset(summary))
    assert b"".join(plain) == b"".join(seen)
    assert isinstance(observer, LayerScanner)
    return observer.finish()


def rewrite(
    data: bytes, out: list[bytes], observer: LayerObserver | None, chunk_bytes: int, skip: frozenset[int]
) -> set[int]:
    chunks = (data[place : place + chunk_bytes] for place in range(0, len(data), chunk_bytes))
    rewriter = Rewriter(
        chunks,
        lambda piece: out.append(bytes(piece)),
        max_entries=10_000,
        max_bytes=1 << 30,
        skip=skip,
        observer=observer,
    )
    return rewriter.run().superseded


@pytest.mark.parametrize("chunk_bytes", [511, 512, 4096, 1 << 20])
@pytest.mark.parametrize("pax", [False, True])
def test_a_debian_layer(chunk_bytes: int, pax: bool) -> None:
    found = scan(
        tar(
            [
                ("./etc/", None),
                ("etc/os-release", RELEASE),
                ("etc/hosts", b"x" * 5000),
                ("var/lib/dpkg/status", STATUS),
            ],
            pax=pax,
        ),
        chunk_bytes,
    )
    assert found.lists == {"var/lib/dpkg/status": (Package("deb", "libc6", "2.36-9", source="glibc"),)}
    assert found.os_release["etc/os-release"].id == "debian"
    assert not found.unreadable


def test_a_file_of_the_distribution_is_judged_by_its_feed() -> None:
    own = "usr/lib/python3/dist-packages/requests-2.31.0.dist-info/METADATA"
    other = "usr/local/lib/python3.11/site-packages/requests-2.31.0.dist-info/METADATA"
    listed = f"/.\n/lib\n/{own}\n".encode()
    files = [(own, METADATA), (other, METADATA), ("var/lib/dpkg/info/r:amd64.list", listed)]
    # A list alone is nobody's word: its package has to be installed.
    assert not scan(tar(files)).lists[own][0].owned
    found = scan(tar([*files, ("var/lib/dpkg/status", OWNER)]))
    assert found.lists[own][0].owned
    assert not found.lists[other][0].owned


def test_ownership_looks_through_the_merged_usr() -> None:
    own = "usr/lib/x/a-1.dist-info/METADATA"
    found = scan(
        tar(
            [
                (own, METADATA),
                ("var/lib/dpkg/info/r.list", b"/lib/x/a-1.dist-info/METADATA\n"),
                ("var/lib/dpkg/status", OWNER),
            ]
        )
    )
    assert found.lists[own][0].owned


def test_setuid_files_and_secrets() -> None:
    key = (
        b"-----BEGIN OPENSSH PRIVATE KEY-----\n"
        + b"b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW\n"
    )
    found = scan(
        tar([("root/.ssh/id_rsa", key), ("app/.env", b"A=1\nKEY=AKIA0123456789ABCDEF\n"), ("usr/share/doc/x", key)])
    )
    assert [(row.path, row.rule, row.line) for row in found.leaks] == [
        ("root/.ssh/id_rsa", "ssh-private-key-file", 0),
        ("root/.ssh/id_rsa", "private-key", 1),
        ("app/.env", "aws-access-key", 2),
    ]
    assert scan(tar([("usr/bin/sudo", b"x")], mode=0o4755)).setuid == (Setuid("usr/bin/sudo", 0o4755),)
    assert b"AKIA" not in repr(found).encode()


def test_the_last_entry_of_a_name_counts() -> None:
    found = scan(tar([("var/lib/dpkg/status", STATUS), ("var/lib/dpkg/status", STATUS.replace(b"libc6", b"musl"))]))
    assert [row.name for row in found.lists["var/lib/dpkg/status"]] == ["musl"]


def test_a_list_that_lies_is_named_and_the_layer_goes_on() -> None:
    found = scan(tar([("var/lib/dpkg/status", b"junk"), ("srv/x.jar", b"PK"), ("a-1.dist-info/METADATA", METADATA)]))
    assert {row.path for row in found.unreadable} == {"var/lib/dpkg/status", "srv/x.jar"}
    assert found.lists["a-1.dist-info/METADATA"]
    assert found.lists["srv/x.jar"] == ()


def test_a_list_that_is_too_large_is_named() -> None:
    scanner = LayerScanner()
    assert scanner.begin(b"var/lib/dpkg/status", b"0", 1 << 40, mode=0o644, uid=0, gid=0) is None
    found = scanner.finish()
    assert found.unreadable[0].path == "var/lib/dpkg/status"


def test_merge_takes_the_upper_file_and_keeps_what_is_not_hidden() -> None:
    lower = scan(
        tar(
            [
                ("etc/os-release", RELEASE),
                ("var/lib/dpkg/status", STATUS),
                ("a/b-1.dist-info/METADATA", METADATA),
                ("x.jar", b"PK"),
            ]
        )
    )
    upper = scan(
        tar(
            [
                ("var/lib/dpkg/status", STATUS.replace(b"2.36-9", b"2.36-10")),
                ("a/.wh..wh..opq", b""),
                (".wh.x.jar", b""),
            ]
        )
    )
    found = merge([lower, upper])
    assert [(row.package.version, row.layer) for row in found.packages] == [("2.36-10", 1)]
    assert found.distribution is not None
    assert found.end_of_life == "2028-06-30"
    assert not found.unreadable
    assert merge([lower]).unreadable


def test_merge_follows_whiteouts_of_folders() -> None:
    lower = scan(
        tar([("opt/app/lib/b-1.dist-info/METADATA", METADATA), ("opt/app/.env", b"KEY=AKIA0123456789ABCDEF\n")])
    )
    upper = scan(tar([("opt/.wh.app", b"")]))
    found = merge([lower, upper])
    assert found.packages == ()
    assert found.leaks[0].hidden  # whoever has the layer has the secret


def test_an_executable_that_is_replaced_by_another_file_is_gone() -> None:
    program = elf({b".text": bytes(200_000), b".go.buildinfo": go_info(b"dep\ta.b/c\tv1\n")})
    lower = scan(tar([("app/server", program)], mode=0o755))
    assert [row.package.name for row in merge([lower]).packages] == ["stdlib", "a.b/c"]
    upper = scan(tar([("app/server", b"#!" + bytes(200_000))], mode=0o755))
    assert merge([lower, upper]).packages == ()
    # A file that is of no interest is not noted: what it replaces is reported, too much rather than too little.
    assert merge([lower, scan(tar([("app/server", b"small")], mode=0o644))]).packages


def test_a_distribution_without_its_package_list_is_not_wholly_scanned() -> None:
    assert "debian" in merge([scan(tar([("etc/os-release", RELEASE)]))]).unreadable[0].reason
    assert not merge([scan(tar([("etc/os-release", RELEASE), ("var/lib/dpkg/status", STATUS)]))]).unreadable
    assert not merge([scan(tar([("app", b"static")]))]).unreadable


def test_repeating_a_file_does_not_disown_it() -> None:
    own = "usr/lib/python3/dist-packages/requests-2.31.0.dist-info/METADATA"
    listed = f"/{own}\n".encode()
    lower = scan(tar([(own, METADATA), ("var/lib/dpkg/info/r.list", listed), ("var/lib/dpkg/status", OWNER)]))

    def is_owned(data: bytes) -> bool:
        found = merge([lower, scan(tar([(own, data)]))]).packages
        return next(row.package.owned for row in found if row.path == own)

    assert is_owned(METADATA)
    assert not is_owned(METADATA.replace(b"2.31", b"2.32"))


@pytest.mark.parametrize("chunk_bytes", [4000, 1 << 20])
def test_of_a_large_executable_only_what_tells_is_kept(chunk_bytes: int) -> None:
    go = go_info(b"dep\ta.b/c\tv1\n")
    large = elf({b".text": bytes(17 << 20), b".go.buildinfo": go})
    found = scan(tar([("app/server", large)], mode=0o755), chunk_bytes)
    assert [row.name for row in found.lists["app/server"]] == ["stdlib", "a.b/c"]
    # What tells of Rust's crates lies anywhere: where it was not kept, the file counts as unreadable.
    audit = zlib.compress(b'{"packages":[]}')
    rust = elf({b".text": bytes(10 << 20), b".dep-v0": audit, b".data": bytes(10 << 20)})
    assert "not kept" in scan(tar([("app/rusty", rust)], mode=0o755), chunk_bytes).unreadable[0].reason
