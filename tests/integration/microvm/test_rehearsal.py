"""A start that rehearses: the user's container sees nothing of it, and the machine is as every other one soon."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import harness
import pytest
from test_machines import RANDOM, qemu_of, started

from casemate.isolation.microvm import rehearsals
from casemate.isolation.microvm.template import Recipe

pytestmark = pytest.mark.root

#: Of a template that is made when nobody waits for it, on a loaded host.
MADE_S = 90.0


@pytest.fixture(scope="module")
def rehearsing(built: tuple[Path, Path], kernel_state: Path, base_layer: Path) -> Iterator[harness.Host]:
    """A service whose template with a rehearsal is there."""
    if not rehearsals.half_of_host():
        pytest.skip("missing: a second processor")
    folder = Path(tempfile.mkdtemp(prefix="cm-vh-"))
    host = harness.Host(kernel_state, folder, built[1], rehearsal=True)
    host.start()
    try:
        assert host.machines is not None
        ran(host, "first", base_layer, "true")
        limit = time.monotonic() + MADE_S
        while host.machines.templates.ready(wanted(host)) is None:
            assert time.monotonic() < limit, "no template with a rehearsal was made"
            time.sleep(0.1)
        yield host
        host.end_all()
    finally:
        host.stop()
        shutil.rmtree(folder, ignore_errors=True)
    assert host.failure is None


def wanted(host: harness.Host) -> Recipe:
    assert host.machines is not None
    return dataclasses.replace(host.machines._recipe(None), cpus=rehearsals.CPUS)


def quiet(host: harness.Host) -> None:
    """Until no machine is in its first second: that of the test before would count as one that takes a processor."""
    machines, loop = host.machines, host._loop
    assert machines is not None
    assert loop is not None

    async def young() -> int:
        return machines._young()

    limit = time.monotonic() + 30
    while asyncio.run_coroutine_threadsafe(young(), loop).result(30):
        assert time.monotonic() < limit
        time.sleep(0.05)


def ran(host: harness.Host, name: str, layer: Path, *args: str) -> tuple[list[str], str]:
    """The lines that it wrote, and QEMU's word on processors."""
    quiet(host)
    process, folder = started(host, name, layer, *args)
    command = Path(f"/proc/{qemu_of(host, name)}/cmdline").read_bytes().split(b"\0")
    assert process.wait(60) == 0
    assert (folder / "exits" / name).read_text() == "0", (folder / "log").read_text()
    assert host.vm("delete", name).returncode == 0
    lines = [line.split(" ", 3)[3] for line in (folder / "log").read_text().splitlines()]
    return lines, command[command.index(b"-smp") + 1].decode()


#: The second processor is taken away a second after the start, by a process that may have to wait for its turn.
ALONE = (
    "grep Cpus_allowed_list /proc/self/status | cut -f2; ls /sys/fs/cgroup; i=0;"
    " while [ $(grep -c ^processor /proc/cpuinfo) != 1 ] && [ $i -lt 600 ]; do sleep 0.1; i=$((i + 1)); done;"
    " grep -c ^processor /proc/cpuinfo; cat /sys/devices/system/cpu/online;"
    " grep Cpus_allowed_list /proc/self/status | cut -f2"
)


def test_containers_have_one_processor_and_the_machine_soon_too(rehearsing: harness.Host, base_layer: Path) -> None:
    lines, cpus = ran(rehearsing, "alone", base_layer, "sh", "-c", ALONE)
    assert cpus == "2"
    assert (lines[0], lines[-3:]) == ("0", ["1", "0", "0"])
    assert "rehearsal" not in " ".join(lines)


def test_clones_that_rehearse_draw_different_numbers(rehearsing: harness.Host, base_layer: Path) -> None:
    (first, one), (second, other) = (
        ran(rehearsing, name, base_layer, "sh", "-c", RANDOM) for name in ("draws1", "draws2")
    )
    assert (one, other) == ("2", "2")
    assert len(first) == len(second) == 5
    # As of every clone, the boot id was drawn at the template.
    assert not {index for index in range(5) if first[index] == second[index]} - {2}


def test_a_container_with_less_than_a_processor_does_not_rehearse(rehearsing: harness.Host, base_layer: Path) -> None:
    config = harness.configuration([base_layer], "sleep", "1000")
    config["linux"]["resources"] = {"cpu": {"quota": 50_000, "period": 100_000}}  # type: ignore[index]
    quiet(rehearsing)
    process, _ = harness.conmon(rehearsing, "less", rehearsing.bundle("less", config))
    try:
        command = Path(f"/proc/{qemu_of(rehearsing, 'less')}/cmdline").read_bytes().split(b"\0")
        assert command[command.index(b"-smp") + 1] == b"1"
    finally:
        assert rehearsing.vm("delete", "--force", "less").returncode == 0
        process.wait(30)
