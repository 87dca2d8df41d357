"""Which image is taken for a platform, and which this host can run."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from casemate.image.records import Platform
from casemate.node.errors import PlatformForeign, PlatformOther
from casemate.node.platforms import check_asked, check_runs, parse_platform
from casemate.spec.errors import InvalidArgument

OWN = parse_platform(None)
FOREIGN = Platform("linux", "s390x" if OWN.architecture != "s390x" else "amd64")


@pytest.mark.parametrize("text", ["", "windows/amd64", "linux/", "a/b/c/d", "../x"])
def test_no_platform_of_ours(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_platform(text)


@pytest.mark.parametrize(
    ("found", "asked", "taken"),
    [
        (Platform(), None, True),
        (Platform(), "linux/amd64", True),
        (Platform(), "x86_64", True),
        (Platform("linux", "arm", "v6"), "linux/arm/v7", True),
        (Platform(), "linux/arm64", False),
        (Platform("linux", "arm64", "v8"), "arm64", True),
    ],
)
def test_an_image_of_another_platform_is_not_taken(found: Platform, asked: str | None, taken: bool) -> None:
    if taken:
        check_asked(found, asked, "box")
        return
    with pytest.raises(PlatformOther, match=r"box names here is for linux/amd64, not linux/arm64") as raised:
        check_asked(found, asked, "box")
    assert "casemate pull --platform linux/arm64 box" in str(raised.value.instance_remedy)


@pytest.mark.parametrize(
    ("content", "runs"),
    [
        (None, False),
        ("enabled\ninterpreter /usr/bin/qemu\nflags: F\n", True),
        ("enabled\ninterpreter /usr/bin/qemu\nflags: OC\n", False),
        ("disabled\ninterpreter /usr/bin/qemu\nflags: F\n", False),
        ("", False),
    ],
)
def test_foreign_programs_need_an_interpreter_that_the_kernel_holds(
    tmp_path: Path, content: str | None, runs: bool
) -> None:
    names = {"amd64": "x86_64"}
    if content is not None:
        (tmp_path / f"qemu-{names.get(FOREIGN.architecture, FOREIGN.architecture)}").write_text(content)
    asyncio.run(check_runs(OWN, "box", tmp_path))
    if runs:
        asyncio.run(check_runs(FOREIGN, "box", tmp_path))
        return
    with pytest.raises(PlatformForeign, match="no interpreter is registered"):
        asyncio.run(check_runs(FOREIGN, "box", tmp_path))


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="missing: an x86_64 host")
def test_older_programs_of_the_same_processor_run(tmp_path: Path) -> None:
    asyncio.run(check_runs(Platform("linux", "386"), "box", tmp_path))
