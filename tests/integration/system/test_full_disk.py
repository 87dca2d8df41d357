"""A disk that is full: casemated's, then hostd's. Told as that, nothing half-made, all is well once there is room."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.daemons import Daemons, _clean, ensure_user, rootfs_tar
from tests.integration.leaks import clean, new_scope
from tests.integration.system.site import COUNTING, IMAGE, Site, refused, settle, traces

pytestmark = pytest.mark.root
SIZE_MIB = 48


@pytest.fixture(scope="module", autouse=True)
def canary() -> None:
    """Here each test watches a container of its own: on a full disk a log cannot be whole."""


@contextlib.contextmanager
def on_small_disk(name: str) -> Iterator[tuple[Site, Path]]:
    """A site whose folder *name* is an ext4 of its own of 48 MiB, and that folder."""
    ensure_user()
    folder = Path(tempfile.mkdtemp(prefix="casemate-test-"))
    folder.chmod(0o755)
    image, place = folder / "disk.img", folder / name
    with image.open("wb") as file:
        file.truncate(SIZE_MIB << 20)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-m", "0", str(image)], check=True)
    place.mkdir()
    mounted = subprocess.run(["mount", "-o", "loop", str(image), str(place)], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"missing: a loop device to mount ext4 on ({mounted.stderr.decode().strip()})")
    daemons = Daemons(new_scope(folder))
    try:
        daemons.start()
        site = Site(daemons)
        daemons.import_busybox(IMAGE)
        yield site, place
    finally:
        (place / "ballast").unlink(missing_ok=True)
        daemons.close()
        clean(daemons.scope)
        _clean(folder)


def fill(place: Path) -> Path:
    """Write until nothing more fits."""
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\1" * size)
    os.sync()
    return ballast


def test_of_casemated(tmp_path: Path) -> None:
    archive = tmp_path / "more.tar"
    archive.write_bytes(rootfs_tar().replace(b"/home/app:/bin/sh", b"/home/app:/bin/ls"))
    with on_small_disk("state") as (site, place):
        id_ = site("run", "-d", "--name", "watch", IMAGE, "sh", "-c", COUNTING).stdout.decode().strip()
        pid = site.daemons.client.inspect(id_).pid
        before = traces(site)
        ballast = fill(place)
        problem = refused(site, "disk.full", "image", "import", "--format", "rootfs", str(archive), "more:1")
        assert "df" in str(problem["remedy"]) or "prune" in str(problem["remedy"])
        # What needs a row in the database is refused as that too, or still fits; never a crash, never half of it.
        done = site("--json", "run", "--rm", IMAGE, "true")
        assert done.returncode in (0, 125), done
        if done.returncode:
            assert b'"disk.full"' in done.stderr, done.stderr
        assert site("ps").returncode == 0, "reading goes on"
        ballast.unlink()
        assert all(process.poll() is None for process in site.daemons.processes.values()), "both daemons live"
        assert settle(lambda: traces(site) <= before), traces(site) - before
        assert site("image", "import", "--format", "rootfs", str(archive), "more:1").returncode == 0
        assert site("run", "--rm", "more:1", "echo", "again").stdout == b"again\n"
        detail = site.daemons.client.inspect("watch")
        assert (detail.summary.status, detail.pid) == ("running", pid)
        numbers = [int(line) for line in site("logs", "watch").stdout.split()]
        assert numbers == list(range(len(numbers))), "the other container noticed nothing"


def test_of_hostd() -> None:
    with on_small_disk("host-state") as (site, place):
        script = "i=0; while :; do i=$((i+1)); echo $i > /dev/shm/i; sleep 0.05; done"
        id_ = site("run", "-d", "--name", "watch", IMAGE, "sh", "-c", script).stdout.decode().strip()
        pid = site.daemons.client.inspect(id_).pid
        before = traces(site)
        ballast = fill(place)
        done = site("--json", "run", "--rm", IMAGE, "sh", "-c", "dd if=/dev/zero of=/x bs=1M count=4 2>&1; echo ran")
        assert done.returncode in (0, 125), done
        if done.returncode:
            assert b'"disk.full"' in done.stderr, done.stderr
        else:
            assert b"No space left" in done.stdout, done.stdout
        done = site("--json", "cp", "-", "watch:/data", stdin=_tar_of(bytes(4 << 20)))
        assert done.returncode == 125, done
        assert b'"disk.full"' in done.stderr, done.stderr
        seen = int(site("exec", "watch", "cat", "/dev/shm/i").stdout)
        assert settle(lambda: int(site("exec", "watch", "cat", "/dev/shm/i").stdout) > seen), "it goes on"
        ballast.unlink()
        assert all(process.poll() is None for process in site.daemons.processes.values()), "both daemons live"
        assert settle(lambda: traces(site) <= before), traces(site) - before
        assert site("run", "--rm", IMAGE, "echo", "again").stdout == b"again\n"
        detail = site.daemons.client.inspect("watch")
        assert (detail.summary.status, detail.pid) == ("running", pid)


def _tar_of(data: bytes) -> bytes:
    import io  # noqa: PLC0415 - only here
    import tarfile  # noqa: PLC0415 - only here

    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        info = tarfile.TarInfo("big")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return raw.getvalue()
