"""``inspect`` shows how many system calls of the host's kernel a level lets through, and which."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

Run = Callable[..., subprocess.CompletedProcess[str]]
PAGE = Path(__file__).parents[3] / "docs/security/system-calls.md"
FILTER = Path(__file__).parents[3] / "shim/seccomp.c"


@pytest.mark.parametrize("level", ["namespace", "gvisor", "microvm"])
def test_inspect_shows_the_allow_list(vm: Run, level: str) -> None:
    done = vm("create", "--name", "listed", "--isolation", level, "busybox", "true")
    assert done.returncode == 0, done.stderr
    try:
        (found,) = json.loads(vm("inspect", "listed").stdout)
        calls = found["Casemate"]["SystemCalls"]
        assert calls["Allowed"] == len(calls["Names"]) > 50
        assert vm("inspect", "-f", "{{.Casemate.SystemCalls.Allowed}}", "listed").stdout == f"{calls['Allowed']}\n"
        assert "kexec_load" not in calls["Names"]
        if level != "gvisor":  # there it is that of the runsc that is installed
            assert f"| `{level}` | {calls['Allowed']} |" in PAGE.read_text()
        if level == "gvisor":
            assert {"ptrace", "futex"} <= set(calls["Names"])
            assert "execve" not in calls["Names"]
        if level == "microvm":
            text = FILTER.read_text()
            filtered = re.findall(r"SYS_(\w+)", text[text.index("allowed[]") : text.index("enum { COUNT")])
            assert calls["Names"] == sorted(filtered)
    finally:
        vm("rm", "-f", "listed")
