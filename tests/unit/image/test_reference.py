"""Image references: Docker's short forms, and texts that are none."""

import pytest

from casemate.spec.reference import Reference, ReferenceInvalid, parse_reference

D = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3", "docker.io/library/alpine:3"),
        ("me/app", "docker.io/me/app:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/me/app:1", "docker.io/me/app:1"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/a/b/c:v1", "localhost:5000/a/b/c:v1"),
        ("EXAMPLE.com/a", "example.com/a:latest"),
        ("[::1]:5000/a", "[::1]:5000/a:latest"),
        ("quay.io/a/b_c__d-e.f:T.a-g_1", "quay.io/a/b_c__d-e.f:T.a-g_1"),
        (f"alpine@{D}", f"docker.io/library/alpine@{D}"),
        (f"alpine:3@{D}", f"docker.io/library/alpine:3@{D}"),
    ],
)
def test_normal_form(text, whole):
    parsed = parse_reference(text)
    assert str(parsed) == whole
    assert parse_reference(whole) == parsed
    assert parse_reference(parsed.familiar) == parsed


def test_the_digest_decides():
    assert parse_reference(f"alpine:3@{D}").wanted == D
    assert parse_reference("alpine").wanted == "latest"
    assert parse_reference("a:1").with_digest(D) == Reference("docker.io", "library/a", None, D)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a b",
        "Alpine",
        "a//b",
        "/a",
        "a/",
        "a:",
        ":a",
        "a@",
        "a@sha256:abc",
        "a@md5:" + "a" * 32,
        "a:b:c",
        "a:-x",
        "a:" + "t" * 129,
        "x" * 300,
        "a" * 800,
        "a/../b",
        "..",
        ".a",
        "a.",
        "a___b",
        "a..b",
        "host:99999/a",
        "host:0/a",
        "host:x/a",
        "ho st.com/a",
        "-a.com/b",
        "https://a.com/b",
        "a\n",
        "a\0",
        "é",
        "a" * 64,
        f"a@{D}@{D}",
        "user:pw@host/a",
        "\udcff",
        "a.com/" + "b" * 255,
        "[zz]:1/a",
        "a?b=c",
        "a#b",
    ],
)
def test_no_reference(text):
    with pytest.raises(ReferenceInvalid):
        parse_reference(text)
