"""Namespaces, the compiled seccomp program and the runtimes on the real kernel."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from pathlib import Path

import pytest
from tests.integration.leaks import Scope

from casemate.host import cgroups, hierarchy
from casemate.hostd.daemon import share_run_folder
from casemate.isolation import observe, runtime, seccomp, seccomp_compile
from casemate.isolation.launcher import Launcher, restore_null
from casemate.isolation.namespace import sandbox
from casemate.spec import capabilities
from casemate.spec.errors import ProgramFailed, TimedOut

pytestmark = pytest.mark.root
FIRST = 3_800_000_000


def pins(folder: Path) -> dict[str, Path]:
    return {kind: folder / kind for kind in sandbox.KINDS}


def test_namespaces_are_pinned_owned_by_the_first_and_go(scope: Scope) -> None:
    places = pins(scope.folder)
    asyncio.run(sandbox.create(places, FIRST, 65536, "box"))
    assert all(sandbox.is_pinned(place) for place in places.values())
    kinds = {os.stat(place).st_ino for place in places.values()}
    own = {os.stat(f"/proc/self/ns/{name}").st_ino for name, _ in sandbox.KINDS.values()}
    assert len(kinds) == 4
    assert not kinds & own
    assert os.uname().nodename != "box"
    for place in places.values():
        sandbox.remove_pin(place)
        sandbox.remove_pin(place)
    assert not any(place.exists() for place in places.values())


def test_what_the_kernel_refuses_leaves_nothing(scope: Scope) -> None:
    places = pins(scope.folder)
    with pytest.raises(sandbox.SandboxFailed) as caught:
        asyncio.run(sandbox.create(places, FIRST, 1 << 32, "box"))
    assert caught.value.code == "isolation.sandbox_failed"
    assert not any(place.exists() for place in places.values())
    places["uts"].write_text("somebody's")
    with pytest.raises(sandbox.SandboxFailed):
        asyncio.run(sandbox.create(places, FIRST, 65536, "box"))
    assert [place for place in places.values() if place.exists()] == [places["uts"]]


def test_the_compiled_program_is_kept_and_a_bad_profile_is_named() -> None:
    compiler = seccomp_compile.Compiler()
    profile = seccomp.profile(frozenset(capabilities.DEFAULT_SET), "x86_64")
    assert compiler.annotation(profile) is compiler.annotation(profile)
    assert len(compiler.compile(profile)) % 8 == 0
    bad = {"index": 9, "value": 0, "valueTwo": 0, "op": "SCMP_CMP_EQ"}  # a call has six arguments
    wrong = profile | {"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [bad]}]}
    with pytest.raises(seccomp_compile.SeccompFailed) as caught:
        compiler.compile(wrong)
    assert caught.value.code == "isolation.seccomp_failed"


@pytest.mark.parametrize("name", ["crun", "runc"])
def test_each_runtime_that_is_installed_runs_a_container_and_is_remembered(scope: Scope, name: str) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"missing: {name}")
    run = scope.folder / "run"
    run.mkdir()
    share_run_folder(run)
    facts = observe.observe()
    found = asyncio.run(runtime.choose(name, run, facts, scope.cgroup, FIRST))
    assert found.runtime is not None, found.why
    assert found.runtime.name == name
    assert asyncio.run(runtime.choose(name, run, facts, scope.cgroup, FIRST)) == found
    assert runtime.levels(found).find("namespace").summary.startswith(name)
    asyncio.run(cgroups.end(hierarchy.detect(), scope.cgroup))
    os.system(f"umount {run}")


def test_a_runtime_that_is_not_there_says_so(scope: Scope) -> None:
    found = asyncio.run(runtime.choose("nosuchruntime", scope.folder, observe.observe(), scope.cgroup, FIRST))
    assert found.runtime is None
    assert "nosuchruntime" in found.why


def test_a_runtimes_command_is_bounded_and_its_words_are_kept() -> None:
    async def body() -> None:
        launcher = Launcher(hide_unified=False)
        with pytest.raises(TimedOut):
            await launcher.run(["sh", "-c", "sleep 60", "x"], timeout_s=0.2)
        with pytest.raises(ProgramFailed, match="the words"):
            await launcher.run(["sh", "-c", "echo the words; exit 3", "x"])
        launcher.close()

    asyncio.run(body())


def test_a_runtime_cannot_give_dev_null_away() -> None:
    async def body() -> None:
        launcher = Launcher(hide_unified=False)
        with pytest.raises(ProgramFailed, match="Read-only file system"):
            await launcher.run(["sh", "-c", "chown 0:0 /proc/self/fd/0 || { echo x > /dev/null; exit 3; }", "x"])
        launcher.close()

    asyncio.run(body())


def test_dev_null_is_given_back(tmp_path: Path) -> None:
    node, file = tmp_path / "null", tmp_path / "file"
    os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    assert restore_null(node) is None
    os.chown(node, 1_000_000_000, 1_000_000_000)
    assert restore_null(node) == 1_000_000_000
    found = node.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, 0, 0o666)
    file.write_text("")
    os.chown(file, 5, 5)
    assert restore_null(file) is None
