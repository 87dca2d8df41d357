"""What refers to an image, from a registry that means ill.

Hostile list (each one row or test): 10,000 signatures in one manifest, 10,000 referrers, a manifest that says it has
1 GiB, one that has more than it may, a blob that is longer than stated, a blob of another digest, a list that goes on
elsewhere, one without end, a referrer of another image, a tag that is no manifest, digests that are none, a registry
that fails (which must not look like "no signature"), a tag that leads to another digest than was published, a kept
file that was changed.
"""

from __future__ import annotations

import json

import pytest
from bad_registry import INDEX, MANIFEST, Image, Registry, digest, reply

from casemate.image.artifacts import fetch
from casemate.image.attach import Attachment, attach
from casemate.image.errors import (
    ArtifactLimit,
    DigestMismatch,
    DigestUnpublished,
    ManifestInvalid,
    RegistryError,
    RegistryUnavailable,
)
from casemate.image.garbage import collect_garbage
from casemate.image.http import Client
from casemate.image.jobs import Endpoints, PullJob
from casemate.image.manifest import Descriptor
from casemate.image.patience import Patience
from casemate.image.pull import pull
from casemate.image.referring import Artifact, Referring, Wanted, keep, kept, path_of
from casemate.image.registry import Repositories
from casemate.image.store import Store
from casemate.spec.errors import Corrupt
from casemate.spec.reference import parse_reference

KIND = "application/x-signature"
WANTED = Wanted(("sig",), ("application/x-type",), (KIND,))
SUBJECT = digest(b"an image")
TAG = SUBJECT.replace(":", "-")


@pytest.fixture
def registry():
    made = Registry(Image())
    yield made
    made.close()


@pytest.fixture
def client():
    made = Client(patience=Patience(0.01, 0.02, 0.02))
    yield made
    made.close()


def ask(client, registry):
    places = Repositories(client, parse_reference(f"{registry.host}/a/b"), Endpoints(insecure=(registry.host,)))
    return fetch(places, SUBJECT, WANTED)


def row(data, **more):
    return {"mediaType": KIND, "digest": digest(data), "size": len(data), **more}


def manifest(layers, **more):
    config = {"mediaType": "application/x-type", "digest": digest(b"{}"), "size": 2}
    return json.dumps({"schemaVersion": 2, "config": config, "layers": layers, **more}).encode()


def serve(registry, name, data, kind=MANIFEST):
    registry.documents[name] = (data, kind)


def serve_blobs(registry, *blobs):
    registry.image.blobs += blobs


def refer(registry, data):
    """A list of one referrer under the fallback tag: the manifest *data*."""
    serve(registry, digest(data), data)
    rows = [{"mediaType": MANIFEST, "digest": digest(data), "size": len(data), "artifactType": "application/x-type"}]
    serve(registry, TAG, json.dumps({"schemaVersion": 2, "manifests": rows}).encode(), INDEX)


def test_both_places(client, registry):
    assert ask(client, registry) == ()
    serve_blobs(registry, b"one", b"two")
    serve(registry, f"{TAG}.sig", manifest([row(b"one", annotations={"a": "b"}), row(b"no", mediaType="other/kind")]))
    refer(registry, manifest([row(b"two")], subject=row(b"an image")))
    found = ask(client, registry)
    assert [(one.data, one.annotations) for one in found] == [(b"one", {"a": "b"}), (b"two", {})]


def test_the_api_is_asked_before_the_tag(client, registry):
    serve_blobs(registry, b"two")
    document = manifest([row(b"two")], subject=row(b"an image"))
    serve(registry, digest(document), document)
    rows = [{"mediaType": MANIFEST, "digest": digest(document), "size": len(document)}]
    listing = json.dumps({"schemaVersion": 2, "manifests": rows}).encode()

    def hook(request):
        if "/referrers/" in request.path and "page=2" not in request.path:
            link = {"Content-Type": INDEX, "Link": f'<{request.path}?page=2>; rel="next"'}
            reply(request, 200, b'{"schemaVersion":2,"manifests":[]}', link)
            return True
        if "/referrers/" in request.path:
            reply(request, 200, listing, {"Content-Type": INDEX})
            return True
        return False

    registry.hook = hook
    assert [one.data for one in ask(client, registry)] == [b"two"]
    assert not any(path.endswith(f"/manifests/{TAG}") for _, path, _ in registry.requests)


