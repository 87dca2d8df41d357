"""Machines of several GiB: what is made for them follows what a guest touches, not what it might."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration.daemons import Daemons
from tests.integration.levels.conftest import Run

pytestmark = pytest.mark.root


def test_a_machine_of_several_gib(pair: Daemons, vm: Run) -> None:
    """Its template is made at the first start, within the bounds of each step, and read back at the second."""
    limit = 4 << 30
    script = "grep MemTotal /proc/meminfo; cat /sys/fs/cgroup/memory.max; dd if=/dev/zero of=/dev/shm/x bs=1M count=50"
    words = ("run", "--rm", "--isolation", "microvm", "-m", "4g", "busybox", "sh", "-c", script)
    for _ in range(2):
        done = vm(*words)
        assert done.returncode == 0, done.stderr
        total, most = done.stdout.splitlines()[:2]
        assert int(total.split()[1]) << 10 > limit, "the limit fits into it beside the guest's own"
        assert int(most) == limit
        pair.kill("casemate-hostd")
        pair.start("casemate-hostd")
    template = max(
        (pair.scope.folder / "host-state/templates").glob("*/memory"), key=lambda path: Path(path).stat().st_size
    )
    assert template.stat().st_size > limit
    assert template.stat().st_blocks * 512 < limit // 8
