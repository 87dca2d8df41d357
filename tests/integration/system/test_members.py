"""A member of the group is not root by another name; somebody outside of it is nobody; every use is written down."""

from __future__ import annotations

import os
import pwd
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.daemons import USER, ensure_user
from tests.integration.system.site import IMAGE, Account, Canary, Site, account, installed, refused

pytestmark = pytest.mark.root
SETTINGS: dict[str, str] = {}


@pytest.fixture(scope="module")
def member() -> Iterator[Account]:
    ensure_user()
    with account(pwd.getpwnam(USER).pw_gid) as made:
        yield made


@pytest.fixture(scope="module")
def trusted() -> Iterator[Account]:
    """A member who holds the grant host_paths, and no other."""
    ensure_user()
    with account(pwd.getpwnam(USER).pw_gid) as made:
        yield made


@pytest.fixture(scope="module")
def site(trusted: Account) -> Iterator[Site]:
    with installed(CASEMATE_GRANTS_HOST_PATHS=trusted.name) as made:
        yield made


@pytest.fixture
def theirs(site: Site, trusted: Account) -> Iterator[Path]:
    """A folder of the trusted member's on the host, readable by nobody else."""
    folder = site.folder / "theirs"
    folder.mkdir()
    (folder / "file").write_text("mine\n")
    for path in (folder, folder / "file"):
        os.chown(path, trusted.uid, trusted.gid)
    folder.chmod(0o700)
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def test_a_member_runs_containers(site: Site, member: Account) -> None:
    done = site("run", "--rm", IMAGE, "id", "-u", user=member)
    assert (done.returncode, done.stdout) == (0, b"0\n"), done.stderr
    assert b"canary" in site("ps", user=member).stdout


