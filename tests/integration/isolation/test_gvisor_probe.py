"""How a newer runsc is probed: what stands in for it prints such a one's flags, and runs a container, refuses or hangs.

Debian's own is probed wherever tests of the level run.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from casemate.host import hierarchy
from casemate.isolation.bundle import HostFacts
from casemate.isolation.gvisor import probe
from casemate.isolation.gvisor.probe import Found, Probe

pytestmark = pytest.mark.root

#: As versions since 2023 print them, in part.
FLAGS = """  -allow-flag-override
    \tallow OCI annotations (dev.gvisor.flag.<name>) to override flags for debugging.
  -directfs
    \tdirectly access the container filesystems from the sentry. (default true)
  -file-access value
    \tspecifies which filesystem validation to use for the root mount: exclusive (default), shared.
  -host-uds value
    \tcontrols permission to access host Unix-domain sockets. Values: none|open|create|all, default: none
  -network value
    \tspecifies which network to use: sandbox (default), host, none.
  -overlay2 value
    \twrap mounts with overlayfs. (default root:self)
  -platform string
    \tspecifies which platform to use: systrap (default), ptrace, kvm. (default "systrap")
"""
#: The file ``systrap`` says what becomes of that platform; a container is a shell that waits for ``start``.
RUNSC = """#!/bin/sh
here={folder}
echo "$*" >> $here/asked
case "$*" in
--version) printf 'runsc version release-20250820.0\\nspec: 1.2.1\\n' ;;
flags) cat $here/flags ;;
*" create "*)
    case "$*" in *--platform=systrap*) mode=$(cat $here/systrap) ;; *) mode=works ;; esac
    case $mode in
    refuses) echo "no seccomp user notification here" >&2; exit 128 ;;
    hangs) exec sleep 60 ;;
    esac
    bundle=$(echo "$*" | sed 's/.*--bundle \\([^ ]*\\).*/\\1/')
    (until test -e $here/started; do test -e $bundle/mark || exit; sleep 0.05; done; cat $bundle/mark) & ;;
*" start "*) touch $here/started ;;
esac
"""


def choose(folder: Path, systrap: str, wanted: str = "auto", step_timeout_s: float = 60.0) -> tuple[Found, list[str]]:
    """The answer, and every ``create`` that was tried for it."""
    program, run_folder = folder / "runsc", folder / "run"
    program.write_text(RUNSC.format(folder=folder))
    program.chmod(0o755)
    (folder / "flags").write_text(FLAGS)
    (folder / "systrap").write_text(systrap)
    run_folder.mkdir(exist_ok=True)
    facts = HostFacts(machine="x86_64", bounding=(1 << 41) - 1)
    given = Probe(run_folder, facts, hierarchy.detect(), f"casetest-probe-{os.getpid()}", 1_000_000, step_timeout_s)
    found = asyncio.run(probe.choose(str(program), wanted, given))
    asked = (folder / "asked").read_text().splitlines()
    return found, [line for line in asked if " create " in line]


def test_a_newer_one_gets_systrap_and_its_own_flags(tmp_path: Path) -> None:
    found, tried = choose(tmp_path, "works")
    assert found.runtime is not None, found.why
    assert found.runtime.version == "release-20250820.0"
    assert "platform systrap ran a container" in found.why
    given = {"--platform=systrap", "--network=sandbox", "--file-access=shared", "--overlay2=none"}
    given |= {"--directfs=false", "--host-uds=none", "--allow-flag-override=false"}
    # Nothing that it does not name: --net-raw and --oci-seccomp are not in this list.
    assert set(found.runtime.arguments) == given
    assert len(tried) == 1
    assert given <= set(tried[0].split())


def test_the_answer_is_kept_for_this_very_file(tmp_path: Path) -> None:
    first, _ = choose(tmp_path, "works")
    program = (tmp_path / "runsc").stat()
    asked = (tmp_path / "asked").read_text()
    facts = HostFacts(machine="x86_64", bounding=(1 << 41) - 1)
    given = Probe(tmp_path / "run", facts, hierarchy.detect(), f"casetest-probe-{os.getpid()}", 1_000_000)
    assert asyncio.run(probe.choose(str(tmp_path / "runsc"), "auto", given)) == first
    assert (tmp_path / "asked").read_text() == asked
    os.utime(tmp_path / "runsc", ns=(program.st_atime_ns, program.st_mtime_ns + 1))
    asyncio.run(probe.choose(str(tmp_path / "runsc"), "auto", given))
    assert (tmp_path / "asked").read_text() != asked


def test_where_systrap_fails_ptrace_is_taken_and_the_reason_told(tmp_path: Path) -> None:
    found, tried = choose(tmp_path, "refuses")
    assert found.runtime is not None, found.why
    assert "--platform=ptrace" in found.runtime.arguments
    assert "not taken: systrap: " in found.why
    assert "no seccomp user notification here" in found.why
    assert len(tried) == 2


def test_where_systrap_hangs_it_costs_its_bound_once(tmp_path: Path) -> None:
    found, tried = choose(tmp_path, "hangs", step_timeout_s=8.0)
    assert found.runtime is not None, found.why
    assert "--platform=ptrace" in found.runtime.arguments
    assert "did not end within 8 s" in found.why
    assert len(tried) == 2


def test_a_platform_by_name_is_tried_alone(tmp_path: Path) -> None:
    found, tried = choose(tmp_path, "refuses", "systrap")
    assert found.runtime is None
    assert "no seccomp user notification here" in found.why
    assert len(tried) == 1
    kvm, _ = choose(tmp_path, "refuses", "kvm")
    assert kvm.runtime is not None, kvm.why
    assert "--platform=kvm" in kvm.runtime.arguments
