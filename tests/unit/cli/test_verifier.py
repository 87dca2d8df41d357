"""containerd's image verifier: what it is given must be whole and of one digest before anybody is asked."""

from __future__ import annotations

import json

import pytest

from casemate.cli.verifier import DESCRIPTOR, MAX_STDIN_BYTES, Refused, arguments, judge

DIGEST, OTHER = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32
NAME = "registry.example/app:1"
GOOD = json.dumps({"digest": DIGEST, "size": 7}).encode()


def test_go_s_flags() -> None:
    assert arguments(["-name", "a", "--digest=b", "-stdin-media-type", "c=d"]) == {
        "name": "a", "digest": "b", "stdin-media-type": "c=d",
    }  # fmt: skip


@pytest.mark.parametrize(
    "argv",
    [
        [], ["name"], ["-name"], ["-name", NAME], ["-digest", DIGEST], ["-name", NAME, "-digest", DIGEST, "-x", "y"],
        ["-name", NAME, "-name", NAME, "-digest", DIGEST], ["-name", f"{NAME}@{OTHER}", "-digest", DIGEST],
        ["-name", NAME, "-digest", DIGEST, "-stdin-media-type", "text/html"],
    ],
)  # fmt: skip
def test_what_is_asked_badly_stays_out(argv: list[str]) -> None:
    with pytest.raises(Refused):
        judge(argv, GOOD)


@pytest.mark.parametrize("stdin", [b"", b"{", b"[]", b"{}", json.dumps({"digest": OTHER}).encode(),
                                   b" " * (MAX_STDIN_BYTES + 1), b"[" * 100_000])  # fmt: skip
def test_a_descriptor_that_is_none_or_of_another_digest(stdin: bytes) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011 - main makes a refusal of whatever it is
        judge(["-name", NAME, "-digest", DIGEST, "-stdin-media-type", DESCRIPTOR], stdin)


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("CASEMATE_HOST", f"unix://{tmp_path}/nobody.sock")
    with pytest.raises(Exception, match="nobody"):
        judge(["-name", NAME, "-digest", DIGEST], b"")
