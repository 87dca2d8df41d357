from __future__ import annotations

import re
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def wire_header() -> dict[str, int]:
    """The numbers of guest/wire/wire.h, by name."""
    text = (Path(__file__).parents[4] / "guest/wire/wire.h").read_text()
    return {name: int(number, 0) for name, number in re.findall(r"^\t([A-Z_]+) = (0x[0-9A-F]+|\d+),", text, re.M)}
