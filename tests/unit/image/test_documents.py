"""Manifests, platforms, challenges, credentials: what comes from outside becomes values or is refused."""

import base64
import json

import pytest

from casemate.image import media
from casemate.image.challenge import Challenge, check_realm, parse_challenge, token_request
from casemate.image.credentials import login_for, parse_config, registry_of, run_helper
from casemate.image.errors import (
    CredentialsInvalid,
    ManifestInvalid,
    ManifestTooLarge,
    MediaTypeUnsupported,
    PlatformMissing,
    RegistryError,
)
from casemate.image.jobs import Login
from casemate.image.manifest import check_bounds, choose_platform, decode_index, document_type, parse_platform
from casemate.image.records import LayerRecord, Platform, user_files, visible_layers
from casemate.spec.errors import InvalidArgument

MAX = 1 << 20


def index(*platforms):
    entries = [
        {"digest": f"sha256:{number:064x}", "size": 1, "mediaType": media.OCI_MANIFEST, "platform": platform}
        for number, platform in enumerate(platforms)
    ]
    return decode_index(json.dumps({"schemaVersion": 2, "manifests": entries}).encode(), "x", MAX)


ARM = [{"os": "linux", "architecture": "arm", "variant": variant} for variant in ("v5", "v6", "v7")]


@pytest.mark.parametrize(
    ("wanted", "offered", "chosen"),
    [
        ("amd64", [{"os": "linux", "architecture": "arm64"}, {"os": "linux", "architecture": "amd64"}], 1),
        ("linux/arm/v6", ARM, 1),
        ("linux/arm", ARM, 2),
        ("aarch64", [{"os": "linux", "architecture": "arm64", "variant": "v8"}], 0),
        (
            "linux/amd64/v3",
            [{"os": "linux", "architecture": "amd64"}, {"os": "linux", "architecture": "amd64", "variant": "v2"}],
            1,
        ),
        ("amd64", [{"os": "unknown", "architecture": "unknown"}, {"os": "linux", "architecture": "amd64"}], 1),
    ],
)
def test_platform(wanted, offered, chosen):
    assert choose_platform(index(*offered), parse_platform(wanted), "x").digest == f"sha256:{chosen:064x}"


def test_platform_missing_names_what_there_is():
    with pytest.raises(PlatformMissing, match="linux/arm/v5, linux/arm/v6, linux/arm/v7"):
        choose_platform(index(*ARM), Platform("linux", "amd64"), "x")
    with pytest.raises(PlatformMissing):
        choose_platform(index(*ARM[1:]), parse_platform("linux/arm/v5"), "x")


@pytest.mark.parametrize("text", ["", "a/b/c/d", "linux/", "../x", "a b"])
def test_no_platform(text):
    with pytest.raises(InvalidArgument):
        parse_platform(text)


def test_depth_is_counted_outside_strings():
    check_bounds(json.dumps({"x": "[" * 500 + '\\"{'}).encode(), "x", MAX)
    with pytest.raises(ManifestTooLarge):
        check_bounds(b'{"a":' * 30, "x", MAX)
    with pytest.raises(ManifestTooLarge):
        check_bounds(b" " * (MAX + 1), "x", MAX)


def test_document_types():
    assert document_type(b'{"schemaVersion":2,"manifests":[]}', "application/json", "x", MAX) == media.OCI_INDEX
    assert document_type(b'{"schemaVersion":2,"layers":[]}', "", "x", MAX) == media.OCI_MANIFEST
    with pytest.raises(ManifestInvalid):
        document_type(b'{"schemaVersion":2,"layers":[]}', media.OCI_INDEX, "x", MAX)
    with pytest.raises(MediaTypeUnsupported):
        document_type(b'{"schemaVersion":1,"fsLayers":[]}', "", "x", MAX)


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ('Bearer realm="https://a/t",service="s",scope="x y"', Challenge("bearer", "https://a/t", "s", "x y")),
        ('Basic realm="r", Bearer realm="https://b/"', Challenge("bearer", "https://b/")),
        ('bearer realm="a\\"b"', Challenge("bearer", 'a"b')),
        ("Basic", Challenge("basic", "")),
        ("Digest realm=x", None),
        ("", None),
        ('Bearer realm="' + "x" * 100, Challenge("bearer", "")),
    ],
)
def test_challenge(header, found):
    assert parse_challenge(header) == found


