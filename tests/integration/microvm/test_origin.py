"""Templates of a project's own and cold boots: what is shared between machines, and what is not, seen in their maps."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import harness
import pytest
from test_machines import qemu_of
from test_pool import until

from casemate.isolation.microvm import clone
from casemate.isolation.microvm.origin import Kind

pytestmark = pytest.mark.root


@pytest.fixture
def apart(
    request: pytest.FixtureRequest, built: tuple[Path, Path], kernel_state: Path, base_layer: Path
) -> Iterator[harness.Host]:
    """A service with the setting of the test's parameter, and a pool that it may use; no templates are there."""
    assert base_layer.is_file()
    kind: Kind = request.param
    folder = Path(tempfile.mkdtemp(prefix="cm-vo-"))
    state = folder / "state"
    shutil.copytree(kernel_state / "kernels", state / "kernels", symlinks=True)
    host = harness.Host(state, folder, built[1], pool=1 if kind == "none" else 0, template=kind)
    host.start()
    try:
        yield host
        host.end_all()
    finally:
        host.stop()
        shutil.rmtree(folder, ignore_errors=True)
    assert host.failure is None


def start(
    host: harness.Host, name: str, layer: Path, *args: str, template: str = ""
) -> tuple[subprocess.Popen[bytes], Path]:
    config = harness.configuration([layer], *args)
    config["annotations"] |= {"org.casemate.pod": name}  # type: ignore[operator]
    if template:
        config["annotations"] |= {"org.casemate.template": template}  # type: ignore[operator]
    process, folder = harness.conmon(host, name, host.bundle(name, config))
    done = host.vm("start", name)
    assert done.returncode == 0, (done.stderr, (folder / "answer").read_text())
    return process, folder


def memory_of(host: harness.Host, name: str) -> tuple[str, int]:
    """The guest's memory as QEMU maps it: the file's name, and its number."""
    for line in Path(f"/proc/{qemu_of(host, name)}/maps").read_text().splitlines():
        parts = line.split(maxsplit=5)
        first, last = (int(one, 16) for one in parts[0].split("-"))
        if last - first >= 127 << 20 and len(parts) == 6 and parts[5].startswith("/memfd:casemate-"):
            return parts[5].split()[0], int(parts[4])
    raise AssertionError("no memory is mapped")


@pytest.mark.parametrize("apart", ["none"], indirect=True)
def test_a_cold_boot_shares_no_page(apart: harness.Host, base_layer: Path) -> None:
    script = "cat /etc/base; cat /proc/sys/kernel/random/uuid; cat /proc/sys/kernel/random/boot_id; sleep 1000"
    first, first_folder = start(apart, "cold1", base_layer, "sh", "-c", script)
    # A bundle that asks for less does not get it.
    second, second_folder = start(apart, "cold2", base_layer, "sh", "-c", script, template="shared")
    one, other = memory_of(apart, "cold1"), memory_of(apart, "cold2")
    assert one[0] == other[0] == "/memfd:casemate-machine"
    assert one[1] != other[1]
    assert apart.machines is not None
    assert apart.machines.templates.names() == []
    assert apart.machines.pool.count() == 0
    assert apart.vm("exec", "cold1", "echo", "alive").stdout == "alive\n"
    said = until(first_folder / "log", 3), until(second_folder / "log", 3)
    assert said[0][0] == said[1][0] == "base"
    # The boot id too: nothing was drawn before this machine was.
    assert len(said[0]) == len(said[1]) == 3
    assert not set(said[0][1:]) & set(said[1][1:])
    # The memory cannot be made larger by a QEMU that was broken into.
    opened = Path(f"/proc/{qemu_of(apart, 'cold1')}/fd")
    memory = next(path for path in opened.iterdir() if os.readlink(path).startswith(one[0]))
    with pytest.raises(PermissionError):
        os.truncate(memory, 1 << 40)
    # hostd goes and comes back: a cold machine is found as any other.
    apart.stop()
    apart.start()
    assert apart.vm("exec", "cold1", "echo", "again").stdout == "again\n"
    for name, process in (("cold1", first), ("cold2", second)):
        assert apart.vm("delete", "--force", name).returncode == 0
        process.wait(20)
    assert list((apart.folder / "vm").iterdir()) == []


@pytest.mark.parametrize("apart", ["project"], indirect=True)
def test_each_project_has_a_template_of_its_own(apart: harness.Host, base_layer: Path) -> None:
    names = {"blue1": "project:blue", "blue2": "project:blue", "red1": "project:red"}
    processes = [start(apart, name, base_layer, "sleep", "1000", template=text)[0] for name, text in names.items()]
    memory = {name: memory_of(apart, name) for name in names}
    assert {one[0] for one in memory.values()} == {"/memfd:casemate-template"}
    assert memory["blue1"] == memory["blue2"]
    assert memory["red1"] != memory["blue1"]
    assert apart.machines is not None
    assert len(apart.machines.templates.names()) == 2
    for name, process in zip(names, processes, strict=True):
        assert apart.vm("delete", "--force", name).returncode == 0
        process.wait(20)


@pytest.mark.parametrize("apart", ["none"], indirect=True)
def test_a_cold_boot_that_never_ends_has_a_deadline(
    apart: harness.Host, base_layer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clone.booted, "__defaults__", (0.2,))
    config = harness.configuration([base_layer], "true")
    config["annotations"] |= {"org.casemate.pod": "late"}  # type: ignore[operator]
    bundle = apart.bundle("late", config)
    done = apart.vm("create", "--bundle", str(bundle), "late", stdin=subprocess.DEVNULL)
    assert done.returncode == 1
    assert "within 0.2 s" in done.stderr
    assert "microvm.agent" in done.stderr
    assert list((apart.folder / "vm").iterdir()) == []
