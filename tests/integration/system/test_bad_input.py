"""What people type wrong or on purpose: each is refused with a code and a remedy, and leaves nothing."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from tests.integration.daemons import rootfs_tar
from tests.integration.system.site import IMAGE, Site, refused

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_made")]


@pytest.mark.parametrize(
    "argv",
    [
        ["--no-such-flag", IMAGE, "true"],
        ["-m", "lots", IMAGE, "true"],
        ["--cpus", "-1", IMAGE, "true"],
        ["--cpus", "nan", IMAGE, "true"],
        ["--pids-limit", "many", IMAGE, "true"],
        ["-p", "99999:1", IMAGE, "true"],
        ["-p", "1-5:1-3", IMAGE, "true"],
        ["-v", "relative:nor/absolute", IMAGE, "true"],
        ["--mount", "type=magic,target=/x", IMAGE, "true"],
        ["--ulimit", "nofile", IMAGE, "true"],
        ["--restart", "sometimes", IMAGE, "true"],
        ["--isolation", "bubblewrap", IMAGE, "true"],
        ["--network", "bridge0/../..", IMAGE, "true"],
        [],
    ],
    ids=lambda argv: " ".join(argv[:2]) or "nothing",
)
def test_malformed_flags(site: Site, argv: list[str]) -> None:
    refused(site, "cli.usage", "run", *argv)


@pytest.mark.parametrize(
    ("code", "argv"),
    [
        ("argument.invalid", ["-m", "1k", IMAGE, "true"]),
        ("argument.invalid", ["--cpuset-cpus", "9-1", IMAGE, "true"]),
        ("argument.invalid", ["--platform", "a/b/c/d/e", IMAGE, "true"]),
        ("isolation.mount_target_refused", ["--tmpfs", "/proc", IMAGE, "true"]),
        ("isolation.mount_target_refused", ["--tmpfs", "/a/../../etc", IMAGE, "true"]),
        ("isolation.sysctl_refused", ["--sysctl", "kernel.core_pattern=|/bin/sh", IMAGE, "true"]),
        ("api.request_invalid", ["--sysctl", "../../x=1", IMAGE, "true"]),
        ("argument.invalid", ["--hostname", "a b\nc", IMAGE, "true"]),
        ("api.request_invalid", ["--name", "../../etc", IMAGE, "true"]),
        ("argument.invalid", ["--add-host", "a b:1.2.3.4\n5.6.7.8", IMAGE, "true"]),
        ("argument.invalid", ["--dns", "1.1.1.1\noptions x", IMAGE, "true"]),
        ("isolation.unavailable", ["--isolation", "microvm", IMAGE, "true"]),
        ("pod.not_found", ["--pod", "nowhere", IMAGE, "true"]),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_values_that_no_container_can_have(site: Site, code: str, argv: list[str]) -> None:
    """Refused by the daemons, whoever checked first: the command line may know better names for some."""
    done = site("--json", "run", "--rm", *argv)
    text = done.stderr.decode(errors="replace")
    assert done.returncode == 125, (done.returncode, text)
    if "cli.usage" not in text:
        refused(site, code, "run", "--rm", *argv)
    assert '"remedy":' in text


@pytest.mark.parametrize("target", ["/proc", "/sys/kernel", "/dev", "/a/../../etc", "/data/../proc", "//proc/./1"])
def test_a_refused_target_leaves_no_volume(site: Site, target: str) -> None:
    """Asked before the volume is made: neither it nor the container is there afterwards, also without --rm."""
    for verb in ("run", "create"):
        refused(site, "isolation.mount_target_refused", verb, "--mount", f"type=volume,source=fresh,target={target}",
                IMAGE, "true")  # fmt: skip
        refused(site, "isolation.mount_target_refused", verb, "-v", f"fresh:{target}", IMAGE, "true")
    assert b"fresh" not in site("volume", "ls").stdout


@pytest.mark.parametrize(
    "entry", ["=x", "", "A B", "A" * 200_000], ids=["no name", "empty", "a name with a space", "200,000 bytes"]
)
def test_malformed_environment(site: Site, entry: str) -> None:
    """What cannot be a variable is refused or passes as it is written; nothing in between."""
    done = site("run", "--rm", "-e", entry, IMAGE, "true") if len(entry) < 100_000 else None
    if done is None:
        done = site("run", "--rm", "--env-file", "/dev/stdin", IMAGE, "true", stdin=f"A={entry}\n".encode())
    if done.returncode != 0:
        assert done.returncode == 125, done.stderr
        assert b"remedy:" in done.stderr
        assert b"internal" not in done.stderr


@pytest.mark.parametrize("data", [b"A=\xff\xfe\n", b"A=1\0B=2\n", b"=\n", b"A" * 3_000_000 + b"=1\n"])
def test_malformed_environment_files(site: Site, data: bytes) -> None:
    done = site("run", "--rm", "--env-file", "/dev/stdin", IMAGE, "true", stdin=data)
    assert done.returncode == 125, (done.returncode, done.stderr[:300])
    assert b"remedy:" in done.stderr
    assert b"internal" not in done.stderr


@pytest.mark.parametrize(
    "reference",
    ["BAD:REF:", "a//b", "-x", "a" * 300, "a:" + "t" * 129, "a@sha256:12", "../../etc/passwd", "http://a/b", "a b",
     "a\x1b[31m:1", "é/ü", "a@md5:" + "0" * 32],
)  # fmt: skip
def test_malformed_references(site: Site, reference: str) -> None:
    for argv in (["run", "--rm", "--", reference, "true"], ["pull", "--", reference], ["tag", IMAGE, reference]):
        done = site("--json", *argv)
        assert done.returncode == 125, (argv, done.returncode)
        assert b'"remedy":' in done.stderr, (argv, done.stderr)
        assert b"\x1b" not in done.stderr, "nothing from outside steers the terminal"


def test_unknown_things(site: Site) -> None:
    refused(site, "image.not_found", "run", "--pull", "never", "nothing:here", "true")
    for argv in (["start", "nobody"], ["exec", "nobody", "true"], ["logs", "nobody"], ["cp", "nobody:/x", "/tmp"]):
        done = site(*argv)
        assert done.returncode in (1, 125), argv
        assert b"nobody" in done.stderr


@pytest.mark.parametrize("user", ["ghost", "1000:ghosts", "99999999", "-1", "root:root:root", "0; id"])
def test_a_user_that_is_not_there(site: Site, user: str) -> None:
    done = site("--json", "run", "--rm", f"--user={user}", IMAGE, "true")
    assert done.returncode == 125, (done.returncode, done.stderr)
    assert b'"remedy":' in done.stderr, done.stderr


def test_a_command_that_is_not_there(site: Site) -> None:
    refused(site, "container.command_missing", "run", "--rm", IMAGE)
    refused(site, "container.command_not_found", "run", "--rm", IMAGE, "nope", exit_code=127)
    refused(site, "container.command_not_executable", "run", "--rm", IMAGE, "/etc/passwd", exit_code=126)


def test_a_name_that_is_taken(site: Site) -> None:
    problem = refused(site, "name.taken", "run", "-d", "--name", "canary", IMAGE, "true")
    assert "canary" in str(problem["detail"])
    assert "rm" in str(problem["remedy"])


FILE, LINK, SYM, FOLDER = tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE


def archive(*entries: tuple[str, bytes, str]) -> bytes:
    """A root file system with *entries* (name, kind, link name or content) behind what busybox needs."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, text in entries:
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, 0o755
            data = text.encode() if kind == FILE else b""
            info.size, info.linkname = len(data), "" if kind == FILE else text
            tar.addfile(info, io.BytesIO(data))
    return rootfs_tar().rstrip(b"\0").ljust(_body(rootfs_tar()), b"\0") + raw.getvalue()


