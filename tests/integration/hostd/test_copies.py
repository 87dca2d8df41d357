"""Copies into and out of containers: what a running one sees, what a stopped one left, also after a reboot."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import msgspec
import pytest
from tests.integration.hostd.driver import Client, Hostd, Refused, running

from casemate.hostd import protocol
from casemate.spec.workload import ContainerSpec, TmpfsMount, VolumeMount

pytestmark = pytest.mark.root


def members(client: Client, spec: ContainerSpec, path: str, folder: Path, *, whole: bool = False) -> dict[str, bytes]:
    """Names and contents of an archive of *path*."""
    with (folder / "tar").open("wb+") as file:
        client.call(protocol.ContainerArchive(spec.id, path, whole=whole), [file.fileno()])
        file.seek(0)
        with tarfile.open(fileobj=file) as tar:
            return {one.name: tar.extractfile(one).read() if one.isreg() else b"" for one in tar}  # type: ignore[union-attr]


def put(client: Client, spec: ContainerSpec, path: str, name: str, folder: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = 3
        tar.addfile(info, io.BytesIO(b"put"))
    (folder / "in").write_bytes(out.getvalue())
    with (folder / "in").open("rb") as file:
        client.call(protocol.ContainerExtract(spec.id, path), [file.fileno()])


def start(hostd: Hostd, client: Client, *args: str, **values: object) -> ContainerSpec:
    pod = hostd.pod()
    spec = hostd.container(pod, *args, **values)
    client.call(protocol.ContainerRun(pod, spec))
    return spec


def test_a_running_containers_volumes_are_copied_and_a_stopped_ones_files(
    hostd: Hostd, client: Client, tmp_path: Path
) -> None:
    client.call(protocol.VolumeCreate("default", "copies"))
    mounts = (VolumeMount("copies", "/vol"), TmpfsMount("/scratch"))
    script = "echo held > /vol/held; echo fleeting > /scratch/it; echo own > /own; touch /vol/ready; sleep 60"
    spec = start(hostd, client, "sh", "-c", script, mounts=mounts)
    volume = hostd.state / "volumes/default/copies/_data"
    deadline = time.monotonic() + 5
    while not (volume / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert members(client, spec, "/vol/held", tmp_path) == {"held": b"held\n"}
    assert members(client, spec, "/scratch", tmp_path)["scratch/it"] == b"fleeting\n"
    put(client, spec, "/vol", "new", tmp_path)
    assert (volume / "new").read_bytes() == b"put"
    assert (volume / "new").stat().st_uid == 0  # as the container numbers them
    client.call(protocol.ContainerPause(spec.id))
    assert members(client, spec, "/vol/new", tmp_path) == {"new": b"put"}  # a paused one is seen as well
    client.call(protocol.ContainerUnpause(spec.id))
    # An export and a comparison are of the container's own files.
    exported = members(client, spec, "/", tmp_path, whole=True)
    assert exported["own"] == b"own\n"
    assert not {name for name in exported if name.startswith(("vol/", "scratch/"))}
    client.call(protocol.ContainerKill(spec.id, signal.SIGKILL))
    client.event(protocol.ContainerExited, container=spec.id)
    assert members(client, spec, "/own", tmp_path) == {"own": b"own\n"}
    assert list(members(client, spec, "/vol", tmp_path)) == ["vol"]
    client.call(protocol.ContainerRemove(spec.id))
    client.call(protocol.VolumeRemove("default", "copies"))


def test_what_is_read_only_stays_so(hostd: Hostd, client: Client, tmp_path: Path) -> None:
    spec = start(hostd, client, "sleep", "60", read_only=True)
    with pytest.raises(Refused) as caught:
        put(client, spec, "/home", "new", tmp_path)
    assert (caught.value.code, "read-only" in str(caught.value)) == ("storage.tree_refused", True)
    client.call(protocol.ContainerRemove(spec.id, force=True))


def test_after_a_reboot_files_are_mounted_for_as_long_as_they_are_read(tmp_path: Path) -> None:
    with running() as hostd:
        client = Client(hostd.run / "hostd.sock")
        spec = start(hostd, client, "sh", "-c", "echo mine > /data/mine")
        client.event(protocol.ContainerExited, container=spec.id)
        client.close()
        hostd.kill()
        subprocess.run(["sh", "-c", f"umount -R -l {hostd.run}; rm -rf {hostd.run}/*"], check=True, capture_output=True)
        for record in (*hostd.state.glob("pods/*/pod.json"), *hostd.state.glob("pods/*/*/container.json")):
            record.write_bytes(msgspec.json.encode(msgspec.json.decode(record.read_bytes()) | {"boot_id": "another"}))
        hostd.start()
        client = hostd.wait_ready()
        root = hostd.run / "c" / spec.id / "rootfs"
        assert members(client, spec, "/data/mine", tmp_path) == {"mine": b"mine\n"}
        put(client, spec, "/data", "new", tmp_path)
        assert not os.path.ismount(root)
        # A reader that takes its time, and a start in between: the mount is the container's then.
        read_end, write_end = os.pipe()
        number = client.send(protocol.ContainerArchive(spec.id, "/", whole=True), [write_end])
        os.close(write_end)
        os.read(read_end, 1)
        assert os.path.ismount(root)
        client.call(protocol.ContainerStart(spec.id))
        client.event(protocol.ContainerExited, container=spec.id)
        with os.fdopen(read_end, "rb") as rest:
            while rest.read(1 << 20):
                pass
        client.answer(number)
        assert os.path.ismount(root)
        with pytest.raises(Refused) as caught:
            client.call(protocol.LayerRemove(spec.layers[0]))
        assert caught.value.code == "storage.layer_in_use"
        assert members(client, spec, "/data/new", tmp_path) == {"new": b"put"}
        client.call(protocol.ContainerRemove(spec.id))
        client.close()
