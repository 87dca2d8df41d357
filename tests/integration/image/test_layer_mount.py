"""A converted layer, mounted by the kernel, is what `tar` extracts from the same bytes: names, modes, owners, times,
attributes, hard links, devices, sparse files; and overlayfs takes our whiteouts and opaque marks."""

import errno
import gzip
import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from casemate.image.convert import convert_layer
from casemate.image.errors import DigestMismatch, LayerInvalid, LayerTooLarge
from casemate.image.jobs import Limits
from casemate.image.store import Store
from casemate.spec.errors import DiskFull

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount"),
]


def run(*command: str, **options) -> bytes:
    return subprocess.run(command, check=True, capture_output=True, timeout=60, **options).stdout


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "state")
    made.create()
    return made


@pytest.fixture
def mounted(tmp_path):
    places = []

    def mount(path: Path) -> Path:
        place = tmp_path / f"mount{len(places)}"
        place.mkdir()
        run("mount", "-t", "squashfs", "-o", "loop,ro", str(path), str(place))
        places.append(place)
        return place

    yield mount
    for place in reversed(places):
        run("umount", str(place))


def convert(store: Store, data: bytes, **limits):
    return convert_layer(store, None, Limits(**limits), lambda _attempt: iter([data]))


def tree(root: Path) -> dict[str, tuple]:
    found: dict[str, tuple] = {}
    inodes: dict[int, list[str]] = {}
    for path in sorted([root, *root.rglob("*")]):
        status = path.lstat()
        name = str(path.relative_to(root))
        kind = stat.S_IFMT(status.st_mode)
        extra: object = None
        if kind == stat.S_IFREG:
            extra = path.read_bytes()
            inodes.setdefault(status.st_ino, []).append(name)
        elif kind == stat.S_IFLNK:
            extra = path.readlink()
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            extra = status.st_rdev
        try:
            names = os.listxattr(path, follow_symlinks=False)
        except OSError as error:  # a squashfs without any attribute says that it has none of them at all
            if error.errno != errno.EOPNOTSUPP:
                raise
            names = []
        attributes = {key: os.getxattr(path, key, follow_symlinks=False) for key in names}
        found[name] = (oct(status.st_mode), status.st_uid, status.st_gid, int(status.st_mtime), extra, attributes)
    groups = {tuple(names) for names in inodes.values() if len(names) > 1}
    found["hard links"] = tuple(sorted(groups))
    return found


@pytest.fixture
def source(tmp_path) -> Path:
    root = tmp_path / "source"
    (root / "bin").mkdir(parents=True)
    (root / "bin/su").write_bytes(os.urandom(300_000))
    os.chown(root / "bin/su", 0, 42)
    (root / "bin/su").chmod(0o4755)
    os.link(root / "bin/su", root / "bin/su.link")
    os.setxattr(root / "bin/su.link", "user.note", bytes(range(256)))
    (root / "bin/ping").write_bytes(b"ping")
    os.setxattr(root / "bin/ping", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
    (root / "bin/sh").symlink_to("/nowhere/../dash")
    os.lchown(root / "bin/sh", 5, 6)
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    os.setxattr(root / "tmp", "user.folder", b"f")
    deep = root / "/".join(["long" * 12] * 5)[1:]
    deep.mkdir(parents=True)
    (deep / ("n" * 255)).write_text("long name")
    (root / "umlaut-\udcff\udcfe").write_bytes(b"not utf-8")
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "disk", stat.S_IFBLK | 0o660, os.makedev(8, 1))
    os.mkfifo(root / "fifo")
    with (root / "sparse").open("wb") as stream:
        for place in (0, 1 << 20, 5 << 20):
            stream.seek(place)
            stream.write(os.urandom(5000))
        stream.truncate(8 << 20)
    (root / "empty").touch()
    return root