def _body(data: bytes) -> int:
    """Where the entries of a tar end: the next whole block after its last byte that is not zero, and file padding."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        last = tar.getmembers()[-1]
        return last.offset_data + (last.size + 511) // 512 * 512


@pytest.mark.parametrize(
    ("code", "entries"),
    [
        ("image.layer_escapes", [("../escaped", FILE, "x")]),
        ("image.layer_escapes", [("a/../../../escaped", FILE, "x")]),
        ("image.layer_escapes", [("h", LINK, "../../etc/shadow")]),
        ("image.layer_invalid", [("l", SYM, "/"), ("l/escaped", FILE, "x")]),
        ("image.layer_invalid", [("f", FILE, "x"), ("f/below", FILE, "x")]),
        ("image.layer_invalid", [("n" * 300, FILE, "x")]),
        ("image.layer_invalid", [("/".join(["part" * 10] * 125), FILE, "x")]),
        ("image.layer_invalid", [("h", LINK, "absent")]),
    ],
    ids=["dotdot", "dotdot inside", "hard link out", "through a link", "below a file", "300 bytes", "5,000 bytes",
         "link to nothing"],
)  # fmt: skip
def test_a_layer_that_lies(site: Site, tmp_path: Path, code: str, entries: list[tuple[str, bytes, str]]) -> None:
    path = tmp_path / "bad.tar"
    path.write_bytes(archive(*entries))
    refused(site, code, "image", "import", "--format", "rootfs", str(path), "bad:1")
    assert not list(tmp_path.parent.glob("escaped")) + list(site.folder.rglob("escaped"))


def test_absolute_names_and_links_stay_in_the_container(site: Site, tmp_path: Path) -> None:
    """An absolute name is one below the root, as tar has it; a link to the host's file leads to the container's."""
    mark = f"casemate-mark-{os.getpid()}"
    path = tmp_path / "absolute.tar"
    path.write_bytes(archive((f"/tmp/{mark}", FILE, "inside"), ("steal", SYM, "../../../../etc/hostname")))
    try:
        done = site("image", "import", "--format", "rootfs", str(path), "absolute:1")
        assert done.returncode == 0, done.stderr
        assert site("run", "--rm", "absolute:1", "cat", f"/tmp/{mark}").stdout == b"inside"
        seen = site("run", "--rm", "-h", "inner", "absolute:1", "cat", "/steal").stdout
        assert seen != Path("/etc/hostname").read_bytes()
        assert not Path(f"/tmp/{mark}").exists()
    finally:
        assert site("rmi", "absolute:1").returncode == 0


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 10240, b"no tar at all" * 1000, rootfs_tar()[:700_000], os.urandom(100_000)],
    ids=["empty", "only zeros", "text", "cut off", "noise"],
)
def test_an_archive_that_is_none(site: Site, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bad.tar"
    path.write_bytes(data)
    for format_ in ("rootfs", "docker-archive"):
        done = site("--json", "image", "import", "--format", format_, str(path), "bad:1")
        if format_ == "rootfs" and data == b"\0" * 10240 and done.returncode == 0:
            assert site("rmi", "bad:1").returncode == 0  # an empty root is a root
            continue
        assert done.returncode == 125, (format_, done.returncode, done.stderr)
        assert b'"remedy":' in done.stderr, done.stderr
