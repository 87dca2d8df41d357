"""Images go both ways between us and what others use: docker-registry, skopeo, `docker load`'s form, mmdebstrap.

Jobs run through the real worker, as casemated runs them.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.integration.registry import running_registry

from casemate.image.client import run_job, spawn
from casemate.image.garbage import collect_garbage, plan_garbage
from casemate.image.jobs import (
    ConfigChange,
    ConvertJob,
    DebianJob,
    Endpoints,
    ExportJob,
    ImportJob,
    PullJob,
    PushJob,
    VerifyJob,
)
from casemate.image.leases import leased_digests, release
from casemate.image.records import Platform
from casemate.image.store import Store
from casemate.spec.errors import RemoteError

needs_registry = pytest.mark.skipif(not shutil.which("docker-registry"), reason="missing: docker-registry")
needs_skopeo = pytest.mark.skipif(not shutil.which("skopeo"), reason="missing: skopeo")


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    with running_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "state")
    made.create()
    return made


def do(job, on_progress=None, **options):
    return asyncio.run(run_job(job, on_progress, timeout_s=120, **options))


def rootfs(files: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return raw.getvalue()


def made_image(store, tmp_path, name="example:1", files=None, change=None):
    source = tmp_path / "rootfs.tar"
    source.write_bytes(rootfs(files or {"etc/passwd": b"root:x:0:0::/:/bin/sh\n", "bin/sh": os.urandom(200_000)}))
    job = ImportJob(
        state=str(store.root),
        source=str(source),
        rootfs=True,
        name=name,
        change=change or ConfigChange(cmd=("/bin/sh",), env=("A=b",)),
    )
    return do(job)


def skopeo(*arguments: str) -> bytes:
    done = subprocess.run(["skopeo", *arguments], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@needs_registry
@needs_skopeo
def test_ours_to_skopeo_and_back(store, registry, tmp_path):
    made = made_image(store, tmp_path)
    digest = made.images[0].manifest_digest
    endpoints = Endpoints(insecure=(registry,))
    pushed = do(
        PushJob(
            state=str(store.root), reference=f"{registry}/one/example:1", manifest_digest=digest, endpoints=endpoints
        )
    )
    assert pushed.transferred_bytes > 0
    assert json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{registry}/one/example:1"))["Digest"] == digest
    again = do(
        PushJob(
            state=str(store.root), reference=f"{registry}/one/example:2", manifest_digest=digest, endpoints=endpoints
        )
    )
    assert again.transferred_bytes == 0
    seen = []
    mounting = PushJob(
        state=str(store.root),
        reference=f"{registry}/two/example:1",
        manifest_digest=digest,
        endpoints=endpoints,
        mount_from=("one/example",),
    )
    do(mounting, seen.append)
    assert "mounted" in {progress.stage for progress in seen}
    skopeo(
        "copy",
        "-q",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        f"docker://{registry}/one/example:1",
        f"docker://{registry}/three/copy:x",
    )
    other = Store(tmp_path / "other")
    for wanted in (f"{registry}/three/copy:x", f"{registry}/three/copy@{digest}"):
        pulled = do(PullJob(state=str(other.root), reference=wanted, endpoints=endpoints))
        assert pulled.images[0].manifest_digest == digest
        assert pulled.images[0].config.env == ("A=b",)
        assert pulled.layers[0].squashfs_digest == made.layers[0].squashfs_digest, "the same layer, the same squashfs"


@needs_registry
@needs_skopeo
@pytest.mark.parametrize("form", ["oci", "v2s2"])
def test_skopeos_forms_and_an_index(store, registry, tmp_path, form):
    made = made_image(store, tmp_path)
    archive = tmp_path / "out.tar"
    do(
        ExportJob(
            state=str(store.root),
            images=((made.images[0].manifest_digest, ("example:1",)),),
            target=str(archive),
            kind="oci-archive",
        )
    )
    skopeo(
        "copy",
        "-q",
        f"--format={form}",
        "--dest-tls-verify=false",
        f"oci-archive:{archive}",
        f"docker://{registry}/form/{form}:1",
    )
    pulled = do(
        PullJob(
            state=str(tmp_path / "x"), reference=f"{registry}/form/{form}:1", endpoints=Endpoints(insecure=(registry,))
        )
    )
    assert pulled.layers[0].diff_id == made.layers[0].diff_id


@needs_skopeo
@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_archives_both_ways(store, tmp_path, kind):
    made = made_image(store, tmp_path)
    image = made.images[0]
    ours, theirs = tmp_path / "ours.tar", tmp_path / "theirs.tar"
    do(ExportJob(state=str(store.root), images=((image.manifest_digest, image.names),), target=str(ours), kind=kind))
    name = "example:2" if kind == "docker-archive" else ""
    skopeo("copy", "-q", f"{kind}:{ours}", f"{kind}:{theirs}" + (f":{name}" if name else ""))
    other = Store(tmp_path / "other")
    taken = do(ImportJob(state=str(other.root), source=str(theirs), name="given:9"))
    assert taken.images[0].layers[0].diff_id == image.layers[0].diff_id
    assert taken.images[0].config.cmd == ("/bin/sh",)
    if kind == "docker-archive":
        assert taken.images[0].names == ("docker.io/library/example:2",)
    packed = tmp_path / "packed.tar.gz"
    packed.write_bytes(subprocess.run(["gzip", "-c", str(theirs)], capture_output=True, check=True).stdout)
    with packed.open("rb") as stream:
        again = do(ImportJob(state=str(other.root), source=f"fd:{stream.fileno()}"), descriptors=(stream.fileno(),))
    assert again.images[0].config_digest == taken.images[0].config_digest


@needs_skopeo
def test_oci_folder(store, tmp_path):
    made = made_image(store, tmp_path)
    archive, folder = tmp_path / "a.tar", tmp_path / "folder"
    do(
        ExportJob(
            state=str(store.root),
            images=((made.images[0].manifest_digest, ()),),
            target=str(archive),
            kind="oci-archive",
        )
    )
    skopeo("copy", "-q", f"oci-archive:{archive}", f"oci:{folder}:tag")
    assert do(ImportJob(state=str(tmp_path / "o"), source=str(folder), name="named:1")).images[0].names == (
        "docker.io/library/named:1",
    )


def old_docker_save(tmp_path: Path) -> Path:
    """The layout of Docker before 25: one folder for each layer, a repeated layer as a symbolic link."""
    layer = rootfs({"f": b"content"})
    diff = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    config = json.dumps(
        {
            "os": "linux",
            "architecture": "amd64",
            "config": {"Cmd": None},
            "rootfs": {"type": "layers", "diff_ids": [diff, diff]},
        }
    ).encode()
    manifest = [{"Config": "c.json", "RepoTags": ["old/one:1"], "Layers": ["aa/layer.tar", "bb/layer.tar"]}]
    path = tmp_path / "old.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in (
            ("aa/layer.tar", layer),
            ("c.json", config),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("bb/layer.tar")
        link.type, link.linkname = tarfile.SYMTYPE, "../aa/layer.tar"
        tar.addfile(link)
    return path


def test_old_docker_save(store, tmp_path):
    result = do(ImportJob(state=str(store.root), source=str(old_docker_save(tmp_path))))
    assert result.images[0].names == ("docker.io/old/one:1",)
    assert len(result.images[0].layers) == 2


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"junk" * 500,
        rootfs({"x": b"y"}),
        rootfs({"manifest.json": b"[]"}),
        rootfs({"manifest.json": b'[{"Config":"../../etc/passwd","Layers":[]}]'}),
    ],
)
def test_archives_that_are_none(store, tmp_path, data):
    path = tmp_path / "bad"
    path.write_bytes(data)
    with pytest.raises(RemoteError) as caught:
        do(ImportJob(state=str(store.root), source=str(path)))
    assert caught.value.problem["code"] in ("image.archive_invalid", "image.manifest_invalid")
    assert list((store.root / "blobs/sha256").iterdir()) == []
    assert list((store.root / "leases").iterdir()) == []


def test_convert_again_gives_the_same(store, tmp_path):
    made = made_image(store, tmp_path)
    layer = made.images[0].layers[0]
    store.staged_path(made.layers[0].squashfs_digest).unlink()
    again = do(ConvertJob(state=str(store.root), layers=((layer.digest, layer.diff_id),)))
    assert again.layers == made.layers
    assert again.staged == (made.layers[0].squashfs_digest,)
    assert store.staged_path(again.staged[0]).stat().st_mode & 0o777 == 0o440


def test_verify_finds_damage(store, tmp_path):
    made = made_image(store, tmp_path)
    assert do(VerifyJob(state=str(store.root))).damaged == ()
    blob = store.blob_path(made.images[0].layers[0].digest)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    store.layer_path(made.layers[0].diff_id).write_text("{}")
    damaged = do(VerifyJob(state=str(store.root))).damaged
    assert len(damaged) == 2
    with pytest.raises(RemoteError) as caught:
        do(
            ExportJob(
                state=str(store.root),
                images=((made.images[0].manifest_digest, ("x",)),),
                target=str(tmp_path / "t"),
                kind="oci-archive",
            )
        )
    assert caught.value.problem["code"] == "store.corrupt"
    assert not (tmp_path / "t").exists()


def test_lease_protects_until_released(store, tmp_path):
    made = made_image(store, tmp_path)
    assert [removal for removal in plan_garbage(store, ()) if removal.freed_bytes] == []
    release(store, made.lease)
    kept = collect_garbage(store, made.images[0].digests())
    assert all(removal.path.parent.name == "locks" for removal in kept)
    collect_garbage(store, ())
    assert [path for path in store.root.rglob("*") if path.is_file() and path.parent.name != "locks"] == []


@needs_registry
def test_two_pulls_at_once_fetch_each_layer_once(store, registry, tmp_path):
    made = made_image(store, tmp_path, files={"f": os.urandom(3_000_000)})
    endpoints = Endpoints(insecure=(registry,))
    do(
        PushJob(
            state=str(store.root),
            reference=f"{registry}/shared/image:1",
            manifest_digest=made.images[0].manifest_digest,
            endpoints=endpoints,
        )
    )
    job = PullJob(state=str(tmp_path / "other"), reference=f"{registry}/shared/image:1", endpoints=endpoints)

    async def both():
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run_job(job, timeout_s=60)) for _ in range(3)]
        return [task.result() for task in tasks]

    results = asyncio.run(both())
    assert sorted(result.transferred_bytes for result in results) == [0, 0, made.images[0].layers[0].size_bytes]
    assert len({result.digest for result in results}) == 1


@asynccontextmanager
async def stalling(registry, after_bytes):
    """A way to *registry* that stops for good once it has brought *after_bytes*: its address, and the event of that."""
    stalled, handlers = asyncio.Event(), []
    host, port = registry.split(":")

    async def pump(source, target, *, counted):
        nonlocal after_bytes
        while data := await source.read(1 << 16):
            after_bytes -= len(data) if counted else 0
            if after_bytes < 0:
                stalled.set()
                await asyncio.Event().wait()
            target.write(data)
            await target.drain()
        target.close()

    async def connected(reader, writer):
        handlers.append(asyncio.current_task())
        other_reader, other_writer = await asyncio.open_connection(host, int(port))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(pump(reader, other_writer, counted=False))
                group.create_task(pump(other_reader, writer, counted=True))
        finally:
            for one in (writer, other_writer):
                one.transport.abort()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", stalled
    finally:
        server.close()
        for one in handlers:
            one.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)


@needs_registry
@pytest.mark.parametrize("how", ["cancel", "kill"])
def test_cancel_and_kill_leave_nothing_half_visible(store, registry, tmp_path, how):
    """Interrupted when a third of the layer has come; then pulled as if nothing had been."""
    made = made_image(store, tmp_path, files={"f": os.urandom(60_000_000)})
    endpoints = Endpoints(insecure=(registry,))
    do(
        PushJob(
            state=str(store.root),
            reference=f"{registry}/big/image:1",
            manifest_digest=made.images[0].manifest_digest,
            endpoints=endpoints,
        )
    )
    other = Store(tmp_path / "other")
    workers = []

    async def start(command, environment, descriptors):
        process = await spawn(command, environment, descriptors)
        workers.append(process)
        return process

    def pull(address):
        return PullJob(
            state=str(other.root), reference=f"{address}/big/image:1", endpoints=Endpoints(insecure=(address,))
        )

    async def interrupt():
        async with stalling(registry, 20_000_000) as (address, stalled):
            task = asyncio.ensure_future(run_job(pull(address), None, timeout_s=60, start=start))
            await stalled.wait()
            if how == "cancel":
                task.cancel()
            else:
                os.kill(workers[0].pid, signal.SIGKILL)
            with pytest.raises(asyncio.CancelledError if how == "cancel" else Exception):
                await task

    asyncio.run(interrupt())
    assert workers[0].returncode is not None
    for blob in (other.root / "blobs/sha256").iterdir():
        # The manifest and the configuration came whole before the layer; what is being written bears another name.
        if not blob.name.startswith("tmp-"):
            assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
            assert blob.stat().st_size < 1_000_000
    assert [path for path in (other.root / "staging").iterdir() if not path.name.startswith("tmp-")] == []
    if how == "cancel":
        assert list((other.root / "staging").iterdir()) == []
    collect_garbage(other, ())
    assert list((other.root / "staging").iterdir()) == []
    result = do(pull(registry))
    assert result.layers[0].squashfs_digest == made.layers[0].squashfs_digest
    assert leased_digests(other)[0]


needs_mmdebstrap = pytest.mark.skipif(not shutil.which("mmdebstrap"), reason="missing: mmdebstrap")


@needs_mmdebstrap
def test_build_debian_twice_gives_the_same(store):
    job = DebianJob(
        state=str(store.root),
        name="tiny",
        suite="bookworm",
        packages=("busybox-static",),
        variant="tiny",
        change=ConfigChange(cmd=("/bin/sh",)),
    )
    first, second = do(job), do(job)
    assert first.images == second.images
    assert first.layers[0].passwd is not None
    assert first.images[0].platform == Platform("linux", first.images[0].platform.architecture)
    squashfs = store.staged_path(first.staged[0])
    listing = subprocess.run(
        ["rdsquashfs", "-l", "/bin", str(squashfs)], capture_output=True, check=True, text=True
    ).stdout
    assert "busybox" in listing
    assert " sh" in listing


@needs_mmdebstrap
@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"packages": ("no-such-package-at-all", "busybox-static")}, "image.build_failed"),
        ({"packages": ("--aptopt=x",)}, "argument.invalid"),
        ({"suite": "../x"}, "argument.invalid"),
        ({"variant": "none"}, "argument.invalid"),
        ({"sources": ("deb http://x/ y\nz",)}, "argument.invalid"),
        ({"packages": ()}, "argument.invalid"),
    ],
)
def test_build_debian_refuses(store, given, code):
    job = {
        "state": str(store.root),
        "name": "tiny",
        "suite": "bookworm",
        "packages": ("busybox-static",),
        "variant": "tiny",
        **given,
    }
    with pytest.raises(RemoteError) as caught:
        do(DebianJob(**job))
    assert caught.value.problem["code"] == code
