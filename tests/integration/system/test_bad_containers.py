"""Containers that fork without end, fill their disk, flood their log, eat memory: bounded, and nobody else notices."""

from __future__ import annotations

import json
import time

import pytest
from tests.integration.system.site import IMAGE, Site, settle
from tests.patience import patience_s

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_made")]


def test_one_that_forks_without_end(site: Site) -> None:
    """The bomb meets its bound; exec of another container, ps and stop of the bomb itself go on working."""
    bomb = ":(){ :|:& };:; while true; do :|: ; done" if False else "b() { b | b & }; b; sleep 1000"
    done = site("run", "-d", "--name", "bomb", "--pids-limit", "60", "--cpus", "0.5", IMAGE, "sh", "-c", bomb)
    assert done.returncode == 0, done.stderr
    time.sleep(1)
    stats = json.loads(site("stats", "--no-stream", "--json", "bomb").stdout)["rows"][0]
    assert stats["pids"] <= 60, stats
    assert site("exec", "canary", "echo", "alive").stdout == b"alive\n"
    started = time.monotonic()
    assert site("rm", "-f", "bomb").returncode == 0
    assert time.monotonic() - started < patience_s(15)


def test_the_default_bounds_a_fork_bomb_too(site: Site) -> None:
    limits = site("run", "--rm", IMAGE, "sh", "-c", "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max").stdout
    assert 0 < int(limits.split()[0]) <= 4096, limits


def test_one_that_fills_its_disk(site: Site) -> None:
    script = "dd if=/dev/zero of=/big bs=1M count=200; echo status $?; df -m / | tail -n 1"
    done = site("run", "--rm", "--storage-size", "64m", IMAGE, "sh", "-c", script)
    assert b"No space left" in done.stderr, done.stderr
    assert b"status 1" in done.stdout
    # The bound is the container's: it goes on when it has removed the file, and others write.
    done = site("run", "--rm", "--storage-size", "64m", IMAGE, "sh", "-c",
                "dd if=/dev/zero of=/big bs=1M count=200 2>/dev/null; rm /big; echo more > /x && cat /x")  # fmt: skip
    assert done.stdout == b"more\n", done


def test_one_that_fills_it_with_files(site: Site) -> None:
    script = "i=0; while mkdir /d$i 2>/dev/null; do i=$((i+1)); [ $i -gt 60000 ] && break; done; echo $i"
    done = site("run", "--rm", "--storage-size", "16m", IMAGE, "sh", "-c", script)
    assert 0 < int(done.stdout) < 60_000, done


def test_tmpfs_and_shm_are_bounded(site: Site) -> None:
    script = "dd if=/dev/zero of=/t/x bs=1M count=20; dd if=/dev/zero of=/dev/shm/x bs=1M count=100; echo end"
    done = site("run", "--rm", "--tmpfs", "/t:size=8m", "--shm-size", "16m", IMAGE, "sh", "-c", script)
    assert done.stderr.count(b"No space left") == 2, done.stderr
    assert done.stdout == b"end\n"


def test_one_that_floods_its_log(site: Site) -> None:
    """Some 60 MB of output through a log of 256 KiB: bounded on disk, its end kept, readers not starved."""
    script = "yes 0123456789012345678901234567890123456789012345678901234567890123456789 | head -n 800000; echo LAST"
    done = site("run", "-d", "--name", "flood", "--log-opt", "max-size=256k", IMAGE, "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    assert site("wait", "flood", timeout_s=60).stdout == b"0\n"
    id_ = done.stdout.decode().strip()
    on_disk = sum(path.stat().st_size for path in site.folder.glob(f"host-state/pods/*/{id_}/log*"))
    assert on_disk <= 2 * (256 << 10), f"{on_disk} bytes of log"
    kept = site("logs", "flood").stdout.splitlines()
    assert kept[-1] == b"LAST"
    assert sum(map(len, kept)) <= 1 << 20
    assert site("rm", "flood").returncode == 0


def test_one_line_without_end(site: Site) -> None:
    script = "dd if=/dev/zero bs=1M count=20 2>/dev/null | tr '\\0' x; echo; echo LAST"
    site("run", "-d", "--name", "long", "--log-opt", "max-size=256k", IMAGE, "sh", "-c", script)
    assert site("wait", "long").stdout == b"0\n"
    assert site("logs", "long").stdout.splitlines()[-1] == b"LAST"
    assert site("rm", "long").returncode == 0


def test_one_that_eats_memory(site: Site) -> None:
    """Killed by the kernel at its own bound: 137, and said to be for memory."""
    done = site("run", "--name", "hog", "-m", "32m", "--memory-swap", "32m", IMAGE, "sh", "-c",
                "exec tail -c 500m /dev/zero")  # fmt: skip
    assert done.returncode == 137, done
    assert settle(lambda: site("inspect", "-f", "{{.State.OOMKilled}}", "hog").stdout == b"true\n")
    assert site("inspect", "-f", "{{.State.ExitCode}}", "hog").stdout == b"137\n"
    events = site("events", "--no-follow", "--json", "-f", "container=hog").stdout
    assert b'"oom"' in events, events
    assert site("rm", "hog").returncode == 0


def test_one_that_restarts_for_ever(site: Site) -> None:
    """A crash loop is slowed down, and can be stopped and removed at any point of it."""
    site("run", "-d", "--name", "loop", "--restart", "always", IMAGE, "false")
    time.sleep(3)
    restarts = int(site("inspect", "-f", "{{.RestartCount}}", "loop").stdout)
    assert 1 <= restarts <= 6, restarts
    assert site("rm", "-f", "loop").returncode == 0


def test_one_that_ignores_every_signal(site: Site) -> None:
    script = "trap '' TERM INT HUP QUIT USR1; while :; do sleep 1; done"
    site("run", "-d", "--name", "deaf", IMAGE, "sh", "-c", script)
    started = time.monotonic()
    assert site("stop", "-t", "1", "deaf").returncode == 0
    assert time.monotonic() - started < patience_s(8)
    assert site("inspect", "-f", "{{.State.ExitCode}}", "deaf").stdout == b"137\n"
    assert site("rm", "deaf").returncode == 0


def test_names_that_would_steer_a_terminal(site: Site) -> None:
    """File names and output of a container reach listings without escape sequences of theirs."""
    site("run", "-d", "--name", "esc", IMAGE, "sh", "-c", "touch \"$(printf '/tmp/\\033[31mred')\"; sleep 1000")
    assert settle(lambda: b"/tmp/" in site("diff", "esc").stdout)
    assert b"\x1b" not in site("diff", "esc").stdout
    assert b"\x1b" not in site("top", "esc").stdout
    assert site("rm", "-f", "esc").returncode == 0
