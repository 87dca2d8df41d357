"""Kernels, templates and records on disk: found, refused when damaged or unfit, never half there."""

from __future__ import annotations

import asyncio
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from casemate.image import guestkernel
from casemate.image.guestkernel import AgentMissing, KernelUnfit
from casemate.isolation.microvm import bundles, kernel, records
from casemate.isolation.microvm.errors import BundleUnsupported, KernelMissing, MonitorFailed
from casemate.isolation.microvm.oci import Config, Mount, Process, read_config
from casemate.spec.errors import InvalidArgument


def modules(folder: Path, without: str = "") -> Path:
    for name in guestkernel.MODULES:
        if name != without:
            (folder / "kernel").mkdir(parents=True, exist_ok=True)
            (folder / "kernel" / f"{name}.ko").write_bytes(name.encode())
    return folder


def prepared(tmp_path: Path) -> kernel.GuestKernel:
    (tmp_path / "vmlinuz").write_bytes(b"kernel")
    (tmp_path / "agent").write_bytes(b"agent")
    made = guestkernel.prepare("6.1.0-1", tmp_path / "vmlinuz", modules(tmp_path / "m"), tmp_path / "agent", tmp_path)
    with made.kernel.open("rb") as one, made.initramfs.open("rb") as other:
        return kernel.adopt(
            tmp_path / "kernels", made.version, one.fileno(), other.fileno(), lacks=made.lacks, agent=made.agent
        )


def test_a_kernel_is_prepared_and_found(tmp_path: Path) -> None:
    made = prepared(tmp_path)
    assert kernel.chosen(tmp_path / "kernels") == made
    assert made.initramfs.read_bytes().index(b"virtio_ring.ko") < made.initramfs.read_bytes().index(b"virtio.ko")
    assert made.lacks == ()


def test_a_kernel_without_a_module_is_unfit_or_lacks_a_feature(tmp_path: Path) -> None:
    with pytest.raises(KernelUnfit) as caught:
        guestkernel.find_modules(modules(tmp_path / "a", without="squashfs"))
    assert caught.value.code == "microvm.kernel_unfit"
    assert guestkernel.find_modules(modules(tmp_path / "b", without="9p"))[1] == ("9p",)
    built_in = modules(tmp_path / "c", without="overlay")
    (built_in / "modules.builtin").write_text("kernel/fs/overlayfs/overlay.ko\n")
    assert "overlay" not in [name for name, _ in guestkernel.find_modules(built_in)[0]]


def test_a_damaged_kernel_is_none(tmp_path: Path) -> None:
    made = prepared(tmp_path)
    made.kernel.chmod(0o600)
    made.kernel.write_bytes(b"other")
    with pytest.raises(KernelMissing) as caught:
        kernel.chosen(tmp_path / "kernels")
    assert caught.value.code == "microvm.kernel_missing"


@pytest.mark.parametrize("version", ["", "../x", "6/1", "6.1\n"])
def test_versions_that_are_none(tmp_path: Path, version: str) -> None:
    with pytest.raises(KernelUnfit):
        guestkernel.prepare(version, tmp_path, tmp_path, tmp_path, tmp_path)
    with (tmp_path / "f").open("w+b") as file:
        file.write(b"x")
        file.flush()
        with pytest.raises(InvalidArgument):
            kernel.adopt(tmp_path / "k", version, file.fileno(), file.fileno())


def test_what_is_no_file_is_not_taken_over(tmp_path: Path) -> None:
    read, write = os.pipe()
    try:
        with pytest.raises(InvalidArgument):
            kernel.adopt(tmp_path / "k", "6.1", read, read)
    finally:
        os.close(read)
        os.close(write)
    assert not list((tmp_path / "k").iterdir())


def test_the_kernel_that_was_chosen_is_taken_and_falls_back(tmp_path: Path) -> None:
    prepared(tmp_path)
    kernels = tmp_path / "kernels"
    with (tmp_path / "vmlinuz").open("rb") as file:
        kernel.adopt(kernels, "6.2.0-2", file.fileno(), file.fileno(), lacks=("9p",))
    assert kernel.chosen(kernels).version == "6.2.0-2"
    assert kernel.lacks_of(kernels, "6.2.0-2") == ("9p",)
    assert kernel.use(kernels, "6.1.0-1").version == "6.1.0-1"
    assert kernel.chosen(kernels).version == "6.1.0-1"
    kernel.remove(kernels, "6.1.0-1")
    assert kernel.chosen(kernels).version == "6.2.0-2"
    for wrong in ("6.1.0-1", "../kernels", "."):
        with pytest.raises(KernelMissing):
            kernel.remove(kernels, wrong)


@pytest.mark.parametrize(
    ("suffix", "pack"), [("xz", lzma.compress), ("gz", gzip.compress), ("zst", zstandard.ZstdCompressor().compress)]
)
def test_modules_that_are_packed(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    folder = modules(tmp_path / "m", without="overlay")
    packed = folder / f"kernel/overlay.ko.{suffix}"
    packed.write_bytes(pack(b"overlay"))
    assert dict(guestkernel.find_modules(folder)[0])["overlay"] == b"overlay"
    packed.write_bytes(b"not packed")
    with pytest.raises(KernelUnfit, match="overlay"):
        guestkernel.find_modules(folder)
    packed.write_bytes(pack(bytes(9 << 20)))
    with pytest.raises(KernelUnfit, match="more than"):
        guestkernel.find_modules(folder)


def test_modules_that_lead_out(tmp_path: Path) -> None:
    folder = modules(tmp_path / "m", without="overlay")
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "kernel/overlay.ko").symlink_to(tmp_path / "secret")
    with pytest.raises(KernelUnfit, match="no module overlay"):
        guestkernel.find_modules(folder)


