"""A registry that misbehaves.

Hostile list (each one test or one row): 401 without and with a challenge, a token realm elsewhere over plain
HTTP, 403, 404, 429 with Retry-After, 500 for ever, 500 once; a manifest, a configuration, a layer whose bytes
are not what the digest says; a body cut off once and for ever; a Content-Length that is wrong; a body longer
than the manifest says; wrong media types; schema 1; foreign layers; an artifact; a document that is manifest
and index; an index of indexes; an index without our platform; a manifest of 5 MiB; one nested 10,000 deep;
not JSON; diff_ids that lie or are missing; more layers than overlayfs takes; a redirect loop, a redirect
elsewhere that must not see credentials; a bomb; a name that is no name; a damaged partial download; no server
at all; headers without end.
"""

from __future__ import annotations

import base64
import gzip
import json

import pytest
import zstandard
from bad_registry import INDEX, MANIFEST, Image, Registry, digest, reply, tar

from casemate.image.errors import (
    BodyCutOff,
    DigestMismatch,
    ImageNotFound,
    LayerTooLarge,
    ManifestInvalid,
    ManifestTooLarge,
    MediaTypeUnsupported,
    PlatformMissing,
    RegistryBusy,
    RegistryDenied,
    RegistryError,
    RegistryUnauthorized,
    RegistryUnavailable,
)
from casemate.image.jobs import Endpoints, Limits, Login, PullJob
from casemate.image.pull import pull
from casemate.spec.reference import ReferenceInvalid


@pytest.fixture
def registry():
    made = Registry(Image())
    yield made
    made.close()


def fetch(work, registry, *, login=None, name=None, convert=True, mirrors=()):
    logins = {registry.host: login} if login else {}
    endpoints = Endpoints(insecure=(registry.host,), logins=logins, mirrors=mirrors)
    job = PullJob(
        state=str(work.store.root), reference=name or f"{registry.host}/a/b", endpoints=endpoints, convert=convert
    )
    return pull(work, job)


def serve(registry, manifest, kind=MANIFEST):
    registry.manifest_bytes = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    registry.manifest_type = kind


def only(path_part, action):
    def hook(request):
        if path_part in request.path:
            return action(request) is not False
        return False

    return hook


def test_a_well_behaved_one(work, registry):
    result = fetch(work, registry)
    assert result.layers[0].passwd == b"root:x:0:0::/:/bin/sh\n"
    assert result.digest == digest(registry.manifest_bytes)
    assert work.store.staged_path(result.staged[0]).exists()
    assert list((work.store.root / "ingest").iterdir()) == []
    again = fetch(work, registry)
    assert again.transferred_bytes == 0


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, RegistryUnauthorized),
        (403, RegistryDenied),
        (404, ImageNotFound),
        (429, RegistryBusy),
        (500, RegistryUnavailable),
        (418, RegistryError),
    ],
)
@pytest.mark.parametrize("part", ["/manifests/", "/blobs/"])
def test_status(work, registry, status, error, part):
    registry.hook = only(
        part,
        lambda request: reply(
            request, status, b'{"errors":[{"code":"X","message":"why\\u0007"}]}', {"Retry-After": "9999"}
        ),
    )
    with pytest.raises(error) as caught:
        fetch(work, registry)
    assert "why?" in caught.value.detail
    assert list((work.store.root / "blobs/sha256").iterdir()) == []


def test_500_once_is_tried_again(work, registry):
    seen = []
    registry.hook = only("/manifests/", lambda request: (seen.append(1), reply(request, 503))[1] if not seen else False)
    assert fetch(work, registry).images


def token_hook(registry, realm, seen):
    def hook(request):
        if request.path.startswith("/token"):
            seen.append((request.path, request.headers.get("Authorization")))
            reply(request, 200, b'{"token":"T0K"}')
            return True
        if request.headers.get("Authorization") != "Bearer T0K":
            reply(
                request,
                401,
                b"",
                {"WWW-Authenticate": f'Bearer realm="{realm}",service="s",scope="repository:a/b:pull"'},
            )
            return True
        return False

    return hook


