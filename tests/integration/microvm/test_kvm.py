"""The probe of KVM on this host, whatever it finds: bounded in time, with nothing left behind."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from tests.patience import patience_s

from casemate.isolation.microvm import accelerate, kernel

pytestmark = pytest.mark.root

#: The probe's own bound, the monitor's end, and a loaded host.
BOUND_S = accelerate.PROBE_TIMEOUT_S + 5.0


def test_the_probe_ends_in_time_and_leaves_nothing(built: tuple[Path, Path], kernel_state: Path) -> None:
    if not accelerate.DEVICE.exists():
        pytest.skip(f"missing: {accelerate.DEVICE}")
    run = Path(tempfile.mkdtemp(prefix="cm-kvm-"))
    try:
        guest = kernel.chosen(kernel_state / "kernels")
        qemu = shutil.which("qemu-system-x86_64") or ""
        probe = accelerate.Probe(run, str(built[1]), qemu, guest, 999_049_998)
        begun = time.monotonic()
        found = asyncio.run(accelerate.choose("auto", probe))
        assert time.monotonic() - begun < patience_s(BOUND_S)
        assert found.reason
        if found.accelerator.kind == "tcg":
            assert "KVM" in found.reason
        assert not [one for one in processes() if str(run) in one], "monitor and QEMU are gone"
        # Known from here on.
        begun = time.monotonic()
        assert asyncio.run(accelerate.choose("auto", probe)).accelerator == found.accelerator
        assert time.monotonic() - begun < patience_s(1.0)
    finally:
        shutil.rmtree(run, ignore_errors=True)


def processes() -> list[str]:
    found = []
    for one in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(one.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
        except OSError:
            continue
    return found