@pytest.mark.usefixtures("nothing_made")
@pytest.mark.parametrize(
    ("grant", "flags"),
    [
        ("host_paths", ["-v", "/etc:/x"]),
        ("host_paths", ["-v", "/:/x:ro"]),
        ("host_paths", ["--mount", "type=bind,source=/tmp,target=/x"]),
        ("devices", ["--device", "/dev/null"]),
        ("capabilities", ["--cap-add", "SYS_ADMIN"]),
        ("capabilities", ["--cap-add", "ALL"]),
        ("host_namespaces", ["--pid", "host"]),
        ("host_namespaces", ["--ipc", "host"]),
        ("host_namespaces", ["--network", "host"]),
        ("privileged", ["--privileged"]),
        ("privileged", ["--security-opt", "seccomp=unconfined"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_without_a_grant_each_privilege_is_refused_by_its_name(
    site: Site, member: Account, grant: str, flags: list[str]
) -> None:
    problem = refused(site, "access.grant_missing", "run", "--rm", *flags, IMAGE, "true", user=member)
    assert grant in str(problem["detail"])
    assert f"grants.{grant}" in str(problem["remedy"])


@pytest.mark.usefixtures("nothing_made")
def test_exec_is_no_way_around(site: Site, member: Account) -> None:
    refused(site, "hostd.wrong_state", "exec", "--privileged", Canary.NAME, "true", user=member)


def test_what_root_was_granted_is_not_lent(site: Site, member: Account) -> None:
    """Root runs a container with a host path, another privileged: a member enters neither, nor copies, nor starts."""
    secret = site.folder / "lent"
    secret.mkdir()
    (secret / "key").write_text("root only\n")
    secret.chmod(0o700)
    try:
        for name, flags in (("bound", ["-v", f"{secret}:/x"]), ("mighty", ["--privileged"])):
            done = site("run", "-d", "--name", name, *flags, IMAGE, "sleep", "1000")
            assert done.returncode == 0, done.stderr
            for argv in (["exec", name, "cat", "/x/key"], ["cp", f"{name}:/x/key", "-"], ["export", name],
                         ["cp", "-", f"{name}:/"], ["run", "--rm", "--pod", name, IMAGE, "true"][:0]):  # fmt: skip
                if not argv:
                    continue
                tried = site("--json", *argv, user=member, stdin=b"\0" * 10240)
                assert b"root only" not in tried.stdout, argv
                assert tried.returncode == 125, (argv, tried.returncode)
                assert b"access.grant_missing" in tried.stderr, (argv, tried.stderr)
            assert site("exec", name, "true").returncode == 0, "root may"
    finally:
        site("rm", "-f", "bound", "mighty")


def test_one_grant_is_not_another(site: Site, trusted: Account) -> None:
    problem = refused(site, "access.grant_missing", "run", "--rm", "--privileged", IMAGE, "true", user=trusted)
    assert "'privileged'" in str(problem["detail"])


def test_with_the_grant_a_member_reaches_what_is_theirs(site: Site, trusted: Account, theirs: Path) -> None:
    script = "cat /x/file; echo new > /x/made"
    done = site("run", "--rm", "-v", f"{theirs}:/x", IMAGE, "sh", "-c", script, user=trusted)
    assert (done.returncode, done.stdout) == (0, b"mine\n"), done.stderr
    assert (theirs / "made").stat().st_uid == trusted.uid, "what root of the container makes there is the member's"


def test_with_the_grant_a_member_reaches_nothing_else(site: Site, trusted: Account, theirs: Path) -> None:
    """Root's files: by their path, through a link, through `..`, below a bind of the whole host, by setuid."""
    secret = site.folder / "secret"
    secret.mkdir(exist_ok=True)
    (secret / "key").write_text("root only\n")
    secret.chmod(0o700)
    link = theirs / "link"
    link.symlink_to(secret)
    for source in (secret, link, theirs / "../secret", Path("/root")):
        done = site("run", "--rm", "-v", f"{source}:/x", IMAGE, "cat", "/x/key", user=trusted)
        assert done.returncode == 125, (source, done)
        assert b"root only" not in done.stdout
        assert b"remedy:" in done.stderr, done.stderr
    (secret / "key").chmod(0o600)
    script = f"cat /x{secret}/key; cat /x/etc/shadow; echo own > /x/etc/casemate-owned; chmod 4755 /x/bin/ls"
    done = site("run", "--rm", "-v", "/:/x", IMAGE, "sh", "-c", script, user=trusted)
    assert b"root only" not in done.stdout
    assert b"root:" not in done.stdout, "the shadow file was read"
    assert not Path("/etc/casemate-owned").exists()
    assert not Path("/bin/ls").stat().st_mode & 0o4000


def test_a_link_that_changes_while_it_is_opened(site: Site, trusted: Account, theirs: Path) -> None:
    """The member swaps their folder for a link to root's again and again while binds of it are asked for."""
    secret = site.folder / "raced"
    secret.mkdir()
    (secret / "key").write_text("root only\n")
    secret.chmod(0o700)
    place, stop = theirs / "swapped", threading.Event()

    def swap() -> None:
        good, bad = theirs / "good", theirs / "bad"
        while not stop.is_set():
            good.mkdir(exist_ok=True)
            good.rename(place)
            place.rename(good)
            bad.symlink_to(secret)
            bad.rename(place)
            place.unlink()

    racer = threading.Thread(target=swap)
    racer.start()
    try:
        for _ in range(8):
            done = site("run", "--rm", "-v", f"{place}:/x:ro", IMAGE, "sh", "-c", "cat /x/key; ls /x", user=trusted)
            assert b"root only" not in done.stdout
            assert b"key" not in done.stdout
    finally:
        stop.set()
        racer.join()


def test_every_use_is_in_the_audit_log(site: Site, member: Account, trusted: Account, theirs: Path) -> None:
    name = f"audited-{os.getpid()}"
    done = site("run", "--rm", "--name", name, "-v", f"{theirs}:/x", IMAGE, "true", user=trusted)
    assert done.returncode == 0, done.stderr
    site("run", "--rm", "--name", f"{name}-not", "--privileged", IMAGE, "true", user=member)
    site("run", "--rm", "--name", f"{name}-root", "--cap-add", "SYS_PTRACE", IMAGE, "true")
    rows = [(str(row["who"]), str(row)) for row in site.audit()]
    assert any(f"{trusted.uid}:" in who and str(theirs) in row for who, row in rows), "who bound what"
    assert any("0:root" in who and "CAP_SYS_PTRACE" in row for who, row in rows), "root's uses too"
    assert any(f"{member.uid}:" in who and "privileged" in row and "refused" in row for who, row in rows), "refusals"
    assert site("audit", "verify").returncode == 0


def test_the_audit_log_is_not_for_members(site: Site, member: Account) -> None:
    done = site("--json", "audit", "ls", user=member)
    assert done.returncode == 125, done.stdout
    assert b'"access.denied"' in done.stderr, done.stderr


def test_who_is_outside_of_the_group_cannot_connect(site: Site) -> None:
    with account() as stranger:
        refused(site, "cli.socket_denied", "ps", user=stranger)
        script = f"import socket; socket.socket(socket.AF_UNIX).connect({str(site.daemons.socket)!r})"
        argv = [
            "setpriv",
            f"--reuid={stranger.uid}",
            f"--regid={stranger.gid}",
            "--clear-groups",
            "/usr/bin/python3",
            "-c",
        ]
        tried = subprocess.run([*argv, script], capture_output=True, check=False)
        assert b"PermissionError" in tried.stderr
        # Nor hostd's, for anybody but casemated: neither a member nor a stranger.
        hostd = site.folder / "host-run/hostd.sock"
        tried = subprocess.run([*argv, script.replace(str(site.daemons.socket), str(hostd))], capture_output=True,
                               check=False)  # fmt: skip
        assert tried.returncode != 0


def test_a_member_cannot_speak_to_hostd(site: Site, member: Account) -> None:
    hostd = site.folder / "host-run/hostd.sock"
    script = (
        "import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.settimeout(5)\n"
        f"s.connect({str(hostd)!r})\ns.send(b'x'); print(s.recv(10) or 'hung up')"
    )
    argv = ["setpriv", f"--reuid={member.uid}", f"--regid={member.gid}",
            f"--groups={','.join(map(str, member.groups))}", "/usr/bin/python3", "-c", script]  # fmt: skip
    tried = subprocess.run(argv, capture_output=True, check=False, timeout=20)
    assert tried.returncode != 0 or b"hung up" in tried.stdout


def test_a_caller_is_not_believed_by_name(site: Site, member: Account) -> None:
    """Whatever a request says of itself, what counts is what the kernel says of its connection."""
    body = b'{"image":"busybox","command":["true"],"security":{"privileged":true}}'
    lines = [
        b"POST /v1/containers HTTP/1.1", b"Host: x", b"Content-Type: application/json", b"X-Forwarded-User: root",
        b"X-Casemate-Uid: 0", b"Authorization: Basic cm9vdDo=", b"Content-Length: %d" % len(body), b"Connection: close",
    ]  # fmt: skip
    request = b"\r\n".join(lines) + b"\r\n\r\n" + body
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX)\n"
        f"s.connect({str(site.daemons.socket)!r}); s.sendall({request!r})\n"
        "while d := s.recv(65536): sys.stdout.buffer.write(d)"
    )
    argv = ["setpriv", f"--reuid={member.uid}", f"--regid={member.gid}",
            f"--groups={','.join(map(str, member.groups))}", "/usr/bin/python3", "-c", script]  # fmt: skip
    answer = subprocess.run(argv, capture_output=True, check=False, timeout=20).stdout
    status = answer.split(b" ", 2)[1:2]
    assert status in ([b"400"], [b"403"], [b"201"]), answer
    # Nothing is made on the host by a creation; the start is where the caller's grants are asked for.
    for row in site.daemons.client.containers("status=created", everything=True):
        refused(site, "access.grant_missing", "start", row.id, user=member)
        site.daemons.client.remove(row.id, force=True)


def test_a_socket_that_is_no_caller(site: Site) -> None:
    """The API's socket takes nobody's word over TCP either: nothing listens there unless it is asked for."""
    pid = site.daemons.processes["casemated"].pid
    inodes = {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            assert f"socket:[{line.split()[9]}]" not in inodes, f"casemated has a {table} socket"
