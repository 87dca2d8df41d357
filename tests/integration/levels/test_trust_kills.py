"""casemated killed while a policy restarts a container as a micro-VM; the steps of gVisor's are in tests of trust."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.integration.daemons import Daemons
from tests.integration.trust.conftest import Casemate, debian_tar, imported
from tests.integration.trust.relevel import Step, converges

pytestmark = pytest.mark.root
pytest.importorskip("cel", reason="missing: common-expression-language")
pytest.importorskip("cvss", reason="missing: cvss")
#: An emulated machine is booted once for its template, on processors that others use as well.
WAIT_S = 200.0
#: What another level makes different: the old pod is gone and the new one is not there, or the machine is half started.
STEPS: list[Step] = [
    ("actions", "after", "_remove"),
    ("lifecycle", "during", "start_locked"),
]


@pytest.fixture
def casemate(pair: Daemons, vm: Callable[..., object]) -> Iterator[Casemate]:
    del vm  # the level is there
    casemate = Casemate(pair)
    yield casemate
    pair.start()
    casemate.ended("rm", "-f", "one")
    casemate.ended("trust", "policy", "rm", "test")
    casemate.ended("feed", "rm", "debian")
    casemate.ended("rmi", "-f", "relevel")


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step[1]}-{step[2]}")
def test_killed_at_a_step_it_converges(casemate: Casemate, tmp_path: Path, step: Step) -> None:
    converges(casemate, imported(casemate, "relevel", debian_tar()), tmp_path, step, "microvm", WAIT_S)
