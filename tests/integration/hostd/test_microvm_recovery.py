"""hostd killed while it makes a container in a micro-VM: it converges; no QEMU, tap, cgroup, scratch file is left."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.hostd.driver import Client, Hostd, running

from casemate.hostd import protocol
from casemate.isolation.microvm.template import SOCKETS
from casemate.spec.workload import NetworkSpec

pytestmark = pytest.mark.root

ROOT = Path(__file__).parents[3]
CACHE = Path("/var/cache/casemate-tests/kernel")
sys.path.insert(0, str(ROOT / "tests/integration/microvm"))
import harness  # noqa: E402 - of the machines' own tests

#: Where a machine, its tap, its scratch file or conmon is there and perhaps no record of it yet.
STEPS = (
    "pod.link",
    "container.conmon",
    "container.created",
    "container.started",
    "container.retired",
)


@pytest.fixture(scope="module")
def hostd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostd]:
    if program := harness.missing():
        pytest.skip(f"missing: {program}")
    packages = sorted(CACHE.glob("linux-image-*.deb"))
    if not packages:
        pytest.skip(f"missing: a kernel package in {CACHE} (the tests of microvm fetch it)")
    folder = tmp_path_factory.mktemp("built")
    agent, shim = harness.build(folder)
    settings = {"CASEMATE_MICROVM_SHIM": str(shim), "CASEMATE_MICROVM_AGENT": str(agent)}
    with running(CASEMATE_MICROVM_ACCELERATOR="tcg", CASEMATE_MICROVM_POOL="0", **settings) as one:
        assert one.stop() == 0
        harness.install_kernel(one.state / "kernels", packages[0], agent)
        yield one


def gone(pid: int, within_s: float = 10.0) -> bool:
    end = time.monotonic() + within_s
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def of_machines(hostd: Hostd) -> dict[int, str]:
    """Processes that name hostd's run folder: monitors, conmons, waiters; and each QEMU below a monitor of it."""
    found: dict[int, str] = {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                words = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                children = (place / f"task/{place.name}/children").read_text().split()
            except OSError:
                continue
            if str(hostd.run) in words and "stepping" not in words:
                found[int(place.name)] = words[:120]
                found |= {int(child): "its child" for child in children}
    return found


def killed_at(hostd: Hostd, step: str) -> tuple[str, dict[int, str]]:
    """A container made, run, ended and removed by a hostd that is killed at *step*; its pod, and what ran then."""
    hostd.start(module="tests.integration.hostd.stepping", TEST_CRASH_AT=step)
    client = hostd.wait_ready()
    assert "unavailable" not in client.welcome.levels["microvm"], client.welcome.levels
    # The first of them makes a template.
    client.socket.settimeout(170)
    pod = hostd.pod(level="microvm", network=NetworkSpec(address=hostd.address()))
    spec = hostd.container(pod, "true", writable_bytes=16 << 20)
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
    return pod.id, of_machines(hostd)


def remove_all(client: Client, pod: str) -> None:
    for one in client.call(protocol.Observe(limit=100)).pods:
        assert one.id == pod
        assert all(container.state in ("created", "running", "exited") for container in one.containers)
        client.call(protocol.PodRemove(one.id, force=True))


def test_killed_while_a_template_is_made_it_leaves_no_machine(hostd: Hostd) -> None:
    """The guest that is to become one is nobody's container: only its monitor's socket says that it is there."""
    hostd.start()
    client = hostd.wait_ready()
    pod = hostd.pod(level="microvm", network=NetworkSpec(address=hostd.address()))
    client.send(protocol.ContainerRun(pod, hostd.container(pod, "true")))
    end = time.monotonic() + 60
    while not [one for one in of_machines(hostd).values() if "monitor" in one]:
        assert time.monotonic() < end, "a template is begun"
        time.sleep(0.05)
    client.close()
    hostd.kill()
    ran = {pid: words for pid, words in of_machines(hostd).items() if "monitor" in words or "child" in words}
    assert ran
    assert not list((hostd.state / "templates").glob("*/manifest.json"))
    hostd.start()
    client = hostd.wait_ready()
    assert all(gone(pid) for pid in ran), ran
    assert not list(hostd.run.glob(SOCKETS))
    remove_all(client, pod.id)
    client.close()
    assert hostd.stop() == 0
    assert of_machines(hostd) == {}


def test_killed_at_each_step_it_converges_and_leaves_no_machine(hostd: Hostd) -> None:
    for step in STEPS:
        pod, ran = killed_at(hostd, step)
        hostd.start()
        client = hostd.wait_ready()
        remove_all(client, pod)
        assert not [one for one in client.call(protocol.Doctor()).findings if one.left_over], step
        client.close()
        assert hostd.stop() == 0
        assert all(gone(pid) for pid in ran), (step, ran)
        assert of_machines(hostd) == {}, step
        assert not list((hostd.run / "vm").glob("*")), step
        assert not list((hostd.state / "pods").glob("*/*/writable*")), step
        links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
        assert f": {hostd.scope.environment['CASEMATE_NETWORK_LINK_PREFIX']}" not in links, step
    shutil.rmtree(hostd.state / "templates", ignore_errors=True)
