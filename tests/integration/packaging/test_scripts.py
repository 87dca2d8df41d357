"""The shell scripts of packaging/: what they refuse, what they find missing, what privilege they leave."""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path

import pytest

PACKAGING = Path(__file__).resolve().parents[3] / "packaging"
SOURCE = f'source "{PACKAGING}/places.sh"; source "{PACKAGING}/debian-packages.sh"; '


def bash(script: str, *, uid: int | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False, user=uid, cwd="/"
    )


@pytest.mark.root
@pytest.mark.parametrize("script", ["prepare", "start", "stop", "demo", "test"])
def test_without_root_it_says_so(script: str, tmp_path: Path) -> None:
    """From a copy that the other user can read: the checkout may lie in a folder of root's."""
    copy = tmp_path / "checkout/packaging"
    copy.mkdir(parents=True)
    for name in (script, "places.sh", "host-checks.sh", "debian-packages.sh", "python-packages.sh",
                 "guest-programs.sh"):  # fmt: skip
        (copy / name).write_bytes((PACKAGING / name).read_bytes())
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    nobody = pwd.getpwnam("nobody").pw_uid
    result = bash(f"bash {copy}/{script}", uid=nobody)
    assert result.returncode == 1
    assert f"this needs root (it installs packages and starts daemons), and runs as uid {nobody}" in result.stderr
    assert "remedy: sudo make" in result.stderr


def test_missing_packages_are_those_without_program_or_package(tmp_path: Path) -> None:
    listed = tmp_path / "list"
    lines = (
        "# why",
        "",
        "no-such-package - x",
        "no-such-other bash program",
        "base-files - package",
        "no-third no-3 x",
        "",
    )
    listed.write_text("\n".join(lines))
    result = bash(f"{SOURCE} missing_packages {listed}")
    assert (result.returncode, result.stdout) == (0, "no-such-package no-third\n")


@pytest.mark.parametrize("status", [0, 7])
def test_the_policy_against_service_starts_is_taken_away_again(tmp_path: Path, status: int) -> None:
    policy = tmp_path / "policy-rc.d"
    inner = f"inner() {{ {policy} || echo answers $?; exit {status}; }}"
    result = bash(f"{SOURCE} service_policy={policy}; {inner}; without_service_starts inner")
    assert (result.returncode, result.stdout) == (status, "answers 101\n")
    assert not policy.exists()


def test_what_an_installation_enables_is_disabled_again(tmp_path: Path) -> None:
    wants = tmp_path / "systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / "users.service").symlink_to("/lib/users.service")
    inner = f"inner() {{ ln -s /lib/new.service {wants}/new.service; }}"
    result = bash(
        f"{SOURCE} service_policy={tmp_path}/p; service_links={tmp_path}; {inner}; without_service_starts inner"
    )
    assert (result.returncode, result.stdout) == (0, "casemate: left disabled: new.service\n")
    assert [link.name for link in wants.iterdir()] == ["users.service"]


def test_a_policy_of_the_user_s_is_left_alone(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    policy.write_text("the user's")
    result = bash(f"{SOURCE} service_policy={policy}; without_service_starts true")
    assert (result.returncode, policy.read_text()) == (0, "the user's")


@pytest.mark.root
def test_casemated_is_started_without_privilege() -> None:
    try:
        account = pwd.getpwnam("casemate")
    except KeyError:
        pytest.skip("missing: the user casemate (sudo make run makes it)")
    result = bash(f'{SOURCE} exec "${{unprivileged[@]}}" cat /proc/self/status')
    fields = dict(line.split(":\t", 1) for line in result.stdout.splitlines() if ":\t" in line)
    assert {fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert fields["NoNewPrivs"] == "1"
    assert fields["Uid"].split() == [str(account.pw_uid)] * 4
    assert fields["Gid"].split() == [str(account.pw_gid)] * 4
    assert set(fields["Groups"].split()) <= {str(gid) for gid in os.getgrouplist("casemate", account.pw_gid)}


def test_a_host_of_another_kind_is_refused(tmp_path: Path) -> None:
    """Another architecture, and a system without apt: shown with a PATH on which uname answers so."""
    other = tmp_path / "bin"
    other.mkdir()
    (other / "uname").write_text("#!/bin/sh\n[ $1 = -s ] && echo Linux || echo riscv64\n")
    (other / "uname").chmod(0o755)
    result = bash(f'{SOURCE} source "{PACKAGING}/host-checks.sh"; PATH={other}:$PATH; check_host')
    assert result.returncode == 1
    assert "this machine is riscv64" in result.stderr
    uname = "uname() { [ $1 = -s ] && echo Linux || echo x86_64; }"
    result = bash(f'{SOURCE} source "{PACKAGING}/host-checks.sh"; {uname}; PATH={other}; check_host')
    assert result.returncode == 1
    assert "not a Debian-like system" in result.stderr
