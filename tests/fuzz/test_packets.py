"""The seeds, and each of them cut and bent, are played through on every run; with atheris also the fuzzer."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fuzz import packets

SECONDS = 5


def test_seeds_whole_cut_and_bent() -> None:
    chance = random.Random(5)
    for seed in packets.seeds():
        packets.one_input(seed)
        for end in range(len(seed)):
            packets.one_input(seed[:end])
        for _ in range(200):
            bent = bytearray(seed)
            bent[chance.randrange(1, len(bent))] = chance.randrange(256)
            packets.one_input(bytes(bent))


def test_the_fuzzer_finds_nothing_in_a_few_seconds(tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("missing: atheris (pip install atheris)")
    done = subprocess.run(
        [sys.executable, str(packets.__file__), str(SECONDS), str(tmp_path / "found")],
        capture_output=True, timeout=SECONDS + 60, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-3000:]
