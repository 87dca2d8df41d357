"""Layers, roots and volumes on the real kernel."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import mmap
import os
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.integration.leaks import Scope
from tests.integration.trees import entry, stage_layer

from casemate.host import loop, mountinfo, mounts, userns
from casemate.spec.errors import InvalidArgument
from casemate.storage import rootfs
from casemate.storage.layers import LayerCorrupt, LayerInUse, LayerMissing, LayerMounts, LayerRefused
from casemate.storage.trash import Trash
from casemate.storage.volumes import VolumeMissing, Volumes

pytestmark = pytest.mark.root
FIRST_ID = 1_500_000_000


@dataclass
class Store:
    folder: Path
    layers: LayerMounts
    trash: Trash
    volumes: Volumes

    @property
    def staging(self) -> Path:
        return self.folder / "state" / "staging"

    def stage(self, *names: str, **fields: object) -> str:
        return stage_layer(self.staging, [entry(name, name.encode(), **fields) for name in names])

    def adopt(self, digest: str) -> str:
        asyncio.run(self.layers.adopt(self.staging, digest, owner_uid=0))
        return digest

    def plan(self, layers: list[str], **options: int) -> rootfs.RootfsPlan:
        return rootfs.plan(
            "c1",
            layers,
            target=self.folder / "host-run" / "c1" / "rootfs",
            writable=self.folder / "host-state" / "c1",
            first_id=FIRST_ID,
            **options,
        )


@pytest.fixture
def store(scope: Scope) -> Store:
    state, run = scope.folder / "host-state", scope.folder / "host-run"
    layers, trash = LayerMounts(state, run), Trash(state)
    volumes = Volumes(state, trash)
    for one in (layers, trash, volumes):
        one.open()
    return Store(scope.folder, layers, trash, volumes)


@pytest.fixture
def ids() -> int:
    number = userns.userns_fd(FIRST_ID, 65536)
    yield number
    os.close(number)


def test_a_layer_is_taken_over_and_its_staged_file_goes(store: Store) -> None:
    digest = store.adopt(store.stage("etc/a"))
    path = store.layers.file(digest)
    status = path.stat()
    assert (status.st_uid, status.st_mode & 0o7777, status.st_nlink) == (0, 0o444, 1)
    assert list(store.staging.iterdir()) == []
    assert [layer.hex for layer in store.layers.list()] == [digest]


def test_adopting_again_is_no_error(store: Store) -> None:
    digest = store.adopt(store.stage("etc/a"))
    assert store.adopt(store.stage("etc/a")) == digest
    assert list(store.staging.iterdir()) == []


def test_a_wrong_digest_is_refused_and_nothing_is_kept(store: Store) -> None:
    digest = store.stage("etc/a")
    wrong = "0" * 64
    (store.staging / f"{digest}.sqfs").rename(store.staging / f"{wrong}.sqfs")
    with pytest.raises(LayerCorrupt) as caught:
        store.adopt(wrong)
    assert digest in caught.value.detail
    assert store.layers.list() == []
    assert list(store.staging.iterdir()) == []


def test_a_missing_staged_layer_is_named(store: Store) -> None:
    store.staging.mkdir(parents=True)
    with pytest.raises(LayerMissing):
        store.adopt("1" * 64)


def _refused(store: Store, digest: str, owner_uid: int = 0) -> str:
    with pytest.raises(LayerRefused) as caught:
        asyncio.run(store.layers.adopt(store.staging, digest, owner_uid=owner_uid))
    assert not store.layers.has(digest)
    return caught.value.detail


def test_a_symbolic_link_in_the_staging_folder_is_refused(store: Store) -> None:
    digest = store.stage("etc/a")
    target = store.folder / "elsewhere"
    (store.staging / f"{digest}.sqfs").rename(target)
    (store.staging / f"{digest}.sqfs").symlink_to(target)
    before = target.stat()
    _refused(store, digest)
    assert target.stat().st_mode == before.st_mode


def test_the_staging_folder_itself_may_not_be_a_link(store: Store) -> None:
    digest = store.stage("etc/a")
    store.staging.rename(store.folder / "moved")
    store.staging.symlink_to(store.folder / "moved")
    with pytest.raises(InvalidArgument):
        asyncio.run(store.layers.adopt(store.staging, digest, owner_uid=0))
    assert not store.layers.has(digest)


def test_a_file_with_a_second_name_is_refused(store: Store) -> None:
    digest = store.stage("etc/a")
    os.link(store.staging / f"{digest}.sqfs", store.folder / "second")
    assert "2 names" in _refused(store, digest)


def test_a_file_that_is_open_for_writing_is_refused(store: Store) -> None:
    digest = store.stage("etc/a")
    with (store.staging / f"{digest}.sqfs").open("ab"):
        assert "writing" in _refused(store, digest)


def test_a_file_that_is_mapped_for_writing_is_refused(store: Store) -> None:
    digest = store.stage("etc/a")
    with (store.staging / f"{digest}.sqfs").open("r+b") as file, mmap.mmap(file.fileno(), 4096):
        file.close()
        assert "writing" in _refused(store, digest)


def test_a_file_of_another_user_is_refused(store: Store) -> None:
    digest = store.stage("etc/a")
    path = store.staging / f"{digest}.sqfs"
    os.chown(path, 1234, 1234)
    assert "uid 1234" in _refused(store, digest, owner_uid=4321)
    assert path.stat().st_uid == 1234


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_what_is_no_regular_file_is_refused_and_does_not_hang(store: Store, kind: str) -> None:
    digest = hashlib.sha256(b"x").hexdigest()
    path = store.staging / f"{digest}.sqfs"
    store.staging.mkdir(parents=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mknod(path, 0o20666, os.makedev(1, 5))
    assert "not a regular file" in _refused(store, digest)


def test_a_name_that_is_no_digest_is_refused(store: Store) -> None:
    with pytest.raises(InvalidArgument):
        store.layers.file("../../etc/passwd")


def test_a_copy_is_made_from_another_file_system(store: Store, scope: Scope) -> None:
    other = scope.folder / "other"
    other.mkdir()
    mounts.tmpfs(other, size_bytes=8 << 20)
    try:
        staging = other / "staging"
        digest = stage_layer(staging, [entry("a", b"a")])
        asyncio.run(store.layers.adopt(staging, digest, owner_uid=0))
        assert store.layers.has(digest)
        assert list(staging.iterdir()) == []
    finally:
        mounts.unmount(other)


def test_a_layer_in_use_stays_and_an_unused_one_goes(store: Store) -> None:
    digest = store.adopt(store.stage("etc/a"))
    store.layers.use(digest, "somebody")
    with pytest.raises(LayerInUse):
        store.layers.remove(digest)
    assert store.layers.unmount_unused() == []
    assert store.layers.release("somebody") == [digest]
    assert store.layers.remove(digest)
    assert not store.layers.remove(digest)


def test_a_new_daemon_finds_what_is_mounted_and_no_leaked_device(store: Store) -> None:
    digest = store.adopt(store.stage("etc/a"))
    store.layers.use(digest, "c1")
    again = LayerMounts(store.folder / "host-state", store.folder / "host-run")
    again.open({"c1": [digest]})
    assert again.list()[0].mounted
    assert again.list()[0].users == ("c1",)
    assert again.leaked_devices() == []
    again.release("c1")
    assert again.unmount_unused() == [digest]


def test_a_device_that_a_crash_left_is_found_and_released(store: Store) -> None:
    digest = store.adopt(store.stage("etc/a"))
    image = os.open(store.layers.file(digest), os.O_RDONLY)
    device, path = loop.attach(image)
    os.close(image)
    assert [str(one.device) for one in store.layers.leaked_devices()] == [path]
    os.close(device)


def test_a_root_shows_all_layers_with_mapped_owners(store: Store, ids: int) -> None:
    low = store.adopt(store.stage("etc/low", "etc/both"))
    high = store.adopt(stage_layer(store.staging, [entry("etc/both", b"high", uid=33, gid=34)]))
    plan = store.plan([low, high, low])
    assert plan.layers == (low, high)  # the topmost appearance counts
    plan = store.plan([low, high])
    asyncio.run(rootfs.apply(plan, store.layers, ids))
    assert (plan.target / "etc/both").read_bytes() == b"high"
    assert (plan.target / "etc/both").stat().st_uid == FIRST_ID + 33
    assert (plan.target / "etc/low").stat().st_uid == FIRST_ID
    assert plan.target.stat().st_uid == FIRST_ID
    (plan.target / "etc/new").write_text("new")
    assert (plan.upper / "etc/new").exists()
    asyncio.run(rootfs.apply(plan, store.layers, ids))  # twice is once
    assert len(mountinfo.mounts_below(plan.target)) == 1
    rootfs.unmount(plan, store.layers)
    rootfs.unmount(plan, store.layers)
    asyncio.run(rootfs.apply(plan, store.layers, ids))  # as after a reboot
    assert (plan.target / "etc/new").read_text() == "new"
    rootfs.unmount(plan, store.layers)
    store.layers.close()


def test_hidden_and_opaque_marks_of_a_layer_hold(store: Store, ids: int) -> None:
    low = store.adopt(store.stage("etc/gone", "opt/old"))
    high = store.adopt(
        stage_layer(
            store.staging,
            [
                entry("etc/gone", kind=tarfile.CHRTYPE, devmajor=0, devminor=0),
                entry("opt", kind=tarfile.DIRTYPE, pax_headers={"SCHILY.xattr.trusted.overlay.opaque": "y"}),
                entry("opt/new", b""),
            ],
        )
    )
    plan = store.plan([low, high])
    asyncio.run(rootfs.apply(plan, store.layers, ids))
    assert os.listdir(plan.target / "etc") == []
    assert os.listdir(plan.target / "opt") == ["new"]
    rootfs.unmount(plan, store.layers)
    store.layers.close()


def test_an_image_without_layers_has_an_empty_root(store: Store, ids: int) -> None:
    plan = store.plan([])
    asyncio.run(rootfs.apply(plan, store.layers, ids))
    assert os.listdir(plan.target) == []
    rootfs.unmount(plan, store.layers)


def test_a_missing_layer_leaves_no_mount(store: Store, ids: int) -> None:
    there = store.adopt(store.stage("a"))
    plan = store.plan([there, "f" * 64])
    with pytest.raises(LayerMissing):
        asyncio.run(rootfs.apply(plan, store.layers, ids))
    assert not rootfs.is_mounted(plan)
    assert store.layers.list()[0].users == ()
    store.layers.close()


@pytest.mark.parametrize("volatile", [False, True])
def test_sixty_layers_in_paths_with_colons_and_commas(scope: Scope, ids: int, volatile: bool) -> None:
    base = scope.folder / "a:b,c d\\e"
    layers = LayerMounts(base / "state", base / "run")
    layers.open()
    digests = []
    for number in range(60):
        digest = stage_layer(base / "st" / "staging", [entry(f"f{number}", b"x"), entry("same", str(number).encode())])
        asyncio.run(layers.adopt(base / "st" / "staging", digest, owner_uid=0))
        digests.append(digest)
    plan = rootfs.plan("c", digests, target=base / "root", writable=base / "w", first_id=FIRST_ID, volatile=volatile)
    asyncio.run(rootfs.apply(plan, layers, ids))
    assert len(os.listdir(plan.target)) == 61
    assert (plan.target / "same").read_text() == "59"
    rootfs.unmount(plan, layers)
    layers.close()


def test_the_way_for_kernels_that_want_attached_layers_mounts_the_same(store: Store, ids: int) -> None:
    """Before Linux 6.15; asked for, since this kernel would not choose it."""
    digests = [store.adopt(store.stage("etc/low")), store.adopt(store.stage("etc/high"))]
    upper, work, target, plain = (store.folder / name for name in ("upper", "work", "target", "plain"))
    for folder in (upper, work, target, plain / "etc"):
        folder.mkdir(parents=True)
    (plain / "etc/plain").touch()
    with contextlib.ExitStack() as stack:
        numbers = [mounts.idmapped_clone_fd(store.layers.use(digest, "x"), ids) for digest in reversed(digests)]
        numbers.append(os.open(plain, os.O_PATH))  # a folder, not a mount, is no less a layer
        for number in numbers:
            stack.callback(os.close, number)
        os.close(mounts.overlay(target, numbers, upper, work, volatile=True, attached=True))
    # The layers' own places stay mounted where they were, and of the way there nothing is left.
    found = [(one.kind, one.target) for one in mountinfo.mounts_below(store.folder)]
    assert sorted(kind for kind, _ in found) == ["overlay", "squashfs", "squashfs"]
    assert sorted(os.listdir(target / "etc")) == ["high", "low", "plain"]
    assert (target / "etc/low").stat().st_uid == FIRST_ID
    (target / "new").touch()
    assert (upper / "new").exists()
    mounts.unmount(target)
    store.layers.release("x")
    store.layers.close()


def test_a_volatile_root_that_crashed_mounts_again(store: Store, ids: int) -> None:
    plan = rootfs.plan(
        "c1", [store.adopt(store.stage("a"))],
        target=store.folder / "root", writable=store.folder / "w", first_id=FIRST_ID, volatile=True,
    )  # fmt: skip
    (plan.work / "work" / "incompat" / "volatile").mkdir(parents=True)
    asyncio.run(rootfs.apply(plan, store.layers, ids))
    rootfs.unmount(plan, store.layers)
    store.layers.close()


def test_a_bounded_root_is_full_at_its_bound(store: Store, ids: int) -> None:
    plan = store.plan([store.adopt(store.stage("a"))], writable_bytes=8 << 20)
    asyncio.run(rootfs.apply(plan, store.layers, ids))
    with (plan.target / "big").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        file.writelines([bytes(1 << 20)] * 16)
    rootfs.unmount(plan, store.layers)
    asyncio.run(rootfs.apply(plan, store.layers, ids))
    assert (plan.target / "big").stat().st_size > 4 << 20
    rootfs.unmount(plan, store.layers)
    store.layers.close()


def test_without_mke2fs_a_bound_is_refused_and_nothing_is_left(
    store: Store, ids: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("casemate.host.programs.SAFE_PATH", "/nonexistent")
    plan = store.plan([], writable_bytes=8 << 20)
    with pytest.raises(rootfs.SizeBoundUnsupported):
        asyncio.run(rootfs.apply(plan, store.layers, ids))
    assert not list(plan.writable.glob("*.tmp"))


def test_a_volume_keeps_its_owners_whatever_the_range(store: Store, ids: int) -> None:
    volume = store.volumes.create("default", "data")
    assert store.volumes.create("default", "data") == volume
    assert store.volumes.is_empty(volume)
    place = store.folder / "place"
    store.volumes.bind(volume, place, ids)
    volume.data.chmod(0o777)
    # The host's own root has no id in there, so it cannot create files: a process of the pod's does.
    ids_of_pod = [f"--reuid={FIRST_ID + 7}", f"--regid={FIRST_ID + 8}", "--clear-groups"]
    subprocess.run(["setpriv", *ids_of_pod, "touch", str(place / "file")], check=True, timeout=20)
    with pytest.raises(OSError, match="Value too large"):
        (place / "of-the-host").touch()
    assert (volume.data / "file").stat().st_uid == 7
    mounts.unmount(place)
    other = userns.userns_fd(FIRST_ID + 65536, 65536)
    store.volumes.bind(volume, place, other, read_only=True)
    os.close(other)
    assert (place / "file").stat().st_gid == FIRST_ID + 65536 + 8
    with pytest.raises(OSError, match="Read-only"):
        (place / "x").write_text("")
    mounts.unmount(place)
    assert asyncio.run(store.volumes.used_bytes(volume)) > 0
    assert [one.name for one in store.volumes.list("default")] == ["data"]
    assert store.volumes.remove("default", "data")
    assert not store.volumes.remove("default", "data")
    assert asyncio.run(store.trash.empty()) == 1
    with pytest.raises(VolumeMissing):
        store.volumes.find("default", "data")


def test_the_trash_deletes_what_is_nested_deeper_than_python_can_recurse(store: Store) -> None:
    deep = store.folder / "host-state" / "deep"
    deep.mkdir()
    number = os.open(deep, os.O_RDONLY)
    for _ in range(5000):
        os.mkdir("d", dir_fd=number)
        below = os.open("d", os.O_RDONLY, dir_fd=number)
        os.close(number)
        number = below
    os.close(number)
    assert store.trash.throw(deep)
    assert not deep.exists()
    assert not store.trash.throw(deep)
    assert asyncio.run(store.trash.empty()) == 1
    assert store.trash.waiting() == []
