"""Folders of the host in a machine: seen, written, owned as the bundle says, and nothing beside them."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
from pathlib import Path
from typing import Any

import harness
import pytest

from casemate.host.mounts import unmount
from casemate.host.syscalls import mount

pytestmark = pytest.mark.root

#: Ids of nobody: what a pod's range would be.
FIRST = 900_000_000 + os.getpid() * 65_536 % 90_000_000


def start(host: harness.Host, name: str, config: dict[str, Any]) -> tuple[subprocess.Popen[bytes], Path]:
    process, folder = harness.conmon(host, name, host.bundle(name, config))
    started = host.vm("start", name)
    assert started.returncode == 0, (started.stderr, (folder / "answer").read_text())
    return process, folder


def run(host: harness.Host, name: str, config: dict[str, Any]) -> str:
    """What the container wrote; it must end with 0."""
    process, folder = start(host, name, config)
    process.wait(60)
    log = (folder / "log").read_text()
    assert host.vm("delete", name).returncode == 0
    assert (folder / "exits" / name).read_text() == "0", log
    return "\n".join(line.split(" ", 3)[3] for line in log.splitlines())


def bind(source: Path, target: str, *options: str) -> dict[str, Any]:
    return {"destination": target, "type": "bind", "source": str(source), "options": ["rbind", *options]}


def capabilities(*names: str) -> dict[str, list[str]]:
    return {kind: list(names) for kind in ("bounding", "effective", "inheritable", "permitted")}


def maps(first: int = FIRST) -> dict[str, Any]:
    row = [{"containerID": 0, "hostID": first, "size": 65_536}]
    return {"uidMappings": row, "gidMappings": row}


def folder_with(tmp_path: Path, name: str, owner: int = 0) -> Path:
    made = tmp_path / name
    made.mkdir()
    (made / "file").write_text("host\n")
    for one in (made, made / "file"):
        os.chown(one, owner, owner)
    return made


def test_a_folder_both_ways(host: harness.Host, base_layer: Path, tmp_path: Path) -> None:
    data = folder_with(tmp_path, "data", FIRST)
    config: Any = harness.configuration([base_layer], "sleep", "1000")
    config["mounts"] += [bind(data, "/data"), bind(data, "/fixed", "ro")]
    config["linux"] |= maps()
    process, _ = start(host, "both", config)
    assert host.vm("exec", "both", "cat", "/data/file").stdout == "host\n"
    (data / "later").write_text("from the host")
    assert host.vm("exec", "both", "cat", "/data/later").stdout == "from the host"
    (data / "later").write_text("changed")
    assert host.vm("exec", "both", "cat", "/fixed/later").stdout == "changed"
    refused = host.vm("exec", "both", "sh", "-c", "echo x > /fixed/file")
    assert refused.returncode != 0
    assert "Read-only file system" in refused.stderr
    assert host.vm("delete", "--force", "both").returncode == 0
    process.wait(20)


def test_a_folder_that_is_read_only_with_all_below_it(host: harness.Host, base_layer: Path, tmp_path: Path) -> None:
    """As Kubernetes and Docker ask for it. By the guest, and by the host, whatever the guest does."""
    data = folder_with(tmp_path, "data")
    (data / "below").mkdir()
    mount("tmpfs", data / "below", "tmpfs", 0)
    try:
        script = "for at in /data /data/below; do mount -o remount,bind,rw /data; echo x > $at/file || echo no; done"
        config: Any = harness.configuration(
            [base_layer], "sh", "-c", f"{script} 2>/dev/null; grep -c ' /data 9p ro' /proc/mounts"
        )
        # Beside "rbind" as engines write it.
        config["mounts"].append(bind(data, "/data", "bind", "rprivate", "rro"))
        assert run(host, "rro", config) == "no\nno\n1"
        config["process"]["capabilities"] = capabilities("CAP_SYS_ADMIN")
        config["process"]["args"][-1] = f"{script} 2>/dev/null"
        assert run(host, "rro2", config) == "no\nno"
        assert (data / "file").read_text() == "host\n"
    finally:
        unmount(data / "below")


def test_a_mounts_own_map_of_owners(host: harness.Host, base_layer: Path, tmp_path: Path) -> None:
    """As Kubernetes asks for it where pods have a user namespace: the container sees the owners on the disk."""
    data = folder_with(tmp_path, "data")
    data.chmod(0o777)
    script = "stat -c %u:%g /plain/file /own/file; echo x > /own/made"
    config: Any = harness.configuration([base_layer], "sh", "-c", script, user={"uid": 3, "gid": 4})
    config["mounts"] += [bind(data, "/plain"), bind(data, "/own", "idmap")]
    config["linux"] |= maps()
    assert run(host, "mapped", config) == "65534:65534\n0:0"
    assert ((data / "made").stat().st_uid, (data / "made").stat().st_gid) == (3, 4)


def test_a_map_of_owners_that_a_mount_brings(host: harness.Host, base_layer: Path, tmp_path: Path) -> None:
    data = folder_with(tmp_path, "data")
    row = [{"containerID": 0, "hostID": 1000, "size": 10}]
    config: Any = harness.configuration([base_layer], "stat", "-c", "%u:%g", "/own/file")
    config["mounts"].append(bind(data, "/own") | {"uidMappings": row, "gidMappings": row})
    assert run(host, "brought", config) == "1000:1000"
    # Without one it would be the container's, which has none.
    config["mounts"][-1] = bind(data, "/own", "ridmap")
    refused = host.vm("run", "--bundle", str(host.bundle("unmapped", config)), "unmapped", stdin=subprocess.DEVNULL)
    assert (refused.returncode, "0 and 0 id mappings" in refused.stderr) == (1, True), refused


def test_owners_and_modes_are_those_of_the_pods_range(host: harness.Host, base_layer: Path, tmp_path: Path) -> None:
    data = folder_with(tmp_path, "data", FIRST)
    script = "umask 22; echo guest > /data/made; mkdir /data/folder; chown 7:8 /data/made; chmod 4750 /data/made"
    config: Any = harness.configuration([base_layer], "sh", "-c", f"{script}; stat -c %u:%g /data/made /data/folder")
    config["mounts"].append(bind(data, "/data"))
    config["linux"] |= maps()
    config["process"]["capabilities"] = capabilities("CAP_CHOWN", "CAP_FOWNER", "CAP_DAC_OVERRIDE", "CAP_FSETID")
    assert run(host, "owners", config) == "7:8\n0:0"
    made = (data / "made").stat()
    assert (data / "made").read_text() == "guest\n"
    assert (made.st_uid, made.st_gid, stat.S_IMODE(made.st_mode)) == (FIRST + 7, FIRST + 8, 0o4750)
    assert (data / "folder").stat().st_uid == FIRST


def test_another_user_of_the_guest_has_only_the_rights_of_that_user(
    host: harness.Host, base_layer: Path, tmp_path: Path
) -> None:
    data = folder_with(tmp_path, "data", FIRST)
    data.chmod(0o777)
    (data / "file").chmod(0o600)
    script = "cat /data/file 2>&1; echo mine > /data/mine; id -u"
    config: Any = harness.configuration([base_layer], "sh", "-c", script, user={"uid": 1000, "gid": 1000})
    config["mounts"].append(bind(data, "/data"))
    config["linux"] |= maps()
    assert "Permission denied" in run(host, "user", config)
    assert (data / "mine").stat().st_uid == FIRST + 1000


def test_a_single_file(host: harness.Host, base_layer: Path, tmp_path: Path) -> None:
    data = folder_with(tmp_path, "data")
    config: Any = harness.configuration([base_layer], "sh", "-c", "cat /etc/one; echo more >> /etc/one; ls /etc/one")
    config["mounts"].append(bind(data / "file", "/etc/one"))
    assert run(host, "file", config).startswith("host\n")
    assert (data / "file").read_text() == "host\nmore\n"


def test_nothing_beside_the_folder(host: harness.Host, base_layer: Path, tmp_path: Path) -> None:
    """Links, ``..`` and another folder's name lead nowhere on the host."""
    data, secret = folder_with(tmp_path, "data"), folder_with(tmp_path, "secret")
    (secret / "file").write_text("secret\n")
    (data / "link").symlink_to(secret / "file")
    (data / "up").symlink_to("../secret/file")
    (data / "shadow").symlink_to("/etc/shadow")
    script = """
        for one in link up shadow ../secret/file ../../etc/shadow; do cat /data/$one && echo REACHED; done
        ln -s /proc/self/root/etc /data/new; cat /data/new/shadow && echo REACHED
        mkdir /data/in; cd /data/in; cat ../../secret/file && echo REACHED
        ls /data/.. ; exit 0
    """
    config: Any = harness.configuration([base_layer], "sh", "-c", script)
    config["mounts"].append(bind(data, "/data"))
    text = run(host, "beside", config)
    assert "REACHED" not in text
    assert "secret" not in text.replace("/secret/", "").replace("secret/file", "")
    assert stat.S_ISLNK((data / "new").lstat().st_mode)


