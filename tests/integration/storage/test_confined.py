"""The confined child against hostile trees and hostile archives: it may fail, but never touch or hang the host."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import stat
import subprocess
import tarfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.integration.leaks import Scope
from tests.integration.trees import entry, make_tar, stage_layer

from casemate.host import programs, userns
from casemate.spec.errors import DiskFull
from casemate.storage import confined, rootfs
from casemate.storage.layers import LayerMounts
from casemate.storage.trash import Trash
from casemate.storage.volumes import Volumes

pytestmark = pytest.mark.root
FIRST_ID = 1_600_000_000
Work = Callable[[int], Coroutine[object, object, object]]


@dataclass
class Container:
    plan: rootfs.RootfsPlan
    layers: LayerMounts
    ids: int
    host: Path

    @property
    def root(self) -> Path:
        return self.plan.target

    def make(self, path: str, data: bytes = b"") -> Path:
        """A file of the container's, as its root would have made it."""
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        os.chown(place, FIRST_ID, FIRST_ID)
        return place

    def read(self, work: Work) -> bytes:
        """What *work* writes into a pipe."""
        reader, writer = os.pipe()
        collected: list[bytes] = []

        def collect() -> None:
            with os.fdopen(reader, "rb") as file:
                collected.append(file.read())

        thread = threading.Thread(target=collect)
        thread.start()
        try:
            asyncio.run(work(writer))
        finally:
            os.close(writer)
            thread.join()
        return collected[0]

    def archive(self, path: str, **options: object) -> dict[str, tarfile.TarInfo]:
        data = self.read(lambda out: confined.archive(self.root, self.ids, path, out, **options))
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            return {info.name: info for info in tar}

    def extract(self, data: bytes, path: str = "/", **options: object) -> None:
        number = programs.bytes_descriptor(data)
        try:
            asyncio.run(confined.extract(self.root, self.ids, path, number, **options))
        finally:
            os.close(number)

    def diff(self) -> set[str]:
        lower = rootfs.lower_fd(self.plan, self.layers, self.ids)
        try:
            data = self.read(lambda out: confined.diff(self.root, self.ids, lower, self.plan.upper, out))
        finally:
            os.close(lower)
        return {line.decode() for line in data.split(b"\0") if line}


@pytest.fixture
def container(scope: Scope) -> Iterator[Container]:
    layers = LayerMounts(scope.folder / "hs", scope.folder / "hr")
    layers.open()
    staging = scope.folder / "st" / "staging"
    image = [
        entry("etc", kind=tarfile.DIRTYPE),
        entry("etc/passwd", b"root:x:0:0::/:/bin/sh\n"),
        entry("etc/hard", kind=tarfile.LNKTYPE, linkname="etc/passwd"),
        entry("data", kind=tarfile.DIRTYPE, uid=5, gid=6, mode=0o750),
        entry("data/sub", kind=tarfile.DIRTYPE, uid=5, gid=6),
        entry("data/sub/file", b"content", uid=7, gid=8, mode=0o640, mtime=1_000_000_000),
        entry("data/link", kind=tarfile.SYMTYPE, linkname="sub/file"),
        entry("bin/tool", b"#!", mode=0o4755),
    ]
    digest = stage_layer(staging, image)
    asyncio.run(layers.adopt(staging, digest, owner_uid=0))
    plan = rootfs.plan(
        "c",
        [digest],
        target=scope.folder / "hr" / "c" / "rootfs",
        writable=scope.folder / "hs" / "c",
        first_id=FIRST_ID,
    )
    number = userns.userns_fd(FIRST_ID, 65536)
    asyncio.run(rootfs.apply(plan, layers, number))
    (scope.folder / "secret").write_text("of the host")
    (scope.folder / "secret").chmod(0o600)
    yield Container(plan, layers, number, scope.folder)
    rootfs.unmount(plan, layers)
    layers.close()
    os.close(number)


def test_an_archive_holds_owners_modes_times_and_links_of_the_pod(container: Container) -> None:
    found = container.archive("/data")
    assert set(found) == {"data", "data/sub", "data/sub/file", "data/link"}
    file = found["data/sub/file"]
    assert (file.uid, file.gid, file.mode, file.mtime, file.size) == (7, 8, 0o640, 1_000_000_000, 7)
    assert found["data/link"].linkname == "sub/file"
    assert (found["data"].uid, found["data"].mode) == (5, 0o750)


