"""Guests that do not behave: an agent that never speaks, one that falls silent, a kernel that panics."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import harness
import pytest
from test_forbidden import ending_of
from test_machines import gone, monitor_of, qemu_of, started

from casemate.isolation.microvm import template
from casemate.isolation.microvm.machine import Machine
from casemate.isolation.microvm.monitor import Monitor
from casemate.isolation.microvm.records import Status

pytestmark = pytest.mark.root

CACHE = Path("/var/cache/casemate-tests/kernel")
SLEEPS = '#include <unistd.h>\n#include <stdio.h>\nint main(void) { puts("asleep"); for (;;) pause(); }\n'


#: What a kernel says that then does not reset its machine, which QEMU 7.2 misses now and then.
PANICS = SLEEPS.replace("asleep", "Kernel panic - not syncing: and stays")


@pytest.fixture
def silent(request: pytest.FixtureRequest, built: tuple[Path, Path], tmp_path: Path) -> Iterator[harness.Host]:
    """A host whose kernel has an init that does nothing, or says one line before."""
    (tmp_path / "sleeps.c").write_text(getattr(request, "param", SLEEPS))
    agent = tmp_path / "agent"
    subprocess.run(["gcc", "-static", "-o", str(agent), str(tmp_path / "sleeps.c")], check=True, timeout=60)
    folder = Path(tempfile.mkdtemp(prefix="cm-vs-"))
    try:
        with harness.guest_kernel(folder, agent, CACHE) as why:
            if why:
                pytest.skip(f"missing: {why}")
            one = harness.Host(folder, folder, built[1])
            one.start()
            yield one
            one.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def left_in(folder: Path) -> set[str]:
    """Besides what every template is made with: the lock, and the layer of the container that is rehearsed."""
    return {one.name for one in folder.iterdir() if one.name != "lock" and not one.match("warm*.sqfs")}


def test_an_agent_that_never_speaks(silent: harness.Host, base_layer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "BOOT_TIMEOUT_S", 15.0)
    bundle = silent.bundle("never", harness.configuration([base_layer], "true"))
    done = silent.vm("create", "--bundle", str(bundle), "never", stdin=subprocess.DEVNULL)
    assert done.returncode == 1
    assert "no word of the agent within 15 s" in done.stderr
    assert "microvm.template" in done.stderr
    assert "console: " in done.stderr
    assert list((silent.folder / "vm").iterdir()) == []
    assert left_in(silent.state / "templates") == set()
    assert not list(silent.folder.glob("template-*.sock"))


@pytest.mark.parametrize("silent", [PANICS], indirect=True)
def test_a_kernel_that_panics_and_stays(silent: harness.Host, base_layer: Path) -> None:
    """It is ended by its monitor: the wait for its agent has no part in it."""
    bundle = silent.bundle("stays", harness.configuration([base_layer], "true"))
    done = silent.vm("create", "--bundle", str(bundle), "stays", stdin=subprocess.DEVNULL)
    assert done.returncode == 1
    assert "no word of the agent" not in done.stderr
    assert "Kernel panic - not syncing: and stays" in done.stderr
    assert list((silent.folder / "vm").iterdir()) == []


def test_a_guest_that_falls_silent(host: harness.Host, base_layer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question has its deadline, and the machine can be ended without the guest's help."""
    defaults = dict(Monitor.call.__kwdefaults__ or {}) | {"timeout_s": 1.0}
    asked = dict(Monitor.ask.__kwdefaults__ or {}) | {"timeout_s": 1.0}
    process, _folder = started(host, "silent", base_layer, "sleep", "1000")
    qemu, monitor = qemu_of(host, "silent"), monitor_of(host, "silent")
    monkeypatch.setattr(Monitor.call, "__kwdefaults__", defaults)
    monkeypatch.setattr(Monitor.ask, "__kwdefaults__", asked)
    os.kill(qemu, signal.SIGSTOP)
    for words in (("exec", "silent", "true"), ("ps", "silent"), ("kill", "silent", "TERM"), ("pause", "silent")):
        done = host.vm(*words, stdin=subprocess.DEVNULL)
        assert done.returncode != 0, words
        assert "no answer within 1 s" in done.stderr, (words, done.stderr)
        assert "microvm.agent" in done.stderr
    assert host.state_of("silent")["status"] == "running"
    assert host.vm("delete", "--force", "silent").returncode == 0
    assert gone(qemu)
    assert gone(monitor)
    process.wait(20)
    assert not (host.folder / "vm/silent").exists()


def test_a_machine_that_is_killed_while_its_container_is_made(
    host: harness.Host, base_layer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of the step says who was killed, and not only that the machine ended."""
    fill = Machine.fill

    async def dies(machine: Machine, *words: object, **more: object) -> None:
        os.kill(machine.record.qemu_pid, signal.SIGKILL)
        await fill(machine, *words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Machine, "fill", dies)
    bundle = host.bundle("killed", harness.configuration([base_layer], "true"))
    done = host.vm("create", "--bundle", str(bundle), "killed", stdin=subprocess.DEVNULL)
    assert done.returncode == 1
    assert "the machine's QEMU was killed by SIGKILL" in done.stderr
    assert not (host.folder / "vm/killed").exists()


def test_a_machine_that_is_killed_while_its_container_is_started(
    host: harness.Host, base_layer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_status = Machine.set_status

    def dies(machine: Machine, name: str, status: Status, code: int = 0, **more: object) -> None:
        set_status(machine, name, status, code, **more)  # type: ignore[arg-type]
        if status == "running":
            os.kill(machine.record.qemu_pid, signal.SIGKILL)

    process, _folder = harness.conmon(host, "falls", host.bundle("falls", harness.configuration([base_layer], "true")))
    monkeypatch.setattr(Machine, "set_status", dies)
    done = host.vm("start", "falls", stdin=subprocess.DEVNULL)
    assert done.returncode == 1
    assert "the machine's QEMU was killed by SIGKILL" in done.stderr
    process.wait(20)
    assert host.vm("delete", "--force", "falls").returncode == 0


def test_a_kernel_that_panics_is_reported_with_its_console(host: harness.Host, base_layer: Path) -> None:
    other, _ = started(host, "calm", base_layer, "sleep", "1000")
    process, folder = started(
        host, "panics", base_layer, "sh", "-c", "sleep 0.3; echo c > /proc/sysrq-trigger; sleep 99"
    )
    process.wait(60)
    assert int((folder / "exits/panics").read_text()) == 137
    why = ending_of(host, "panics")
    assert why.startswith("the guest's kernel panicked: sysrq triggered crash; console: ")
    assert "Kernel panic - not syncing" in why
    assert why.endswith("(microvm.guest_panic)")
    assert host.state_of("panics")["status"] == "stopped"
    assert host.vm("exec", "calm", "echo", "goes on").stdout == "goes on\n"
    for name in ("panics", "calm"):
        assert host.vm("delete", "--force", name).returncode == 0
    other.wait(20)
    assert list((host.folder / "vm").iterdir()) == []