@pytest.mark.parametrize(
    ("layers", "error"),
    [
        ([row(b"x")] * 10_000, ArtifactLimit),
        ([row(b"x", size=1 << 30)], ArtifactLimit),
        ([row(b"%d" % number, size=8 << 20) for number in range(5)], ArtifactLimit),
        ([row(b"longer than it says", size=4)], DigestMismatch),
        ([row(b"x", size=-1)], ManifestInvalid),
        ([row(b"x", digest="sha256:../../x")], ManifestInvalid),
        ("x", ManifestInvalid),
    ],
)
def test_signatures_that_are_too_many_too_large_or_lie(client, registry, layers, error):
    serve_blobs(registry, b"x", b"longer than it says")
    serve(registry, f"{TAG}.sig", manifest(layers))
    with pytest.raises(error):
        ask(client, registry)


def test_ten_thousand_referrers(client, registry):
    rows = [{"mediaType": MANIFEST, "digest": digest(b"%d" % number), "size": 2} for number in range(10_000)]
    serve(registry, TAG, json.dumps({"schemaVersion": 2, "manifests": rows}).encode(), INDEX)
    with pytest.raises(ArtifactLimit):
        ask(client, registry)
    assert len(registry.requests) < 10


@pytest.mark.parametrize("place", [f"{TAG}.sig", TAG])
def test_a_manifest_of_a_gibibyte(client, registry, place):
    def hook(request):
        if request.path.endswith(f"/manifests/{place}"):
            reply(request, 200, b"{" + b" " * 4096, {"Content-Type": MANIFEST}, length=1 << 30)
            return True
        return False

    registry.hook = hook
    with pytest.raises(ArtifactLimit):
        ask(client, registry)


@pytest.mark.parametrize("where", ["http://127.0.0.1:9/v2/x", "?page=again"])
def test_a_list_that_goes_on_elsewhere_or_without_end(client, registry, where):
    def hook(request):
        if "/referrers/" not in request.path:
            return False
        headers = {"Content-Type": INDEX, "Link": f'<{where}>; rel="next"'}
        reply(request, 200, b'{"schemaVersion":2,"manifests":[]}', headers)
        return True

    registry.hook = hook
    with pytest.raises((RegistryError, ArtifactLimit)):
        ask(client, registry)
    assert len(registry.requests) < 20


@pytest.mark.parametrize("subject", [{}, {"subject": row(b"another image")}])
def test_a_referrer_of_another_image_does_not_count(client, registry, subject):
    serve_blobs(registry, b"two")
    refer(registry, manifest([row(b"two")], **subject))
    assert ask(client, registry) == ()


def test_a_mirror_without_signatures_does_not_speak_for_the_registry(client, registry):
    serve_blobs(registry, b"one")
    serve(registry, f"{TAG}.sig", manifest([row(b"one")]))
    mirror = Registry(Image())
    endpoints = Endpoints(insecure=(registry.host, mirror.host), mirrors=(f"{registry.host}={mirror.host}",))
    places = Repositories(client, parse_reference(f"{registry.host}/a/b"), endpoints)
    try:
        assert [one.data for one in fetch(places, SUBJECT, WANTED)] == [b"one"]
        assert mirror.requests
        mirror.hook = lambda request: reply(request, 500) is None
        assert [one.data for one in fetch(places, SUBJECT, WANTED)] == [b"one"]
        registry.hook = lambda request: reply(request, 503) is None
        mirror.hook = lambda request: False
        with pytest.raises(RegistryUnavailable):  # nobody who could know says that there is none
            fetch(places, SUBJECT, WANTED)
    finally:
        mirror.close()


