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
from test_machines import qemu_of, started

from casemate.isolation import seccomp

pytestmark = pytest.mark.root

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/security/system-calls.md"
#: Of what is used once a guest runs: each host's library and load differ by a few.
MOST_USED = 30


def allowed() -> list[str]:
    text = (ROOT / "shim/seccomp.c").read_text()
    return re.findall(r"SYS_(\w+)", text[text.index("allowed[]") : text.index("enum { COUNT")])


def test_the_page_says_how_many_are_allowed() -> None:
    assert len(allowed()) == len(set(allowed()))
    assert f"| `microvm` | {len(allowed())} |" in PAGE.read_text()
    rules = seccomp.profile(frozenset(), "x86_64")["syscalls"]
    names = {name for rule in rules if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}
    assert f"| `namespace` | {len(names)} |" in PAGE.read_text()


def test_the_filter_is_upon_qemu_and_few_calls_are_used(host: harness.Host, base_layer: Path, tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("missing: strace")
    process, _folder = started(host, "calls", base_layer, "sleep", "1000")
    qemu = qemu_of(host, "calls")
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{qemu}/status").read_text().splitlines())
    assert status["Seccomp"] == "2"
    assert int(status["Seccomp_filters"]) >= 2, "ours, and QEMU's own"
    assert status["NoNewPrivs"] == "1"
    out = tmp_path / "calls"
    with subprocess.Popen(["strace", "-f", "-qq", "-o", str(out), "-p", str(qemu)]) as tracer:
        time.sleep(0.5)
        # Work of every kind: processes, the disk, output, the clock.
        script = "find / -xdev > /dev/null; cat /bin/busybox | md5sum; sleep 0.1; head -c 300000 /dev/zero"
        done = host.vm("exec", "calls", "sh", "-c", script, capture_output=False, stdout=subprocess.DEVNULL)
        assert done.returncode == 0
        tracer.send_signal(signal.SIGINT)
        tracer.wait(20)
    used = set(re.findall(r"^\d+ +(?:<\.\.\. )?(\w+)(?:\(| resumed)", out.read_text(errors="replace"), re.MULTILINE))
    assert used <= set(allowed()), used - set(allowed())
    assert 5 < len(used) <= MOST_USED, sorted(used)
    host.vm("delete", "--force", "calls")
    process.wait(20)
