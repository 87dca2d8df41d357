"""The systemd units are valid, keep containers alive over a restart, and give no more than is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = ("casemated", "casemate-hostd")
#: systemd's own scale from 0 (nothing reachable) to 10; the privileged daemon is bound by its protocol instead.
MAX_EXPOSURE = 3.0
#: Each gives a unit a mount namespace of its own.
MOUNT_NAMESPACE = [
    "ProtectSystem",
    "ProtectHome",
    "PrivateTmp",
    "PrivateDevices",
    "PrivateMounts",
    "ReadWritePaths",
    "ReadOnlyPaths",
    "InaccessiblePaths",
    "BindPaths",
    "BindReadOnlyPaths",
    "TemporaryFileSystem",
    "ProtectKernelTunables",
    "ProtectKernelModules",
    "ProtectKernelLogs",
    "ProtectControlGroups",
    "ProtectProc",
    "ProcSubset",
    "RootDirectory",
    "RootImage",
    "MountAPIVFS",
]

needs_systemd_analyze = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="missing: systemd-analyze (package systemd)"
)


@pytest.fixture
def options(root: Path) -> dict[str, dict[str, str]]:
    def read(unit: str) -> dict[str, str]:
        text = (root / f"packaging/systemd/{unit}.service").read_text()
        return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))

    return {unit: read(unit) for unit in UNITS}


@needs_systemd_analyze
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_takes_the_unit(root: Path, tmp_path: Path, unit: str) -> None:
    """With every program replaced by one that is there: whether Casemate is installed is not the question."""
    for name in UNITS:
        text = (root / f"packaging/systemd/{name}.service").read_text()
        (tmp_path / f"{name}.service").write_text(
            re.sub(r"^ExecStart=.*", "ExecStart=/bin/true", text, flags=re.MULTILINE)
        )
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / f"{unit}.service")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, "")


@needs_systemd_analyze
def test_casemated_is_barely_exposed(root: Path) -> None:
    command = [
        "systemd-analyze",
        "security",
        "--offline=true",
        "--no-pager",
        str(root / "packaging/systemd/casemated.service"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    level = re.search(r"Overall exposure level for casemated.service: ([0-9.]+)", result.stdout)
    assert level, result.stderr
    assert float(level[1]) <= MAX_EXPOSURE


def test_casemated_has_no_privilege(options: dict[str, dict[str, str]]) -> None:
    unit = options["casemated"]
    assert unit["User"] == "casemate"
    assert unit["CapabilityBoundingSet"] == ""
    assert unit["AmbientCapabilities"] == ""
    assert unit["NoNewPrivileges"] == "yes"
    assert unit["ProtectSystem"] == "strict"
    assert unit["ReadWritePaths"].split() == ["/var/lib/casemate", "/run/casemate"]


def test_hostd_ends_alone_and_mounts_in_the_host_s_namespace(options: dict[str, dict[str, str]]) -> None:
    unit = options["casemate-hostd"]
    assert unit["KillMode"] == "process"
    assert not set(unit) & set(MOUNT_NAMESPACE)


def test_hostd_s_capabilities_are_bounded_and_each_has_its_reason(
    root: Path, options: dict[str, dict[str, str]]
) -> None:
    held = {name.removeprefix("CAP_") for name in options["casemate-hostd"]["CapabilityBoundingSet"].split()}
    reasons = re.findall(
        r"^#   ([A-Z_ ]+?)  +[a-z/]", (root / "packaging/systemd/casemate-hostd.service").read_text(), re.MULTILINE
    )
    assert held == {name for line in reasons for name in line.split()}
    never = {
        "SYS_MODULE",
        "SYS_RAWIO",
        "SYS_BOOT",
        "SYS_TIME",
        "MAC_ADMIN",
        "MAC_OVERRIDE",
        "AUDIT_CONTROL",
        "SYSLOG",
        "PERFMON",
        "BPF",
    }
    assert not held & never


def test_without_systemd_hostd_is_bounded_alike(root: Path, options: dict[str, dict[str, str]]) -> None:
    """capabilities(7) of Linux 5.9 has 41: those that the supervisor's setpriv takes are those the unit lacks."""
    held = {name.removeprefix("CAP_") for name in options["casemate-hostd"]["CapabilityBoundingSet"].split()}
    match = re.search(r"privileged=\(.*?--bounding-set=(\S+)\)", (root / "packaging/places.sh").read_text(), re.DOTALL)
    assert match
    # The unprivileged one comes first in the file, and takes all.
    gone = {name.removeprefix("-").upper() for name in match.group(1).split(",")}
    assert not held & gone
    assert len(held | gone) == 41