def test_a_registry_that_fails_is_not_one_without_signatures(client, registry):
    def hook(request):
        reply(request, 503)
        return True

    registry.hook = hook
    with pytest.raises(RegistryUnavailable):
        ask(client, registry)


def test_a_pull_keeps_what_refers_and_lives_without(work, registry):
    subject = digest(registry.manifest_bytes)
    endpoints = Endpoints(insecure=(registry.host,))
    name = f"{registry.host}/a/b"
    job = PullJob(state=str(work.store.root), reference=name, endpoints=endpoints, convert=False, referring=WANTED)
    serve(registry, f"{subject.replace(':', '-')}.sig", b"no manifest")
    pull(work, job)
    assert kept(work.store, subject, name) is None  # not known is not the same as none
    serve_blobs(registry, b"one")
    serve(registry, f"{subject.replace(':', '-')}.sig", manifest([row(b"one")]))
    pull(work, job)
    found = kept(work.store, subject, name)
    assert found is not None
    assert [one.data for one in found.artifacts] == [b"one"]
    assert kept(work.store, subject, f"{registry.host}/another") is None


def test_a_tag_that_its_publisher_did_not_sign(work, registry):
    job = PullJob(
        state=str(work.store.root), reference=f"{registry.host}/a/b", endpoints=Endpoints(insecure=(registry.host,)),
        convert=False, published=digest(b"what was signed"),
    )  # fmt: skip
    with pytest.raises(DigestUnpublished):
        pull(work, job)
    assert not any("/blobs/" in path for _, path, _ in registry.requests)


def test_a_kept_file_that_was_changed_and_its_end(tmp_path):
    store = Store(tmp_path / "state")
    store.create()
    value = Referring(SUBJECT, "a/b", 1.0, (Artifact(KIND, b"x", SUBJECT),))
    keep(store, value)
    assert kept(store, SUBJECT, "a/b") == value
    path = path_of(store, SUBJECT, "a/b")
    path.rename(path_of(store, SUBJECT, "c/d"))
    with pytest.raises(Corrupt):
        kept(store, SUBJECT, "c/d")
    keep(store, value)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(Corrupt):
        kept(store, SUBJECT, "a/b")
    keep(store, value)
    collect_garbage(store, {SUBJECT})
    assert kept(store, SUBJECT, "a/b") == value
    collect_garbage(store, ())
    assert kept(store, SUBJECT, "a/b") is None


@pytest.mark.parametrize("lists", [True, False])
def test_who_keeps_the_list_of_referrers(client, registry, lists):
    """A registry with the referrers API says so by a header; for one without, the client writes the fallback tag."""
    put = {}

    def hook(request):
        length = int(request.headers.get("Content-Length", 0))
        body = request.rfile.read(length)
        if request.command == "HEAD":
            reply(request, 404)
        elif request.command == "POST":
            reply(request, 202, headers={"Location": "/v2/a/b/blobs/uploads/1"})
        elif request.command == "PUT":
            put[request.path.partition("?")[0].rpartition("/")[2]] = body
            is_manifest = "/manifests/sha256:" in request.path
            reply(request, 201, headers={"OCI-Subject": SUBJECT} if lists and is_manifest else {})
        else:
            return False
        return True

    registry.hook = hook
    place = Repositories(client, parse_reference(f"{registry.host}/a/b"), Endpoints(insecure=(registry.host,))).places[
        0
    ]
    attachment = Attachment(KIND, b"signature", {"x": "y"}, type="application/x-type", on_manifest={"a": "b"})
    name = attach(place, Descriptor(SUBJECT, 8, MANIFEST), attachment)
    written = json.loads(put[name])
    assert written["subject"] == {"mediaType": MANIFEST, "digest": SUBJECT, "size": 8}
    assert written["layers"][0]["annotations"] == {"x": "y"}
    assert (TAG in put) == (not lists)
    if not lists:
        (listed,) = json.loads(put[TAG])["manifests"]
        assert (listed["digest"], listed["artifactType"]) == (name, "application/x-type")
        assert listed["annotations"] == {"a": "b"}
