"""Output under pressure: a slow reader, many lines, rotation."""

from __future__ import annotations

import time
import uuid

import pytest
from tests.integration.daemons import Daemons

from casemate.sdk import ApiError

pytestmark = pytest.mark.root


def test_a_slow_reader_loses_nothing_and_the_daemon_does_not_grow(daemons: Daemons, busybox: str) -> None:
    name = f"slow-{uuid.uuid4().hex[:8]}"
    created = daemons.client.create(busybox, ["sh", "-c", "dd if=/dev/zero bs=65536 count=512 2>/dev/null"], name=name,
                                    log_keep=False)  # fmt: skip
    before = _pss_kib(daemons)
    with daemons.client.attach(created.id, start=True) as attached:
        time.sleep(2)
        assert _pss_kib(daemons) - before < 8 << 10
        code, out, _ = attached.communicate()
    assert (code, len(out)) == (0, 512 * 65536)
    daemons.client.remove(created.id)


def test_logs_are_rotated_and_still_followed(daemons: Daemons, busybox: str) -> None:
    script = "i=0; while [ $i -lt 3000 ]; do echo line number $i of many; i=$((i+1)); done; sleep 0.5; echo end"
    created = daemons.client.create(busybox, ["sh", "-c", script], log_max_bytes=32 << 10)
    daemons.client.start(created.id)
    followed = b"".join(data for _, data in daemons.client.logs(created.id, follow=True))
    assert followed.endswith(b"end\n")
    kept = b"".join(data for _, data in daemons.client.logs(created.id))
    assert kept.endswith(b"line number 2999 of many\nend\n")
    assert len(kept) < 128 << 10
    daemons.client.remove(created.id)


def _pss_kib(daemons: Daemons) -> int:
    pid = daemons.processes["casemated"].pid
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        return next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))


def test_logs_of_a_container_that_never_ran_are_empty(daemons: Daemons, busybox: str) -> None:
    """Its start failed and hostd took everything back: there is no log, and that is no failure."""
    created = daemons.client.create(busybox, ["no-such-command"])
    with pytest.raises(ApiError) as failed:
        daemons.client.start(created.id)
    assert failed.value.problem["code"] == "container.command_not_found"
    assert list(daemons.client.logs(created.id)) == []
    assert list(daemons.client.logs(created.id, follow=True)) == []
    daemons.client.remove(created.id)
