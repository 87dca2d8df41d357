"""hostd killed while it makes a container of several in a gVisor sandbox: it converges, nothing of runsc is left."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.hostd.driver import Client, Hostd, running

from casemate.hostd import protocol
from casemate.spec.workload import NetworkSpec

pytestmark = pytest.mark.root

SHIM = Path(__file__).parents[3] / "shim"
#: Where a sandbox, a waiter or runsc's state is there and perhaps no record of it yet.
STEPS = (
    "container.bundle",
    "container.entered",
    "container.conmon",
    "container.created",
    "container.starting",
    "container.started",
    "container.exited",
    "container.retired",
)


@pytest.fixture
def hostd(tmp_path: Path) -> Iterator[Hostd]:
    for program in ("runsc", "gcc", "make"):
        if shutil.which(program) is None:
            pytest.skip(f"missing: {program}")
    subprocess.run(["make", "-s", "-C", str(SHIM), f"BUILD={tmp_path}"], check=True, capture_output=True, timeout=120)
    with running(CASEMATE_MICROVM_SHIM=str(tmp_path / "casemate-vm")) as one:
        yield one


def of_runsc(hostd: Hostd) -> list[str]:
    """The command lines that name hostd's run folder: sandboxes, gofers, conmons, waiters."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                words = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(hostd.run) in words:
                found.append(words[:200])
    return found


def killed_at(hostd: Hostd, step: str) -> str:
    """A container made, run, ended and removed by a hostd that is killed at *step*; its pod."""
    hostd.start(module="tests.integration.hostd.stepping", TEST_CRASH_AT=step)
    client = hostd.wait_ready()
    pod = hostd.pod(level="gvisor", network=NetworkSpec(address=hostd.address()))
    spec = hostd.container(pod, "true")
    try:
        client.call(protocol.ContainerRun(pod, spec))
        client.event(protocol.ContainerExited, container=spec.id)
        client.call(protocol.ContainerRemove(spec.id))
    except OSError:
        pass
    else:
        raise AssertionError(f"step {step} is never passed")
    client.close()
    hostd.kill()
    return pod.id


def remove_all(client: Client, pod: str) -> None:
    for one in client.call(protocol.Observe(limit=100)).pods:
        assert one.id == pod
        assert all(container.state in ("created", "running", "exited") for container in one.containers)
        client.call(protocol.PodRemove(one.id, force=True))


def test_killed_at_each_step_it_converges_and_leaves_no_sandbox(hostd: Hostd) -> None:
    assert hostd.stop() == 0
    for step in STEPS:
        pod = killed_at(hostd, step)
        hostd.start()
        client = hostd.wait_ready()
        assert "unavailable" not in client.welcome.levels["gvisor"]
        remove_all(client, pod)
        assert not [one for one in client.call(protocol.Doctor()).findings if one.left_over], step
        client.close()
        assert hostd.stop() == 0
        assert of_runsc(hostd) == [], step
        assert not list((hostd.run / "runsc").glob("*")), step
        assert [one.name for one in (hostd.run / "gvisor").glob("*")] in ([], ["root"]), step
