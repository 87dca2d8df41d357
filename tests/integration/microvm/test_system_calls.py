"""What a machine's QEMU may ask of the host's kernel, and what it asks for: docs/security/system-calls.md."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import harness
import pytest
from test_machines import monitor_of, qemu_of, started

pytestmark = pytest.mark.root

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/security/system-calls.md"
#: Of what is used once a guest runs: each host's library and load differ by a few.
MOST_USED = 30
MOST_USED_BY_MONITOR = 10


def allowed() -> list[str]:
    text = (ROOT / "shim/seccomp.c").read_text()
    return re.findall(r"SYS_(\w+)", text[text.index("allowed[]") : text.index("enum { COUNT")])


def allowed_to_the_monitor() -> list[str]:
    """Its own list, and the two that the filter lets through for certain arguments alone."""
    text = (ROOT / "shim/seccomp_monitor.c").read_text()
    listed = re.findall(r"SYS_(\w+)", text[text.index("allowed_monitor[]") : text.index("enum { MONITOR_COUNT")])
    return [*listed, "kill", "mmap"]


def calls_of(trace: str) -> set[str]:
    """The names in strace's output, of one process or of several."""
    return set(re.findall(r"^(?:\d+ +)?(?:<\.\.\. )?(\w+)(?:\(| resumed)", trace, re.MULTILINE))


def test_the_page_says_how_many_are_allowed() -> None:
    assert f"| the monitor of a machine | {len(allowed_to_the_monitor())} |" in PAGE.read_text()
    assert len(allowed()) == len(set(allowed()))
    assert f"| `microvm` | {len(allowed())} |" in PAGE.read_text()


def test_the_filter_is_upon_qemu_and_few_calls_are_used(host: harness.Host, base_layer: Path, tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("missing: strace")
    process, _folder = started(host, "calls", base_layer, "sleep", "1000")
    qemu = qemu_of(host, "calls")
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{qemu}/status").read_text().splitlines())
    assert status["Seccomp"] == "2"
    assert int(status["Seccomp_filters"]) >= 2, "ours, and QEMU's own"
    assert status["NoNewPrivs"] == "1"
    monitor = monitor_of(host, "calls")
    assert "Seccomp:\t2" in Path(f"/proc/{monitor}/status").read_text()
    out, its = tmp_path / "calls", tmp_path / "monitor"
    with (
        subprocess.Popen(["strace", "-f", "-qq", "-o", str(out), "-p", str(qemu)]) as tracer,
        subprocess.Popen(["strace", "-qq", "-o", str(its), "-p", str(monitor)]) as other,
    ):
        time.sleep(0.5)
        # Work of every kind: processes, the disk, output, the clock.
        script = "find / -xdev > /dev/null; cat /bin/busybox | md5sum; sleep 0.1; head -c 300000 /dev/zero"
        done = host.vm("exec", "calls", "sh", "-c", script, capture_output=False, stdout=subprocess.DEVNULL)
        assert done.returncode == 0
        for one in (tracer, other):
            one.send_signal(signal.SIGINT)
            one.wait(20)
    used = calls_of(out.read_text(errors="replace"))
    assert used <= set(allowed()), used - set(allowed())
    assert 5 < len(used) <= MOST_USED, sorted(used)
    used = calls_of(its.read_text(errors="replace"))
    assert used <= set(allowed_to_the_monitor()), used - set(allowed_to_the_monitor())
    assert 3 < len(used) <= MOST_USED_BY_MONITOR, sorted(used)
    host.vm("delete", "--force", "calls")
    process.wait(20)
