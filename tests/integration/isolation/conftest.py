from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from tests.integration.leaks import scope

__all__ = ["program", "scope"]

SHIM = Path(__file__).parents[3] / "shim"


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """casemate-vm with sanitizers."""
    for one in ("gcc", "make"):
        if shutil.which(one) is None:
            pytest.skip(f"missing: {one}")
    folder = tmp_path_factory.mktemp("shim")
    flags = "FLAGS=-O1 -g -D_GNU_SOURCE -fsanitize=address,undefined -fno-sanitize-recover=all"
    subprocess.run(["make", "-s", "-C", str(SHIM), f"BUILD={folder}", flags, "LINK="], check=True, timeout=180)
    return folder / "casemate-vm"
