"""One service, one template and one layer for all tests of the level; each test has containers of its own."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import harness

CACHE = Path("/var/cache/casemate-tests/kernel")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if program := harness.missing():
        pytest.skip(f"missing: {program}")
    return harness.build(tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="session")
def kernel_state(built: tuple[Path, Path]) -> Iterator[Path]:
    # A short path: sockets' names have at most 107 bytes.
    state = Path(tempfile.mkdtemp(prefix="cm-vm-"))
    try:
        with harness.guest_kernel(state, built[0], CACHE) as why:
            if why:
                pytest.skip(f"missing: {why}")
            yield state
    finally:
        shutil.rmtree(state, ignore_errors=True)


@pytest.fixture(scope="session")
def base_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return harness.layer(tmp_path_factory.mktemp("layers"), "base", {"etc/base": "base\n", "etc/both": "lower\n"})


@pytest.fixture(scope="module")
def host(built: tuple[Path, Path], kernel_state: Path) -> Iterator[harness.Host]:
    folder = Path(tempfile.mkdtemp(prefix="cm-vr-"))
    one = harness.Host(kernel_state, folder, built[1], taps=f"wh{os.getpid() % 250}-")
    one.start()
    try:
        yield one
        one.end_all()
    finally:
        one.stop()
        shutil.rmtree(folder, ignore_errors=True)
    assert one.failure is None
