"""A registry that misbehaves, seen from the command line: exit code 125, a code, a remedy, and nothing half-made.

The client's own refusals, one by one, are in tests/integration/image/test_bad_registry.py; here stands what a person
sees, and that the daemons, the store and the canary are as before.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from tests.integration.registry import running_registry
from tests.integration.system.site import Site, refused

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "image"))
from bad_registry import INDEX, MANIFEST, Image, Registry, digest, reply, tar

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_made")]


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry(Image())
    yield made
    made.close()


def pull_refused(site: Site, registry: Registry, code: str) -> dict[str, object]:
    name = f"{registry.host}/a/b"
    problem = refused(site, code, "pull", "--plain-http", name)
    assert name not in site("images", "--format", "{{.Repository}}").stdout.decode()
    return problem


@pytest.mark.parametrize(
    ("part", "status", "code"),
    [
        ("/manifests/", 401, "registry.unauthorized"),
        ("/manifests/", 403, "registry.denied"),
        ("/manifests/", 404, "image.not_found"),
        ("/manifests/", 429, "registry.rate_limited"),
        ("/manifests/", 500, "registry.unavailable"),
        ("/manifests/", 418, "registry.failed"),
        ("/blobs/", 403, "registry.denied"),
        ("/blobs/", 404, "image.not_found"),
        ("/blobs/", 429, "registry.rate_limited"),
        ("/blobs/", 503, "registry.unavailable"),
    ],
)
def test_statuses(site: Site, registry: Registry, part: str, status: int, code: str) -> None:
    def hook(request: BaseHTTPRequestHandler) -> bool:
        if part not in request.path:
            return False
        reply(request, status, b'{"errors":[{"code":"X","message":"\\u001b[31mwhy"}]}', {"Retry-After": "0"})
        return True

    registry.hook = hook
    problem = pull_refused(site, registry, code)
    assert "\x1b" not in str(problem), "what a registry says may not steer the terminal"


def _wrong_layer(registry: Registry) -> None:
    blob = registry.image.blobs[0]
    other = gzip.compress(tar({"etc/passwd": b"root::0:0::/:/bin/sh\n", "evil": b"x" * 1000}))
    assert len(other) < len(blob)
    other = other.ljust(len(blob), b"\0")

    def hook(request: BaseHTTPRequestHandler) -> bool:
        if digest(blob) not in request.path:
            return False
        reply(request, 200, other)
        return True

    registry.hook = hook


def _damaged_layer(registry: Registry) -> None:
    blob = registry.image.blobs[0]

    def hook(request: BaseHTTPRequestHandler) -> bool:
        if digest(blob) not in request.path:
            return False
        reply(request, 200, blob[:-1] + bytes([blob[-1] ^ 1]))
        return True

    registry.hook = hook


def _cut_off(registry: Registry) -> None:
    blob = registry.image.blobs[0]

    def hook(request: BaseHTTPRequestHandler) -> bool:
        if digest(blob) not in request.path:
            return False
        reply(request, 200, blob[: len(blob) // 2], length=len(blob))
        request.close_connection = True
        return True

    registry.hook = hook


def _manifest(data: bytes, kind: str = MANIFEST) -> Callable[[Registry], None]:
    def change(registry: Registry) -> None:
        registry.manifest_bytes, registry.manifest_type = data, kind

    return change


def _other_media_type(registry: Registry) -> None:
    document = registry.image.manifest()
    document["layers"][0]["mediaType"] = "application/vnd.example.wasm"
    registry.manifest_bytes = json.dumps(document).encode()


def _no_such_platform(registry: Registry) -> None:
    entry = {"mediaType": MANIFEST, "digest": digest(registry.manifest_bytes), "size": len(registry.manifest_bytes),
             "platform": {"os": "plan9", "architecture": "mips"}}  # fmt: skip
    registry.manifest_bytes = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).encode()
    registry.manifest_type = INDEX


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (_wrong_layer, "image.digest_mismatch"),
        (_damaged_layer, "image.digest_mismatch"),
        (_cut_off, "registry.body_cut_off"),
        (_manifest(b"[" * 10_000 + b"]" * 10_000), "image.manifest_too_large"),
        (_manifest(b"{" + b" " * (5 << 20) + b"}"), "image.manifest_too_large"),
        (_manifest(b"not json"), "image.manifest_invalid"),
        (_manifest(b"<html>", "text/html"), "image.manifest_invalid"),
        (_other_media_type, "image.media_type_unsupported"),
        (_no_such_platform, "image.platform_missing"),
    ],
    ids=["wrong digest", "damaged", "cut off", "nested 10,000 deep", "5 MiB", "not JSON", "HTML", "wrong layer type",
         "no such platform"],
)  # fmt: skip
def test_lies(site: Site, registry: Registry, change: Callable[[Registry], None], code: str) -> None:
    change(registry)
    problem = pull_refused(site, registry, code)
    if code == "registry.body_cut_off":
        # What came is kept to be taken up by the next try; prune removes it.
        for entry in (site.folder / "state/ingest").iterdir():
            entry.unlink()
    assert problem["remedy"]


def test_nobody_there(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    refused(site, "registry.unavailable", "pull", "--plain-http", f"127.0.0.1:{port}/a:1")


def test_a_decompression_bomb(site: Site, registry: Registry) -> None:
    """Gzip of gzip's best: 256 MiB of zeros in 260 KB, in a layer that says it is small; and the disk is spared."""
    before = shutil.disk_usage(site.folder).free
    registry.close()
    bomb = Registry(Image(layers=[tar({"zeros": bytes(1 << 20)})]))
    try:
        stream = gzip.compress(bytes(256 << 20), 9) * 4
        bomb.image.blobs = [stream]
        bomb.image.config["rootfs"]["diff_ids"] = [f"sha256:{hashlib.sha256(b'x').hexdigest()}"]  # type: ignore[index]
        bomb.manifest_bytes = json.dumps(bomb.image.manifest()).encode()
        started = time.monotonic()
        name = f"{bomb.host}/a/b"
        done = site("--json", "pull", "--plain-http", name)
        assert done.returncode == 125, done.stderr
        assert b'"image.' in done.stderr, done.stderr
        assert time.monotonic() - started < 30
        assert before - shutil.disk_usage(site.folder).free < 512 << 20
    finally:
        bomb.close()


