"""What a machine begins as: the setting, what a bundle asks for, and which of the two holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from casemate.isolation.microvm import argv, origin
from casemate.isolation.microvm.errors import BundleUnsupported
from casemate.isolation.microvm.kernel import GuestKernel
from casemate.isolation.microvm.template import Recipe
from casemate.spec.settings import SettingInvalid


@pytest.mark.parametrize("text", ["shared", "project", "none"])
def test_the_setting(text: str) -> None:
    assert origin.policy(text) == text


@pytest.mark.parametrize("text", ["", "false", "None", "shared "])
def test_a_setting_that_is_wrong_is_no_default(text: str) -> None:
    with pytest.raises(SettingInvalid):
        origin.policy(text)


@pytest.mark.parametrize("kind", ["shared", "project", "none"])
def test_what_the_driver_writes_is_read_as_it_was_meant(kind: origin.Kind) -> None:
    meant = origin.of(kind, "blue")
    assert origin.asked(meant.text(), kind) == meant


@pytest.mark.parametrize(
    ("text", "least", "found"),
    [
        ("", "shared", "shared"),
        ("none", "shared", "none"),
        ("project:blue", "shared", "project:blue"),
        # Never less apart than the host's setting.
        ("shared", "project", f"project:{origin.ENGINES}"),
        ("", "project", f"project:{origin.ENGINES}"),
        ("shared", "none", "none"),
        ("project:blue", "none", "none"),
        ("", "none", "none"),
    ],
)
def test_a_bundle_can_ask_for_more_and_not_for_less(text: str, least: origin.Kind, found: str) -> None:
    assert origin.asked(text, least).text() == found


@pytest.mark.parametrize(
    "text", ["project", "project:", "none:x", "shared:x", "cold", "project:../x", "project:+engines"]
)
def test_what_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(BundleUnsupported):
        origin.asked(text, "shared")


def test_a_projects_template_is_another_one() -> None:
    kernel = GuestKernel("6.1", Path("/k"), Path("/i"), "digest")

    def key(owner: str) -> str:
        return Recipe(kernel, "7.2", argv.Accelerator("tcg"), 128 << 20, owner=owner).key()

    assert len({key(""), key("blue"), key("red")}) == 3
    assert key("blue") == key("blue")