def test_token_and_its_credentials(work, registry):
    seen = []
    registry.hook = token_hook(registry, f"http://{registry.host}/token", seen)
    assert fetch(work, registry, login=Login("me", "secret")).images
    assert "scope=repository%3Aa%2Fb%3Apull" in seen[0][0]
    assert seen[0][1] == "Basic " + base64.b64encode(b"me:secret").decode()


def test_realm_elsewhere_over_plain_http_gets_nothing(work, registry):
    seen = []
    registry.hook = token_hook(registry, "http://localhost.example:1/token", seen)
    with pytest.raises(RegistryError, match="neither https nor its own host"):
        fetch(work, registry, login=Login("me", "secret"))
    assert seen == []


def test_basic(work, registry):
    right = "Basic " + base64.b64encode(b"me:secret").decode()

    def hook(request):
        if request.headers.get("Authorization") == right:
            return False
        reply(request, 401, b"", {"WWW-Authenticate": 'Basic realm="x"'})
        return True

    registry.hook = hook
    assert fetch(work, registry, login=Login("me", "secret")).images
    with pytest.raises(RegistryUnauthorized):
        fetch(work, registry, login=Login("me", "wrong"))


def test_redirect_elsewhere_does_not_see_credentials(work, registry):
    other = Registry(registry.image)
    right = "Basic " + base64.b64encode(b"me:secret").decode()

    def hook(request):
        if request.headers.get("Authorization") != right:
            reply(request, 401, b"", {"WWW-Authenticate": 'Basic realm="x"'})
        elif "/blobs/" in request.path:
            reply(request, 307, b"", {"Location": f"http://{other.host}{request.path}"})
        else:
            return False
        return True

    registry.hook = hook
    try:
        assert fetch(work, registry, login=Login("me", "secret")).images
        assert other.requests
        assert all("authorization" not in headers for _, _, headers in other.requests)
    finally:
        other.close()


def test_redirect_loop(work, registry):
    registry.hook = only("/blobs/", lambda request: reply(request, 302, b"", {"Location": request.path}))
    with pytest.raises(RegistryError, match="redirects more than"):
        fetch(work, registry)


def test_layer_of_another_digest(work, registry):
    blob = registry.image.blobs[0]
    registry.hook = only(digest(blob), lambda request: reply(request, 200, blob[:-9] + b"\0" * 9))
    with pytest.raises(DigestMismatch):
        fetch(work, registry, convert=False)
    assert list((work.store.root / "ingest").iterdir()) == []
    assert not work.store.has_blob(digest(blob))


def test_manifest_and_configuration_of_another_digest(work, registry):
    wanted = "sha256:" + "1" * 64
    registry.documents[wanted] = (registry.manifest_bytes, MANIFEST)
    with pytest.raises(DigestMismatch):
        fetch(work, registry, name=f"{registry.host}/a/b@{wanted}")
    config = registry.image.config_bytes()
    registry.hook = only(digest(config), lambda request: reply(request, 200, config.replace(b"sh", b"xx")))
    with pytest.raises(DigestMismatch):
        fetch(work, registry)


def cut(blob, times):
    def action(request):
        if times and not times.pop():
            return False
        wanted = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        step = 100 if times else 0
        status = 206 if "Range" in request.headers else 200
        reply(
            request,
            status,
            blob[wanted : wanted + step],
            {"Content-Range": f"bytes {wanted}-"},
            length=len(blob) - wanted,
        )
        request.close_connection = True
        return True

    return action


def test_body_cut_off_is_resumed(work, registry):
    blob = registry.image.blobs[0]
    registry.hook = only(digest(blob), cut(blob, [False, True, True]))
    assert fetch(work, registry).images
    ranges = [headers.get("range") for _, path, headers in registry.requests if digest(blob) in path]
    assert ranges == [None, "bytes=100-", "bytes=200-"]