def test_device_nodes_of_the_host_stay_closed(host: harness.Host, base_layer: Path, tmp_path: Path) -> None:
    """A node in a shared folder is, in the guest, a device of the guest's; and the guest can make none on the host."""
    data = folder_with(tmp_path, "data")
    script = "mknod /data/node b 8 0; echo made $?; mkfifo /data/pipe; echo pipe $?"
    config: Any = harness.configuration([base_layer], "sh", "-c", script)
    config["process"]["capabilities"] = capabilities("CAP_MKNOD")
    config["mounts"].append(bind(data, "/data"))
    text = run(host, "nodes", config)
    assert "made 1" in text
    assert not (data / "node").exists()


def test_mounts_below_a_folder_come_along_and_later_ones_do_not(
    host: harness.Host, base_layer: Path, tmp_path: Path
) -> None:
    data = folder_with(tmp_path, "data")
    (data / "below").mkdir()
    (data / "later").mkdir()
    mount("tmpfs", data / "below", "tmpfs", 0)
    try:
        (data / "below/there").write_text("there\n")
        config: Any = harness.configuration([base_layer], "sleep", "1000")
        config["mounts"].append(bind(data, "/data", "ro"))
        process, _ = start(host, "below", config)
        assert host.vm("exec", "below", "cat", "/data/below/there").stdout == "there\n"
        assert host.vm("exec", "below", "sh", "-c", "echo x > /data/below/new").returncode != 0
        mount("tmpfs", data / "later", "tmpfs", 0)
        try:
            (data / "later/new").write_text("new")
            assert host.vm("exec", "below", "ls", "/data/later").stdout == ""
        finally:
            unmount(data / "later")
        assert host.vm("delete", "--force", "below").returncode == 0
        process.wait(20)
    finally:
        # Nothing of the machine's holds it: it can be unmounted at once.
        assert unmount(data / "below")


