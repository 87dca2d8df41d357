"""What the daemons can do to the host, read from /proc: casemated and its children nothing, hostd no network."""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
import time
from pathlib import Path

import pytest
from tests.integration.daemons import USER, rootfs_tar
from tests.integration.system.site import IMAGE, Site

pytestmark = pytest.mark.root


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def assert_without_privilege(pid: int) -> None:
    seen, account = status(pid), pwd.getpwnam(USER)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(seen[name], 16) == 0, (pid, name, seen[name])
    assert seen["NoNewPrivs"] == "1"
    assert set(map(int, seen["Uid"].split())) == {account.pw_uid}
    assert set(map(int, seen["Gid"].split())) == {account.pw_gid}
    held = set(map(int, seen["Groups"].split()))
    assert held <= {account.pw_gid, *os.getgrouplist(USER, account.pw_gid)}
    assert 0 not in held


def descendants(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                for child in (task / "children").read_text().split():
                    found += [int(child), *descendants(int(child))]
    return found


def test_casemated_has_none(site: Site) -> None:
    assert_without_privilege(site.daemons.processes["casemated"].pid)


def test_it_has_nothing_open_for_writing_but_its_own(site: Site) -> None:
    pid = site.daemons.processes["casemated"].pid
    allowed = (str(site.folder / "state"), str(site.folder / "run"), str(site.folder / "casemated.log"), "/dev/null",
               "socket:", "pipe:", "anon_inode:", "/memfd:")  # fmt: skip
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(entry)
            flags = int(Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text().split("flags:")[1].split()[0], 8)
        except FileNotFoundError:
            continue
        if flags & os.O_ACCMODE != os.O_RDONLY:
            assert target.startswith(allowed), f"descriptor {entry.name}: {target}"


def test_its_user_can_write_nowhere_else(site: Site) -> None:
    """As casemated's own uid, without capabilities: every folder of ours and of the system, but its own two."""
    hostd = site.folder / "host-state"
    places = [hostd, hostd / "layers", hostd / "pods", site.folder / "host-run", site.folder, Path("/etc"),
              Path("/usr/bin"), Path("/root"), Path("/var/lib"), Path("/run"), Path("/sys/fs/cgroup"),
              Path("/proc/sys/kernel")]  # fmt: skip
    own = [site.folder / "state", site.folder / "run"]
    script = (
        "import os, sys\n"
        "for place in sys.argv[1:]:\n"
        "    try:\n"
        "        fd = os.open(place + '/casemate-probe', os.O_CREAT | os.O_WRONLY)\n"
        "        os.unlink(place + '/casemate-probe'); print('wrote', place)\n"
        "    except OSError as error:\n"
        "        print('refused', place)\n"
    )
    argv = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", "--bounding-set=-all", "--no-new-privs",
            "/usr/bin/python3", "-c", script, *map(str, places + own)]  # fmt: skip
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == [*(f"refused {place}" for place in places), *(f"wrote {place}" for place in own)]
    # Nor may it read what hostd keeps: the files of containers.
    for secret in hostd.glob("pods/*/*/upper"):
        read = subprocess.run([*argv[:8], "/bin/ls", str(secret)], capture_output=True, check=False)
        assert read.returncode != 0, secret


def test_its_children_have_none_and_bounds(site: Site, tmp_path: Path) -> None:
    """The worker that unpacks what comes from outside: caught in the middle of an import, with all of its children."""
    archive = tmp_path / "slow.tar"
    os.mkfifo(archive)
    pid = site.daemons.processes["casemated"].pid
    process = subprocess.Popen(site.argv("image", "import", "--format", "rootfs", "-", "slow:1"),
                               env=site.environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    assert process.stdin is not None
    data = rootfs_tar()
    with process:
        process.stdin.write(data)
        process.stdin.close()
        seen: dict[int, str] = {}
        while process.poll() is None:
            for child in descendants(pid):
                try:
                    name = Path(f"/proc/{child}/comm").read_text().strip()
                    assert_without_privilege(child)
                    limits = Path(f"/proc/{child}/limits").read_text()
                except (FileNotFoundError, KeyError, ProcessLookupError):
                    continue
                seen[child] = name
                if name.startswith("tar2sqfs"):
                    [line] = [one for one in limits.splitlines() if one.startswith("Max address space")]
                    assert "unlimited" not in line.split()[3], line
            time.sleep(0.001)
    assert process.returncode == 0
    assert seen, "no child of casemated was seen"
    assert site("rmi", "slow:1").returncode == 0


def test_hostd_has_no_socket_on_the_network(site: Site) -> None:
    pid = site.daemons.processes["casemate-hostd"].pid
    assert site("run", "--rm", IMAGE, "true").returncode == 0
    mine = {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()}
    for table in ("tcp", "tcp6", "udp", "udp6", "raw", "packet"):
        place = Path(f"/proc/net/{table}")
        if place.exists():
            for line in place.read_text().splitlines()[1:]:
                fields = line.split()
                inode = fields[9] if table != "packet" else fields[8]
                assert f"socket:[{inode}]" not in mine, f"hostd has a {table} socket"


def test_hostd_has_not_loaded_what_parses(site: Site) -> None:
    """No HTTP server, no decompressor for images, no database is mapped into the process that holds privilege."""
    pid = site.daemons.processes["casemate-hostd"].pid
    mapped = {line.split()[-1].rsplit("/", 1)[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()
              if "/" in line}  # fmt: skip
    for name in ("httptools", "isal", "zstandard", "_sqlite3", "wsproto"):
        assert not [one for one in mapped if name in one], name


def test_the_sockets_are_for_whom_they_are(site: Site) -> None:
    api, hostd = site.daemons.socket.stat(), (site.folder / "host-run/hostd.sock").stat()
    account = pwd.getpwnam(USER)
    assert (api.st_mode & 0o777, api.st_uid, api.st_gid) == (0o660, account.pw_uid, account.pw_gid)
    assert hostd.st_mode & 0o007 == 0
    assert hostd.st_uid in (0, account.pw_uid)


def test_containers_run_as_ids_that_are_nobody(site: Site) -> None:
    """Root of a container is a number of its own on the host, another for each pod, and supervised by conmon."""
    ids = [site("run", "-d", "--name", f"id{n}", IMAGE, "sleep", "100").stdout.decode().strip() for n in (1, 2)]
    try:
        uids = []
        for id_ in ids:
            seen = status(site.daemons.client.inspect(id_).pid)
            uid = int(seen["Uid"].split()[0])
            with pytest.raises(KeyError):
                pwd.getpwuid(uid)
            uids.append(uid)
            assert seen["NoNewPrivs"] == "1"
            assert seen["Seccomp"] == "2"
        assert abs(uids[0] - uids[1]) >= 65_536, "ranges do not overlap"
    finally:
        site("rm", "-f", *ids)