def test_body_cut_off_for_ever(work, registry):
    blob = registry.image.blobs[0]
    registry.hook = only(digest(blob), cut(blob, []))
    with pytest.raises((BodyCutOff, RegistryUnavailable)):
        fetch(work, registry)


def test_partial_download_is_taken_up_and_a_damaged_one_replaced(work, registry):
    blob = registry.image.blobs[0]
    work.store.ingest_path(digest(blob)).write_bytes(blob[:50])
    assert fetch(work, registry).transferred_bytes == len(blob) - 50
    for path in (
        work.store.blob_path(digest(blob)),
        work.store.layer_path(registry.image.config["rootfs"]["diff_ids"][0]),
    ):
        path.unlink()
    work.store.ingest_path(digest(blob)).write_bytes(b"\x1f\x8b" + b"damaged" * 3)
    assert fetch(work, registry).images


@pytest.mark.parametrize("change", [-1, 1])
def test_wrong_content_length(work, registry, change):
    blob = registry.image.blobs[0]

    def action(request):
        reply(request, 200, blob, length=len(blob) + change)
        request.close_connection = True

    registry.hook = only(digest(blob), action)
    with pytest.raises(DigestMismatch, match="Content-Length"):
        fetch(work, registry)


def test_more_than_the_manifest_says(work, registry):
    manifest = registry.image.manifest()
    manifest["layers"][0]["size"] -= 10
    serve(registry, manifest)
    with pytest.raises(DigestMismatch):
        fetch(work, registry)


BAD_MANIFESTS = {
    "not json": (b"{", MANIFEST, ManifestInvalid),
    "html": (b"<html></html>", "text/html", ManifestInvalid),
    "not an object": (b"[]", MANIFEST, ManifestInvalid),
    "schema 1": (
        b'{"schemaVersion":1,"fsLayers":[]}',
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        MediaTypeUnsupported,
    ),
    "unknown type": (b'{"schemaVersion":2}', "application/x-thing", MediaTypeUnsupported),
    "both": (b'{"schemaVersion":2,"manifests":[],"layers":[],"config":{}}', MANIFEST, ManifestInvalid),
    "contradiction": (
        b'{"schemaVersion":2,"mediaType":"' + INDEX.encode() + b'","manifests":[]}',
        MANIFEST,
        ManifestInvalid,
    ),
    "deep": (b"[" * 10_000 + b"]" * 10_000, MANIFEST, ManifestTooLarge),
    "huge": (b'{"x":"' + b"y" * (5 << 20) + b'"}', MANIFEST, ManifestTooLarge),
    "empty index": (b'{"schemaVersion":2,"manifests":[]}', INDEX, PlatformMissing),
}


@pytest.mark.parametrize("name", BAD_MANIFESTS)
def test_bad_manifest(work, registry, name):
    data, kind, error = BAD_MANIFESTS[name]
    serve(registry, data, kind)
    with pytest.raises(error):
        fetch(work, registry)


def changed(registry, change):
    manifest = registry.image.manifest()
    change(manifest)
    serve(registry, manifest)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            lambda m: m["layers"][0].update(mediaType="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
            MediaTypeUnsupported,
            "foreign",
        ),
        (lambda m: m["layers"][0].update(mediaType="application/x"), MediaTypeUnsupported, "application/x"),
        (
            lambda m: m["config"].update(mediaType="application/vnd.cncf.helm.config.v1+json"),
            MediaTypeUnsupported,
            "artifact",
        ),
        (lambda m: m["layers"][0].update(digest="sha256:../../../etc"), ManifestInvalid, "digest"),
        (lambda m: m["layers"][0].update(size=-5), ManifestInvalid, "size"),
        (lambda m: m["config"].update(size=1 << 40), ManifestTooLarge, "max_manifest_bytes"),
        (lambda m: m.update(layers=m["layers"] * 200), ManifestInvalid, "layers"),
        (lambda m: m.update(layers=[]), ManifestInvalid, "diff_ids"),
    ],
)
def test_manifest_that_lies(work, registry, change, error, words):
    changed(registry, change)
    with pytest.raises(error, match=words):
        fetch(work, registry)