def test_an_archive_of_all_keeps_hard_links_and_setuid(container: Container) -> None:
    found = container.archive("/")
    assert found["bin/tool"].mode == 0o4755
    first, second = found["etc/passwd"], found["etc/hard"]
    assert {first.type, second.type} == {tarfile.REGTYPE, tarfile.LNKTYPE}


@pytest.mark.parametrize("path", ["/nope", "/etc/passwd/x", "/../../nope"])
def test_a_missing_path_is_named(container: Container, path: str) -> None:
    with pytest.raises((confined.PathMissing, programs.ProgramFailed)):
        container.archive(path)


def test_links_to_the_host_lead_into_the_container(container: Container) -> None:
    (container.root / "out").symlink_to(container.host / "secret")
    (container.root / "up").symlink_to("../../../../../../../../../../etc")
    assert container.archive("/out")["out"].type == tarfile.SYMTYPE
    with pytest.raises(confined.PathMissing):
        container.archive("/out", follow=True)
    assert set(container.archive("/up/passwd", follow=True)) == {"passwd"}
    assert set(container.archive("/up/passwd")) == {"passwd"}


def test_fifos_devices_and_sockets_do_not_hang_the_archive(container: Container) -> None:
    os.mkfifo(container.root / "fifo")
    os.mknod(container.root / "zero", 0o20666, os.makedev(1, 5))
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(container.root / "sock"))
    found = container.archive("/")
    assert found["fifo"].isfifo()
    assert found["zero"].ischr()
    assert "sock" not in found


