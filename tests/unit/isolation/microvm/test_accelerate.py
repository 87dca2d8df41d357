"""The probe of KVM: what decides without booting, and what is kept. That it boots is tests/integration/microvm's."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path

import pytest

from casemate.isolation.microvm import accelerate
from casemate.isolation.microvm.kernel import GuestKernel


@pytest.fixture
def probe(tmp_path: Path) -> accelerate.Probe:
    for name in ("qemu", "shim", "kernel", "initramfs"):
        (tmp_path / name).write_text("not a program")
        (tmp_path / name).chmod(0o755)
    kernel = GuestKernel("6.1", tmp_path / "kernel", tmp_path / "initramfs", "d" * 64)
    return accelerate.Probe(tmp_path, str(tmp_path / "shim"), str(tmp_path / "qemu"), kernel, 999_000_000, 0.2)


def choose(wanted: str, probe: accelerate.Probe) -> accelerate.Accelerated:
    return asyncio.run(accelerate.choose(wanted, probe))


def test_what_is_named_is_taken_untried(probe: accelerate.Probe) -> None:
    assert choose("tcg", probe).accelerator.kind == "tcg"
    assert choose("kvm", probe).accelerator.kind == "kvm"
    assert not (probe.run / "accelerator.json").exists()


def test_without_a_device_there_is_nothing_to_boot(probe: accelerate.Probe) -> None:
    found = choose("auto", dataclasses.replace(probe, device=probe.run / "no-kvm"))
    assert (found.accelerator.kind, "there is no" in found.reason) == ("tcg", True)


@pytest.mark.parametrize("failure", ["", "with KVM no guest booted"])
def test_an_answer_is_kept_for_what_it_was_found_with(probe: accelerate.Probe, failure: str) -> None:
    probe = dataclasses.replace(probe, device=probe.run)
    kept = probe.run / "accelerator.json"
    kept.write_text(json.dumps({"key": accelerate._key(probe), "failure": failure}))
    found = choose("auto", probe)
    assert found.accelerator.kind == ("tcg" if failure else "kvm")
    # Another QEMU: tried anew, and what is no program here starts nothing.
    Path(probe.qemu).write_text("a newer one")
    found = choose("auto", probe)
    assert found.accelerator.kind == "tcg"
    assert "could not be started" in found.reason


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"key": 1}', '{"key": [], "failure": 1}', "\x00" * 100])
def test_a_damaged_answer_is_none(probe: accelerate.Probe, text: str) -> None:
    (probe.run / "accelerator.json").write_text(text)
    assert accelerate._load(probe.run / "accelerator.json", accelerate._key(probe)) is None