def test_diff_id_that_lies(work):
    image = Image()
    image.config["rootfs"]["diff_ids"] = ["sha256:" + "2" * 64]
    registry = Registry(image)
    try:
        with pytest.raises(DigestMismatch, match="configuration"):
            fetch(work, registry)
        assert list((work.store.root / "staging").iterdir()) == []
    finally:
        registry.close()


def test_index_of_indexes_and_missing_platform(work, registry):
    inner = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).encode()
    registry.documents[digest(inner)] = (inner, INDEX)
    entry = {
        "mediaType": MANIFEST,
        "digest": digest(inner),
        "size": len(inner),
        "platform": {"os": "linux", "architecture": "amd64"},
    }
    serve(registry, {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}, INDEX)
    with pytest.raises(ManifestInvalid, match="index of indexes"):
        fetch(work, registry)
    entry["platform"] = {"os": "linux", "architecture": "s390x"}
    serve(registry, {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}, INDEX)
    with pytest.raises(PlatformMissing, match="linux/s390x"):
        fetch(work, registry)


def test_bomb(work):
    registry = Registry(Image([tar({"zeros": bytes(100 << 20)})]))
    work.limits = Limits(max_ratio=100)
    try:
        with pytest.raises(LayerTooLarge):
            fetch(work, registry)
        assert list((work.store.root / "staging").iterdir()) == []
    finally:
        registry.close()


@pytest.mark.parametrize(
    ("pack", "kind"),
    [
        (lambda data: zstandard.compress(data, 3), "application/vnd.oci.image.layer.v1.tar+zstd"),
        (lambda data: data, "application/vnd.oci.image.layer.v1.tar"),
        (
            lambda data: gzip.compress(data[:999]) + gzip.compress(data[999:]),
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        ),
    ],
)
def test_other_packings(work, pack, kind):
    registry = Registry(Image(pack=pack, layer_type=kind))
    try:
        assert fetch(work, registry).layers[0].unpacked_bytes == len(registry.image.tars[0])
    finally:
        registry.close()


def test_mirror_is_asked_first_and_failure_falls_back(work, registry):
    mirror = Registry(registry.image)
    try:
        mirror.hook = lambda request: (reply(request, 404), True)[1]
        endpoints = Endpoints(insecure=(registry.host, mirror.host), mirrors=(f"{registry.host}={mirror.host}",))
        job = PullJob(state="", reference=f"{registry.host}/a/b", endpoints=endpoints)
        assert pull(work, job).images
        assert mirror.requests
        registry.requests.clear()
        mirror.hook = lambda _request: False
        assert pull(work, job).images
        assert registry.requests == []
    finally:
        mirror.close()


def test_nobody_there_and_plain_http_unasked(work, registry):
    with pytest.raises(RegistryUnavailable):
        pull(work, PullJob(state="", reference=f"{registry.host}/a/b"))  # TLS to a plain port
    with pytest.raises(RegistryUnavailable):
        pull(work, PullJob(state="", reference="127.0.0.1:9/a/b", endpoints=Endpoints(insecure=("127.0.0.1:9",))))


def test_headers_without_end(work, registry):
    def action(request):
        request.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000)
        request.close_connection = True

    registry.hook = only("/manifests/", action)
    with pytest.raises(RegistryUnavailable):
        fetch(work, registry)


def test_malformed_reference(work, registry):
    with pytest.raises(ReferenceInvalid):
        fetch(work, registry, name="UPPER/../x")