def test_a_sparse_giant_is_bounded_by_bytes(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    with container.make("giant").open("r+b") as file:
        file.truncate(1 << 40)
    monkeypatch.setattr(confined, "MAX_BYTES", 1 << 30)
    with pytest.raises(confined.TreeRefused, match="bytes"):
        container.archive("/giant")
    # Its size on disk is nothing, and is counted at once.
    total, entries = asyncio.run(confined.usage(container.root, container.ids, "/giant"))
    assert (total, entries) == (0, 1)


def test_many_files_are_bounded_by_entries(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = container.make("many/0").parent
    for number in range(300):
        (folder / str(number)).touch()
    monkeypatch.setattr(confined, "MAX_ENTRIES", 100)
    with pytest.raises(confined.TreeRefused, match="more files"):
        container.archive("/many")


def test_deep_nesting_is_refused_and_not_recursed_into(container: Container) -> None:
    number = os.open(container.root, os.O_RDONLY)
    for _ in range(2100):
        os.mkdir("d", dir_fd=number)
        below = os.open("d", os.O_RDONLY, dir_fd=number)
        os.close(number)
        number = below
    os.close(number)
    with pytest.raises(confined.TreeRefused, match="nested deeper"):
        container.archive("/d")


def test_a_reader_that_goes_away_ends_the_work(container: Container) -> None:
    container.make("big", bytes(4 << 20))
    reader, writer = os.pipe()
    os.close(reader)
    try:
        asyncio.run(confined.archive(container.root, container.ids, "/big", writer))
    finally:
        os.close(writer)


def test_modules_and_name_services_in_the_tree_are_never_loaded(container: Container) -> None:
    """A container that brings its own Python library and NSS modules must not get code into the child."""
    trap = b"import os\nos.write(2, b'TRAPPED')\nraise SystemExit(77)\n"
    stdlib = Path(os.__file__).parent
    for name in ("stringprep", "pwd", "grp", "shutil", "copy", "bz2", "lzma", "gzip", "zlib", "encodings/cp437"):
        container.make(f"{stdlib}/{name}.py".lstrip("/"), trap)
        container.make(f"{name}.py", trap)
    for folder in ("lib/x86_64-linux-gnu", "lib", "usr/lib/x86_64-linux-gnu"):
        container.make(f"{folder}/libnss_files.so.2", b"not an ELF file")
    container.make("bad-name-\udcff\udcfe".encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape"))
    assert "data/sub/file" in container.archive("/")
    container.extract(make_tar([entry("new", b"x", uname="root", gname="root")]))
    with pytest.raises(confined.TreeRefused):
        container.extract(b"\x1f\x8b" + bytes(600))
    assert (container.root / "new").read_bytes() == b"x"


def test_a_tar_is_unpacked_with_owner_mode_time_and_links(container: Container) -> None:
    data = make_tar(
        [
            entry("dir", kind=tarfile.DIRTYPE, mode=0o700, uid=3, mtime=5),
            entry("dir/file", b"text", uid=1, gid=2, mode=0o4711, mtime=1_000_000),
            entry("dir/same", kind=tarfile.LNKTYPE, linkname="dir/file"),
            entry("dir/link", kind=tarfile.SYMTYPE, linkname="/etc/passwd"),
            entry("dir/pipe", kind=tarfile.FIFOTYPE),
        ]
    )
    container.extract(data, "/data")
    status = (container.root / "data/dir/file").stat()
    assert (status.st_uid, status.st_gid) == (FIRST_ID + 1, FIRST_ID + 2)
    assert (stat.S_IMODE(status.st_mode), status.st_mtime, status.st_nlink) == (0o4711, 1_000_000, 2)
    folder = (container.root / "data/dir").stat()
    assert (folder.st_uid, stat.S_IMODE(folder.st_mode), folder.st_mtime) == (FIRST_ID + 3, 0o700, 5)
    container.extract(data, "/data", owner=(0, 0))
    assert (container.root / "data/dir/file").stat().st_uid == FIRST_ID


@pytest.mark.parametrize(
    "name",
    ["../up", "a/../../up", "/absolute", "x/" * 2500 + "deep", "n" * 5000],
    ids=["dot-dot", "inner dot-dot", "absolute", "deep", "5,000 bytes"],
)
def test_names_that_lead_out_are_refused(container: Container, name: str) -> None:
    with pytest.raises((confined.TreeRefused, programs.ProgramFailed)):
        container.extract(make_tar([entry(name, b"x")]), "/data")
    assert not (container.root / "up").exists()
    assert not (container.host / "up").exists()


def test_a_link_in_the_archive_is_not_written_through(container: Container) -> None:
    data = make_tar([entry("esc", kind=tarfile.SYMTYPE, linkname="/etc"), entry("esc/passwd", b"evil")])
    with pytest.raises(confined.TreeRefused, match="link or a file"):
        container.extract(data, "/data")
    assert b"root:x" in (container.root / "etc/passwd").read_bytes()


def test_a_link_in_the_tree_is_not_written_through_either(container: Container) -> None:
    (container.root / "data/evil").symlink_to(container.host)
    with pytest.raises(confined.TreeRefused):
        container.extract(make_tar([entry("evil/secret", b"overwritten")]), "/data")
    assert (container.host / "secret").read_text() == "of the host"


def test_a_target_that_is_a_link_to_the_host_leads_into_the_container(container: Container) -> None:
    (container.root / "target").symlink_to(container.host)
    with pytest.raises((confined.TreeRefused, confined.PathMissing)):
        container.extract(make_tar([entry("x", b"x")]), "/target")
    assert not (container.host / "x").exists()


def test_hard_links_cannot_reach_out(container: Container) -> None:
    for target in ("../../secret", "/etc/passwd", "link/secret", ""):
        data = make_tar([entry("grab", kind=tarfile.LNKTYPE, linkname=target)])
        with pytest.raises((confined.TreeRefused, confined.PathMissing, programs.ProgramFailed)):
            container.extract(data, "/data")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, b"Z"])
def test_devices_and_unknown_kinds_are_refused(container: Container, kind: bytes) -> None:
    with pytest.raises(confined.TreeRefused):
        container.extract(make_tar([entry("dev", kind=kind, devmajor=1, devminor=5)]), "/data")
    assert not (container.root / "data/dev").exists() or (container.root / "data/dev").is_file()


@pytest.mark.parametrize("fields", [{"uid": 65536}, {"gid": 1 << 31}, {"uid": 4_000_000_000}])
def test_owners_outside_of_the_range_are_refused(container: Container, fields: dict[str, int]) -> None:
    with pytest.raises(confined.TreeRefused, match="owner"):
        container.extract(make_tar([entry("x", b"x", **fields)]))


def test_a_cut_off_tar_is_refused(container: Container) -> None:
    data = make_tar([entry("big", bytes(100_000))])
    with pytest.raises(confined.TreeRefused):
        container.extract(data[:50_000])


@pytest.mark.parametrize("data", [b"", b"junk" * 500], ids=["nothing", "junk"])
def test_what_is_no_tar_is_refused(container: Container, data: bytes) -> None:
    with pytest.raises(confined.TreeRefused):
        container.extract(data)


def test_more_bytes_than_allowed_are_refused(container: Container) -> None:
    with pytest.raises(confined.TreeRefused, match="more bytes"):
        container.extract(make_tar([entry("big", bytes(2 << 20))]), max_bytes=1 << 20)


def test_a_folder_and_a_file_do_not_replace_each_other(container: Container) -> None:
    with pytest.raises(confined.TreeRefused, match="replace a file"):
        container.extract(make_tar([entry("etc/passwd", kind=tarfile.DIRTYPE)]))
    with pytest.raises(confined.TreeRefused, match="replace a folder"):
        container.extract(make_tar([entry("etc", b"x")]))


def test_a_full_disk_is_said_to_be_one(scope: Scope) -> None:
    plan = rootfs.plan(
        "c", [], target=scope.folder / "r", writable=scope.folder / "w", first_id=FIRST_ID, writable_bytes=8 << 20
    )
    layers = LayerMounts(scope.folder / "hs", scope.folder / "hr")
    layers.open()
    ids = userns.userns_fd(FIRST_ID, 65536)
    asyncio.run(rootfs.apply(plan, layers, ids))
    container = Container(plan, layers, ids, scope.folder)
    try:
        with pytest.raises(DiskFull):
            container.extract(make_tar([entry("big", bytes(16 << 20))]))
    finally:
        rootfs.unmount(plan, layers)
        os.close(ids)


def test_diff_names_added_changed_and_deleted(container: Container) -> None:
    assert container.diff() == set()
    container.make("data/sub/file", b"changed")
    container.make("data/new/inner", b"added")
    (container.root / "etc/hard").unlink()
    (container.root / "bin/tool").unlink()
    (container.root / "bin").rmdir()
    (container.root / "bin").mkdir()  # opaque: all of the lower one is hidden
    (container.root / "bin/other").touch()
    assert container.diff() == {
        "C /data", "C /data/sub", "C /data/sub/file", "A /data/new", "A /data/new/inner",
        "C /etc", "D /etc/hard", "C /bin", "D /bin/tool", "A /bin/other",
    }  # fmt: skip


def test_copy_up_fills_an_empty_volume(container: Container) -> None:
    volumes = Volumes(container.host / "hs", Trash(container.host / "hs"))
    volumes.open()
    volume = volumes.create("default", "v")
    container.make("data/first", b"twice")
    os.link(container.root / "data/first", container.root / "data/second")
    os.mkfifo(container.root / "data/pipe")
    number = volumes.clone_fd(volume, container.ids)
    try:
        asyncio.run(confined.copy_up(container.root, container.ids, "/data", number))
        asyncio.run(confined.copy_up(container.root, container.ids, "/nowhere", number))
    finally:
        os.close(number)
    file = (volume.data / "sub/file").stat()
    assert (file.st_uid, file.st_gid, stat.S_IMODE(file.st_mode), file.st_size) == (7, 8, 0o640, 7)
    assert (volume.data / "second").stat().st_nlink == 2
    assert (volume.data.stat().st_uid, stat.S_IMODE(volume.data.stat().st_mode)) == (5, 0o750)
    assert (volume.data / "link").readlink() == Path("sub/file")
    assert stat.S_ISFIFO((volume.data / "pipe").stat().st_mode)


def test_copy_up_of_an_empty_folder_sets_owner_and_mode_alone(container: Container) -> None:
    volumes = Volumes(container.host / "hs", Trash(container.host / "hs"))
    volumes.open()
    folder = container.root / "empty"
    folder.mkdir()
    os.chown(folder, FIRST_ID + 999, FIRST_ID + 998)
    folder.chmod(0o2700)
    (container.root / "out").symlink_to(container.host)
    volume = volumes.create("default", "v")
    number = volumes.clone_fd(volume, container.ids)
    try:
        for path in ("/out", "/nowhere", "/etc/passwd", "/empty"):
            asyncio.run(confined.copy_up(container.root, container.ids, path, number))
    finally:
        os.close(number)
    status = volume.data.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (999, 998, 0o2700)
    assert volumes.is_empty(volume)


def test_the_child_is_nobody_on_the_host_while_it_works(container: Container) -> None:
    """Caught in the middle (it waits for a reader): its ids, capabilities, root and network are looked at."""
    container.make("big", bytes(4 << 20))
    reader, writer = os.pipe()

    async def look() -> dict[str, str]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(confined.archive(container.root, container.ids, "/big", writer))
            for _ in range(500):
                await asyncio.sleep(0.01)
                facts = [one for one in map(_facts, _children()) if one["Uid"].split()[0] == str(FIRST_ID)]
                if facts and facts[0]["CapEff"] == f"{1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 31:016x}":
                    break
            else:
                raise AssertionError("the child was never seen confined")
            os.close(reader)
            await task
            return facts[0]

    try:
        facts = asyncio.run(look())
    finally:
        os.close(writer)
    assert set(facts["Uid"].split()) == set(facts["Gid"].split()) == {str(FIRST_ID)}
    assert facts["Groups"] == ""
    assert facts["NoNewPrivs"] == "1"
    assert facts["CapInh"] == facts["CapAmb"] == "0" * 16
    for kind in ("user", "mnt", "net"):
        assert facts[kind] != os.readlink(f"/proc/self/ns/{kind}")
    assert len(facts["mounts"].splitlines()) == 1, facts["mounts"]


RUNNING = """
import os, sys, time
from casemate.host import syscalls as s
s.setns(int(sys.argv[1]), s.CLONE_NEWUSER)
os.setgroups([]); os.setresgid(0, 0, 0); os.setresuid(0, 0, 0)
s.unshare(s.CLONE_NEWNS)
s.mount(sys.argv[2], sys.argv[2], None, s.MS_BIND | s.MS_REC)
os.chdir(sys.argv[2])
s.mount("none", "data", "tmpfs", 0, "size=1m")
open("data/volume", "w").write("of the volume")
s.pivot_root(".", ".")
s.umount2(".", s.MNT_DETACH)
print("ready", flush=True)
time.sleep(60)
"""


def test_a_running_containers_volumes_are_seen_through_its_own_mounts(container: Container) -> None:
    command = ["/usr/bin/python3", "-c", RUNNING, str(container.ids), str(container.root)]
    environment = {**os.environ, "PYTHONPATH": "src"}
    with subprocess.Popen(command, pass_fds=[container.ids], stdout=subprocess.PIPE, env=environment) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        number = os.open(f"/proc/{running.pid}/ns/mnt", os.O_RDONLY)
        try:
            assert set(container.archive("/data", mount_namespace=number)) == {"data", "data/volume"}
            container.extract(make_tar([entry("new", b"x")]), "/data", mount_namespace=number)
            assert Path(f"/proc/{running.pid}/root/data/new").read_bytes() == b"x"
            (container.root / "out").symlink_to(container.host / "secret")
            with pytest.raises(confined.PathMissing):
                container.archive("/out", follow=True, mount_namespace=number)
        finally:
            os.close(number)
            running.kill()
    assert "data/volume" not in container.archive("/data")


def _children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def _facts(pid: str) -> dict[str, str]:
    found = {"Uid": "-1", "CapEff": ""}
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            key, _, value = line.partition(":")
            found[key] = value.strip()
        for kind in ("user", "mnt", "net"):
            found[kind] = os.readlink(f"/proc/{pid}/ns/{kind}")
        found["mounts"] = Path(f"/proc/{pid}/mountinfo").read_text()
    except OSError:
        pass
    return found
