"""The kept corpus is played through on every run; with atheris installed the fuzzer also runs for a few seconds."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fuzz import hostd_protocol

SECONDS = 5


def test_every_kept_input_is_a_request_or_an_error() -> None:
    kept = [path.read_bytes() for path in sorted(hostd_protocol.CORPUS.glob("*"))] + hostd_protocol.seeds()
    assert kept
    for data in kept:
        hostd_protocol.one_input(data)


def test_the_fuzzer_finds_nothing_in_a_few_seconds(tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("missing: atheris (pip install atheris)")
    script = Path(hostd_protocol.__file__)
    done = subprocess.run(
        [sys.executable, str(script), str(SECONDS), str(tmp_path / "found")],
        capture_output=True,
        timeout=SECONDS + 60,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