@pytest.fixture
def real(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Debian's docker-registry: (host:port, its folder)."""
    with running_registry(tmp_path) as host:
        yield host, tmp_path / "registry"


def test_a_real_registry_whose_disk_was_changed(site: Site, real: tuple[str, Path]) -> None:
    """Pushed, then a byte of the layer is changed where the registry keeps it: pulled by nobody; put right, by all."""
    host, folder = real
    name = f"{host}/tools/box:1"
    assert site("tag", "busybox", name).returncode == 0
    assert site("push", "--plain-http", name).returncode == 0
    assert site("rmi", name).returncode == 0
    with socket.socket():
        # Another store: ours still has the blobs under another name, and would not ask for them.
        blobs = [path for path in folder.rglob("data") if path.stat().st_size > 100_000]
    assert blobs, "the layer is there"
    kept = blobs[0].read_bytes()
    from tests.integration.system.site import installed  # noqa: PLC0415 - a second installation for this test only

    with installed() as other:
        blobs[0].write_bytes(kept[:-100] + bytes([kept[-100] ^ 0xFF]) + kept[-99:])
        assert other("rmi", "-f", "busybox").returncode == 0
        assert other("system", "prune", "--all").returncode == 0
        refused(other, "image.digest_mismatch", "pull", "--plain-http", name)
        blobs[0].write_bytes(kept)
        done = other("pull", "--plain-http", name)
        assert done.returncode == 0, done.stderr
        assert other("run", "--rm", name, "echo", "again").stdout == b"again\n"
