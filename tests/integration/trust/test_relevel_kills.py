"""casemated killed at each step of a restart at a stronger level: one container is left, and it runs at that level."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.trust.conftest import Casemate, debian_tar, imported
from tests.integration.trust.relevel import Step, converges

pytestmark = pytest.mark.root
pytest.importorskip("cel", reason="missing: common-expression-language")
STEPS: list[Step] = [
    ("lifecycle", "before", "stop_locked"),
    ("lifecycle", "during", "stop_locked"),
    ("lifecycle", "after", "stop_locked"),
    ("actions", "after", "_clear"),
    ("actions", "before", "_remove"),
    ("actions", "after", "_remove"),
    ("lifecycle", "during", "start_locked"),
    ("lifecycle", "after", "start_locked"),
]


@pytest.fixture(scope="module")
def image(casemate: Casemate) -> str:
    if casemate.daemons.client.info().levels.get("gvisor", "unavailable").startswith("unav"):
        pytest.skip("missing: isolation level gvisor")
    return imported(casemate, "relevel", debian_tar())


@pytest.fixture(autouse=True)
def emptied(casemate: Casemate) -> Iterator[None]:
    yield
    casemate.daemons.start()
    casemate.ended("rm", "-f", "one")
    casemate.ended("trust", "policy", "rm", "test")


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step[1]}-{step[2]}")
def test_killed_at_a_step_it_converges(casemate: Casemate, image: str, tmp_path: Path, step: Step) -> None:
    converges(casemate, image, tmp_path, step, "gvisor")
