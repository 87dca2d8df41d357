"""The C parsers of agent and monitor under the address and undefined-behaviour sanitizers; the Python one on seeds."""

from __future__ import annotations

import random
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]


def test_the_parsers_hold_under_the_sanitizers(tmp_path: Path) -> None:
    if shutil.which("gcc") is None or shutil.which("make") is None:
        pytest.skip("missing: gcc")
    done = subprocess.run(
        ["make", "-s", "-C", str(ROOT / "guest"), "check", f"BUILD={tmp_path}"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "30000 inputs" in done.stdout
    assert "6000 tars" in done.stdout


def test_a_guest_can_only_end_its_containers() -> None:
    fuzzer = runpy.run_path(str(ROOT / "tests/fuzz/agent_frames.py"))
    draw = random.Random(7)
    for seed in fuzzer["seeds"]():
        fuzzer["one_input"](seed)
        for _ in range(300):
            data = bytearray(seed)
            for _ in range(draw.randint(1, 3)):
                data[draw.randrange(len(data))] = draw.randrange(256)
            fuzzer["one_input"](bytes(data[: draw.randint(0, len(data))]))