def test_a_root_that_is_a_folder(host: harness.Host, base_layer: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for part in ("bin", "etc", "tmp", "proc", "dev", "sys"):
        (root / part).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", root / "bin/busybox")
    for applet in ("sh", "cat", "mkdir", "stat", "sync", "mv", "rm", "ln", "chown"):
        (root / "bin" / applet).symlink_to("busybox")
    script = "echo inside > /etc/made; chown 33 /etc/made; mkdir -p /a/b; mv /etc/made /a/b/moved; ln /a/b/moved /a/two"
    config: Any = harness.configuration([], "sh", "-c", f"{script}; cat /a/two; stat -c %h /a/b/moved")
    del config["annotations"]["org.casemate.layers"]
    config["root"] = {"path": str(root)}
    config["process"]["capabilities"] = capabilities("CAP_CHOWN", "CAP_FOWNER")
    assert run(host, "root", config) == "inside\n2"
    assert (root / "a/b/moved").read_text() == "inside\n"
    assert (root / "a/b/moved").stat().st_uid == 33
    config["root"]["readonly"] = True
    config["process"]["args"] = ["sh", "-c", "echo x > /new 2>/dev/null || echo refused"]
    assert "refused" in run(host, "rootro", config)
    config["root"]["readonly"] = False
    config["annotations"]["org.casemate.rootfs"] = "overlay"
    config["process"]["args"] = ["sh", "-c", "echo x > /new && cat /new"]
    assert run(host, "rootover", config) == "x"
    assert not (root / "new").exists()


@pytest.mark.parametrize("kind", ["missing", "socket"])
def test_sources_that_cannot_be_shared(host: harness.Host, base_layer: Path, tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "socket":
            listener.bind(str(source))
        config: Any = harness.configuration([base_layer], "true")
        config["mounts"].append(bind(source, "/x"))
        _, folder = harness.conmon(host, f"no-{kind}", host.bundle(f"no-{kind}", config))
        answer = (folder / "answer").read_text()
    assert "microvm.share" in answer
    assert str(source) in answer
    assert not [one for one in (host.folder / "vm").iterdir() if kind in one.name]