def test_challenge_without_end():
    with pytest.raises(RegistryError):
        parse_challenge("Bearer " + 'a="b",' * 10_000)


@pytest.mark.parametrize(
    ("realm", "plain", "allowed"),
    [
        ("https://auth.example/t", False, True),
        ("http://reg.example:1/t", True, True),
        ("http://reg.example/t", False, False),
        ("http://evil.example/t", True, False),
        ("http://reg.example@evil.example/t", True, False),
        ("file:///etc/passwd", True, False),
        ("https:///x", False, False),
        ("", True, False),
        ("http://[", True, False),
    ],
)
def test_realm(realm, plain, allowed):
    if allowed:
        check_realm(realm, "reg.example:1", registry_is_plain=plain)
    else:
        with pytest.raises(RegistryError):
            check_realm(realm, "reg.example:1", registry_is_plain=plain)


def test_refresh_token_goes_in_the_body():
    method, url, headers, body = token_request(Challenge("bearer", "https://a/t", "s"), "sc", Login(identity_token="T"))
    assert (method, url) == ("POST", "https://a/t")
    assert b"refresh_token=T" in (body or b"")
    assert "Authorization" not in headers


def config(**members):
    return json.dumps(members).encode()


def test_credential_file():
    auth = base64.b64encode(b"me:pa:ss").decode()
    found = parse_config(
        config(
            auths={"https://index.docker.io/v1/": {"auth": auth}, "r:5000": {"identitytoken": "t"}, "empty": {}},
            credHelpers={"q.io": "pass"},
        ),
        "f",
    )
    assert found.logins["docker.io"] == Login("me", "pa:ss")
    assert found.logins["r:5000"].identity_token == "t"
    assert "empty" not in found.logins
    assert found.helpers == {"q.io": "pass"}
    assert registry_of("https://registry-1.docker.io/v2/") == "docker.io"


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"[]",
        b"[" * 100_000,
        config(auths=[]),
        config(auths={"a": 1}),
        config(auths={"a": {"auth": "!!"}}),
        config(auths={"a": {"auth": "bm8="}}),
        config(credsStore="../../bin/sh"),
        config(credHelpers={"a": "x y"}),
        config(credsStore=5),
        config(auths={"a": {"auth": 7}}),
    ],
)
def test_bad_credential_file(data):
    with pytest.raises(CredentialsInvalid) as caught:
        parse_config(data, "f")
    assert "bm8=" not in caught.value.detail


def test_helpers(tmp_path, monkeypatch):
    helper = tmp_path / "docker-credential-test"
    helper.write_text(
        '#!/bin/sh\nread server\n[ "$server" = known ] && echo \'{"Username":"u","Secret":"s"}\' && exit 0\n'
        '[ "$server" = token ] && echo \'{"Username":"<token>","Secret":"t"}\' && exit 0\n'
        '[ "$server" = odd ] && echo odd && exit 0\necho credentials not found in native keychain\nexit 1\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert run_helper("test", "known") == Login("u", "s")
    assert run_helper("test", "token") == Login(identity_token="t")
    assert run_helper("test", "other") is None
    for name, server in (("test", "odd"), ("absent", "x"), ("../test", "x")):
        with pytest.raises(CredentialsInvalid):
            run_helper(name, server)
    (tmp_path / "config.json").write_bytes(config(credHelpers={"known": "test"}))
    assert login_for("known", {"DOCKER_CONFIG": str(tmp_path)}) == Login("u", "s")
    assert login_for("nobody", {"DOCKER_CONFIG": str(tmp_path)}) is None


def record(**given):
    return LayerRecord("d", "s", 1, 1, 1, **given)


def test_user_files_come_from_the_uppermost_layer_that_says():
    layers = [
        record(passwd=b"1", passwd_hidden=True, group=b"g", group_hidden=True),
        record(passwd=b"2", passwd_hidden=True),
        record(),
    ]
    assert user_files(layers) == (b"2", b"g")
    assert user_files([*layers, record(passwd_hidden=True)]) == (None, b"g")
    assert visible_layers([*layers, record(opaque_root=True), record()]) == [record(opaque_root=True), record()]
