"""casemated killed in the middle of an import, a pull, a copy: nothing half made stays, and the same command works."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from tests.integration.system.site import IMAGE, Site, settle, traces
from tests.integration.trees import entry, make_tar

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "image"))
from bad_registry import Image, Registry, tar

pytestmark = pytest.mark.root
SETTINGS: dict[str, str] = {}

#: More than what pipes and sockets between the two ends hold, so that half of it has been taken in when it is sent.
BIG = os.urandom(1 << 20) * 24
GONE_S = 20.0


def processes(site: Site) -> set[str]:
    """Processes of this installation besides the daemons and what supervises containers: workers and children."""
    found = set()
    daemons = {process.pid for process in site.daemons.processes.values()}
    for place in Path("/proc").iterdir():
        if not place.name.isdigit() or int(place.name) in daemons:
            continue
        with contextlib.suppress(OSError):
            environment = (place / "environ").read_bytes().split(b"\0")
            line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if f"{site.folder}" in b" ".join(environment).decode(errors="replace") and "conmon" not in line:
                found.add(f"process {place.name} {line}")
    return found


@contextlib.contextmanager
def killed_and_started(site: Site) -> Iterator[None]:
    """Kill casemated alone, do the block, start it; no worker of the killed one may be left."""
    site.daemons.kill("casemated")
    yield
    assert settle(lambda: not processes(site), GONE_S), processes(site)
    site.daemons.start()


def half_sent(site: Site, argv: list[str], data: bytes, ready: Callable[[], bool]) -> subprocess.Popen[bytes]:
    """``casemate ARGV`` with the first half of *data* on its standard input, which stays open."""
    process = subprocess.Popen(
        site.argv(*argv), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=site.environment
    )
    assert process.stdin is not None
    process.stdin.write(data[: len(data) // 2])
    process.stdin.flush()
    assert settle(ready), "the daemon has not begun"
    return process


def told(process: subprocess.Popen[bytes]) -> None:
    """The client ends with a message, not with a traceback, and does not hang."""
    _, words = process.communicate(timeout=20)
    assert process.returncode not in (0, None), words
    assert b"Traceback" not in words, words


def left(site: Site, before: set[str]) -> set[str]:
    """What is there more than before; a partial download is kept on purpose, for the next pull to go on with."""
    return {line for line in traces(site) - before if not line.startswith("file state/ingest/")}


def no_leftovers(site: Site) -> None:
    done = site("system", "prune", "--left-overs", "--dry-run", "--json")
    assert b'"removed": []' in done.stdout, done.stdout


def test_an_import(site: Site) -> None:
    data = make_tar([entry("big", BIG)])
    before = traces(site)
    process = half_sent(site, ["import", "-", "imported:1"], data, lambda: traces(site) > before)
    with killed_and_started(site):
        told(process)
    assert settle(lambda: not left(site, before)), left(site, before)
    no_leftovers(site)
    done = site("import", "-", "imported:1", stdin=data)
    assert done.returncode == 0, done.stderr
    assert site("rmi", "imported:1").returncode == 0
    assert settle(lambda: traces(site) == before), traces(site) ^ before


@pytest.mark.parametrize("delay_s", [0.05, 0.2, 0.4, 0.8])
def test_an_import_that_is_being_converted(site: Site, delay_s: float) -> None:
    """The archive is sent as fast as it is taken; the kill falls into the sending, the conversion or the recording."""
    data, before = make_tar([entry(f"big{delay_s}", BIG)]), traces(site)
    process = subprocess.Popen(
        site.argv("import", "-", "converted:1"), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, env=site.environment,
    )  # fmt: skip
    sender = threading.Thread(target=_send, args=(process, data))
    sender.start()
    sender.join(delay_s)
    with killed_and_started(site):
        process.wait(20)
        sender.join(20)
    listed = b"converted" in site("images").stdout
    assert listed or settle(lambda: not left(site, before)), left(site, before)
    no_leftovers(site)
    assert site("import", "-", "converted:1", stdin=data).returncode == 0
    assert site("rmi", "converted:1").returncode == 0
    assert settle(lambda: traces(site) == before), traces(site) ^ before


def _send(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.write(data)
    with contextlib.suppress(OSError):
        process.stdin.close()


def test_a_pull(site: Site) -> None:
    registry = Registry(Image([tar({"etc/passwd": b"root:x:0:0::/:/bin/sh\n", "big": BIG})]))
    blob, half, go_on = registry.image.blobs[0], threading.Event(), threading.Event()

    def hook(request: BaseHTTPRequestHandler) -> bool:
        if "/blobs/" not in request.path or half.is_set() or int(_length(registry, request.path)) != len(blob):
            return False
        request.send_response(200)
        request.send_header("Content-Length", str(len(blob)))
        request.end_headers()
        request.wfile.write(blob[: len(blob) // 2])
        request.wfile.flush()
        half.set()
        go_on.wait(30)
        request.close_connection = True
        return True

    registry.hook = hook
    name, before = f"{registry.host}/a/b:latest", traces(site)
    try:
        process = subprocess.Popen(
            site.argv("pull", "--plain-http", name), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            env=site.environment,
        )  # fmt: skip
        assert half.wait(20)
        with killed_and_started(site):
            told(process)
        assert name.encode() not in site("images", "--format", "{{.Repository}}:{{.Tag}}").stdout
        assert settle(lambda: not left(site, before)), left(site, before)
        no_leftovers(site)
        done = site("pull", "--plain-http", name)
        assert done.returncode == 0, done.stderr
        assert site("rmi", name).returncode == 0
        assert settle(lambda: traces(site) == before), traces(site) ^ before
    finally:
        go_on.set()
        registry.close()


def _length(registry: Registry, path: str) -> int:
    from bad_registry import digest  # noqa: PLC0415 - beside its only use

    return next((len(blob) for blob in registry.image.blobs if path.endswith(digest(blob))), 0)


def test_a_copy_into_a_container(site: Site) -> None:
    assert site("run", "-d", "--name", "copied", IMAGE, "sleep", "1000").returncode == 0
    before, data = traces(site), make_tar([entry("small", b"all of it"), entry("big", BIG)])
    try:
        process = half_sent(
            site, ["cp", "-", "copied:/tmp"], data,
            lambda: site("exec", "copied", "cat", "/tmp/small").stdout == b"all of it",
        )  # fmt: skip
        with killed_and_started(site):
            told(process)
        assert settle(lambda: not traces(site) - before), traces(site) - before
        no_leftovers(site)
        done = site("cp", "-", "copied:/tmp", stdin=data)
        assert done.returncode == 0, done.stderr
        assert site("exec", "copied", "stat", "-c", "%s", "/tmp/big").stdout == f"{len(BIG)}\n".encode()
    finally:
        assert site("rm", "-f", "copied").returncode == 0


@pytest.mark.parametrize("state", ["running", "exited"])
def test_a_copy_out_of_a_container(site: Site, state: str, tmp_path: Path) -> None:
    script = "dd if=/dev/urandom of=/big bs=1M count=24 2>/dev/null; echo made; exec sleep 1000"
    assert site("run", "-d", "--name", "source", IMAGE, "sh", "-c", script).returncode == 0
    try:
        assert settle(lambda: site("logs", "source").stdout == b"made\n")
        if state == "exited":
            assert site("stop", "-t", "0", "source").returncode == 0
        before = traces(site)
        process = subprocess.Popen(site.argv("cp", "source:/big", "-"), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   env=site.environment)  # fmt: skip
        assert process.stdout is not None
        assert len(process.stdout.read(4096)) == 4096  # and no more: everything in between is full
        with killed_and_started(site):
            told(process)
        assert settle(lambda: not traces(site) - before), traces(site) - before
        no_leftovers(site)
        target = tmp_path / "big"
        assert site("cp", "source:/big", str(target)).returncode == 0
        assert target.stat().st_size == 24 << 20
    finally:
        assert site("rm", "-f", "source").returncode == 0