def test_without_an_agent_no_kernel_can_be_prepared(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").write_bytes(b"kernel")
    with pytest.raises(AgentMissing):
        guestkernel.prepare("6.1", tmp_path / "vmlinuz", modules(tmp_path / "m"), tmp_path / "agent", tmp_path)


def test_a_file_that_is_no_package(tmp_path: Path) -> None:
    (tmp_path / "x.deb").write_bytes(b"no package")
    with pytest.raises(KernelUnfit):
        asyncio.run(guestkernel.unpack(tmp_path / "x.deb", tmp_path / "tree"))


@pytest.mark.parametrize("data", [b"", b"{}", b'{"name": 1}', b"[" * 1000])
def test_records_that_are_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "machine.json").write_bytes(data)
    with pytest.raises(MonitorFailed) as caught:
        records.read(tmp_path)
    assert caught.value.code == "microvm.monitor"


def test_a_record_comes_back(tmp_path: Path) -> None:
    record = records.MachineRecord("m", 5, 2, (records.ContainerRecord("c", "/b", 7, "running", 1),))
    records.write(tmp_path, record)
    assert records.read(tmp_path) == record


def config(*mounts: Mount, **annotations: str) -> Config:
    return Config(process=Process(args=("x",)), mounts=mounts, annotations=annotations)


def test_our_own_files_over_layers_are_copied_and_the_rest_is_shared(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("127.0.0.1 x\n")
    (tmp_path / "big").write_bytes(bytes(65_537))
    hosts, other = Mount("/etc/hosts", "bind", "hosts", ("rbind",)), Mount("/data", "", "/srv", ("bind", "ro"))
    layered = config(Mount("/proc", "proc"), hosts, other, **{bundles.LAYERS: "/a"})
    assert [one.data for one in bundles.contents(layered, tmp_path)] == [b"127.0.0.1 x\n"]
    shares, names = bundles.shared(layered, tmp_path, "c")
    assert [(one.name, str(one.source), one.options) for one in shares] == [("c.2/srv", "/srv", ("bind", "ro"))]
    assert names == {2: "c.2/srv"}
    for source in ("big", "missing", str(tmp_path)):
        with pytest.raises(BundleUnsupported):
            bundles.contents(config(Mount("/etc/hosts", "bind", source), **{bundles.LAYERS: "/a"}), tmp_path)


def test_a_root_folder_is_a_share_and_nothing_is_copied(tmp_path: Path) -> None:
    folder = config(Mount("/etc/hosts", "bind", "hosts", ("rbind",)))
    assert bundles.contents(folder, tmp_path) == []
    shares, _ = bundles.shared(folder, tmp_path, "c")
    assert [(one.name, str(one.source)) for one in shares] == [
        ("c.0/hosts", str(tmp_path / "hosts")),
        ("c.root", str(tmp_path / "rootfs")),
    ]


def test_too_many_binds() -> None:
    many = [Mount(f"/m{index}", "bind", "/srv") for index in range(501)]
    with pytest.raises(BundleUnsupported):
        bundles.shared(config(*many), Path("/"), "c")


def mapped(**rows: list[tuple[int, int, int]]) -> Config:
    body = {
        name: [dict(zip(("containerID", "hostID", "size"), row, strict=True)) for row in rows[name]] for name in rows
    }
    return read_config(json.dumps({"process": {}, "linux": body}).encode())


def test_id_maps_of_a_bundle() -> None:
    assert bundles.ids(config()) is None
    found = bundles.ids(mapped(uidMappings=[(1, 5000, 9), (0, 1000, 1)], gidMappings=[(0, 1000, 10)]))
    assert found is not None
    assert found.uids == ((0, 1000, 1), (1, 5000, 9))


@pytest.mark.parametrize(
    "rows",
    [
        {"uidMappings": [(0, 1000, 1)]},
        {"uidMappings": [(0, 0, 1)], "gidMappings": [(0, 1000, 1)]},
        {"uidMappings": [(1, 1000, 1)], "gidMappings": [(0, 1000, 1)]},
        {"uidMappings": [(i, 1000 + i, 1) for i in range(17)], "gidMappings": [(0, 1000, 1)]},
    ],
)
def test_id_maps_that_are_refused(rows: dict[str, list[tuple[int, int, int]]]) -> None:
    with pytest.raises(BundleUnsupported):
        bundles.ids(mapped(**rows))


@pytest.mark.parametrize(("text", "below"), [("", False), ("direct", False), ("overlay", True)])
def test_where_writes_to_a_root_folder_go(text: str, below: bool) -> None:
    assert bundles.root_is_below(config(**({bundles.ROOT: text} if text else {}))) is below
    with pytest.raises(BundleUnsupported):
        bundles.root_is_below(config(**{bundles.ROOT: "x"}))


@pytest.mark.parametrize("text", ["relative", "/a:b", ":".join(["/a"] * 128)])
def test_layers_that_are_none(text: str) -> None:
    with pytest.raises(BundleUnsupported):
        bundles.layers(config(**{bundles.LAYERS: text}))
