"""Containers where cgroup v2 is all there is."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.hostd.driver import Client, Hostd
from tests.integration.leaks import new_scope

from casemate.hostd import protocol

pytestmark = pytest.mark.root

#: Where this process sees the same hierarchy: a hybrid host has it apart.
UNIFIED = "/sys/fs/cgroup/unified" if Path("/sys/fs/cgroup/unified").is_dir() else "/sys/fs/cgroup"


@pytest.fixture
def pure() -> Iterator[tuple[Hostd, Client]]:
    hostd = Hostd(new_scope(Path(tempfile.mkdtemp(prefix="cm-hostd-"))))
    hostd.start(module="tests.integration.hostd.pure_v2")
    client = hostd.wait_ready()
    hostd.stage(client)
    try:
        yield hostd, client
    finally:
        for pod in client.call(protocol.Observe()).pods:
            client.call(protocol.PodRemove(pod.id, force=True))
        client.close()
        assert hostd.stop() == 0
        hostd.clean()
        log = hostd.log.read_text()
        shutil.rmtree(hostd.scope.folder, ignore_errors=True)
        assert "Traceback" not in log


def test_placed_listed_frozen_and_killed(pure: tuple[Hostd, Client]) -> None:
    hostd, client = pure
    assert client.welcome.host["cgroups"] == "v2"
    assert "ran a container" in client.welcome.levels["namespace"]
    pod = hostd.pod()
    spec = hostd.container(pod, "sh", "-c", "trap '' TERM; sleep 61 & while :; do sleep 0.1; done")
    made = client.call(protocol.ContainerRun(pod, spec))
    group = f"/{hostd.scope.cgroup}/{pod.id}/{spec.id}"
    # What the kernel says of the process, of this hierarchy (number 0); crun may give it a child group of its own.
    lines = Path(f"/proc/{made.pid}/cgroup").read_text().splitlines()
    assert any(line.startswith(f"0::{group}") for line in lines), lines
    time.sleep(0.3)
    rows = client.call(protocol.ContainerTop(spec.id)).processes
    assert {"sleep 61"} <= {row.command for row in rows}
    client.call(protocol.ContainerPause(spec.id))
    [seen] = [one for pod in client.call(protocol.Observe()).pods for one in pod.containers]
    assert seen.state == "paused"
    deadline = time.monotonic() + 5
    events = Path(f"{UNIFIED}{group}/cgroup.events")
    while "frozen 1" not in events.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    client.call(protocol.ContainerUnpause(spec.id))
    client.call(protocol.ContainerPause(spec.id))
    client.call(protocol.ContainerKill(spec.id, signal.SIGKILL))  # a paused one dies too
    assert client.event(protocol.ContainerExited, container=spec.id).exit_code == 137
    assert not Path(f"/proc/{made.pid}").exists()
    client.call(protocol.ContainerRemove(spec.id))
    assert not events.parent.exists()
    assert not events.parent.parent.exists()