@pytest.mark.parametrize(
    "options",
    [
        ("--format=gnu",),
        ("--format=pax", "--xattrs", "--xattrs-include=*"),
        ("--format=gnu", "--sparse"),
        ("--format=pax", "--sparse", "--sparse-version=0.0"),
        ("--format=pax", "--sparse", "--sparse-version=0.1"),
        ("--format=pax", "--sparse", "--sparse-version=1.0"),
        ("--format=pax", "--numeric-owner", "--owner=1000000000", "--group=3000000000"),
    ],
)
def test_mounted_layer_is_what_tar_extracts(store, mounted, source, tmp_path, options):
    data = run("tar", "--create", "--directory", str(source), *options, ".")
    plain = tmp_path / "plain"
    plain.mkdir()
    run(
        "tar",
        "--extract",
        "--preserve-permissions",
        "--same-owner",
        "--xattrs",
        "--xattrs-include=*",
        "--directory",
        str(plain),
        input=data,
    )
    record = convert(store, data)
    assert tree(mounted(store.staged_path(record.squashfs_digest))) == tree(plain)
    again = convert(store, data)
    assert again == record, "the same layer must give the same bytes"


def test_overlay_takes_whiteouts_and_opaque_folders(store, mounted, tmp_path):
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    for name in ("gone", "kept", "hidden/below", "whole/old", "replaced/old"):
        (lower / name).parent.mkdir(parents=True, exist_ok=True)
        (lower / name).write_text(name)
    for name in (".wh.gone", "hidden/.wh..wh..opq", "hidden/fresh", "whole/.wh.old", ".wh.replaced", "replaced/new"):
        (upper / name).parent.mkdir(parents=True, exist_ok=True)
        (upper / name).write_text(name)
    places = []
    for folder in (lower, upper):
        record = convert(store, run("tar", "--create", "--directory", str(folder), "."))
        places.append(mounted(store.staged_path(record.squashfs_digest)))
    merged = tmp_path / "merged"
    merged.mkdir()
    run("mount", "-t", "overlay", "-o", f"ro,lowerdir={places[1]}:{places[0]}", "overlay", str(merged))
    try:
        files = {str(path.relative_to(merged)) for path in merged.rglob("*") if path.is_file()}
    finally:
        run("umount", str(merged))
    assert files == {"kept", "hidden/fresh", "replaced/new"}


def test_full_disk_leaves_nothing(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place))
    try:
        store = Store(place)
        store.create()
        with pytest.raises(DiskFull):
            convert(store, tar_of(os.urandom(9 << 20)))
        assert [path for path in place.rglob("*") if path.is_file()] == []
    finally:
        run("umount", str(place))


def tar_of(data: bytes) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        info = tarfile.TarInfo("f")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return raw.getvalue()


def test_wrong_diff_id_bomb_and_bad_layer_leave_nothing(store):
    with pytest.raises(DigestMismatch):
        convert_layer(store, "sha256:" + "0" * 64, Limits(), lambda _attempt: iter([tar_of(b"x")]))
    with pytest.raises(LayerTooLarge, match="max_ratio"):
        convert(store, gzip.compress(tar_of(bytes(80 << 20)), 9), max_ratio=100)
    with pytest.raises(LayerTooLarge, match="max_layer_bytes"):
        convert(store, gzip.compress(tar_of(bytes(8 << 20))), max_layer_bytes=1 << 20)
    with pytest.raises(LayerInvalid):
        convert(store, b"junk" * 1000)
    assert list((store.root / "staging").iterdir()) == []
    assert list((store.root / "layers").iterdir()) == []


def test_shifted_owners_for_kernels_without_idmapped_squashfs(store, mounted, source):
    data = run("tar", "--create", "--directory", str(source), "./bin", "./tmp", "./fifo")
    record = convert(store, data, id_shift=1_000_000_000)
    root = mounted(store.staged_path(record.squashfs_digest))
    assert record.id_shift == 1_000_000_000
    assert {path.lstat().st_uid for path in [root, *root.rglob("*")]} <= {1_000_000_000, 1_000_000_005}
    assert (root / "bin/su").stat().st_gid == 1_000_000_042
    assert (root / "bin/su").stat().st_mode & 0o7777 == 0o4755
    with pytest.raises(LayerInvalid):
        convert(
            store,
            run("tar", "--create", "--owner=4294967000", "--directory", str(source), "./bin"),
            id_shift=1_000_000_000,
        )
