"""What cannot be judged when something changes, as the child has no time: left alone, tried again, then refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.integration.trust.conftest import TRACKER, Casemate, another_casemated, debian_tar, imported, tracker
from tests.integration.trust.test_running import REPAIRED, policy, running, state, told, until

pytestmark = pytest.mark.root
pytest.importorskip("cel", reason="missing: common-expression-language")
TODAY = datetime.now(UTC).date().isoformat()
#: casemated whose judging child has no time for the first questions of a re-match; the waits are shorter.
HURRIED = """
import sys
from casemate.api import daemon
from casemate.node.trust import rematch
questions, patient = int(sys.argv[1]), int(sys.argv[2])
rematch.RETRY_S, rematch.PATIENT_TRIES = 0.3, patient
real, seen = rematch._judged, 0
async def judged(*words):
    global seen
    seen += 1
    rematch.BATCH_S = 0.0001 if seen <= questions else 60.0
    return await real(*words)
rematch._judged = judged
sys.exit(daemon.main([]))
"""


@pytest.fixture(autouse=True)
def emptied(casemate: Casemate) -> Iterator[None]:
    yield
    casemate.ended("rm", "-f", "one")
    casemate.ended("trust", "policy", "rm", "test")
    if "casemated" in casemate.daemons.processes:
        casemate.daemons.kill("casemated")
    casemate.daemons.start()


@pytest.mark.parametrize(("questions", "patient"), [(3, 8), (1000, 2)])
def test_a_child_that_has_no_time(casemate: Casemate, tmp_path: Path, questions: int, patient: int) -> None:
    image = imported(casemate, "unjudged", debian_tar())
    words = ("feed", "import", "debian-tracker", "--date", TODAY, "--name", "debian")
    casemate.run(*words, str(tracker(tmp_path, REPAIRED)))
    casemate.run("trust", "policy", "apply", policy(casemate, tmp_path, "stop"))
    id_ = running(casemate, image, "--network", "none")
    another_casemated(casemate, HURRIED, str(questions), str(patient))  # judges anew what runs, at its start
    facts = told(casemate, "unjudged", id_)
    assert "did not answer within" in str(facts[0]["reason"])
    if questions == 1000:
        # Not for ever: what cannot be judged is refused in the end.
        judged = told(casemate, "judged", id_)[-1]
        assert judged["answer"] == "refuse"
        assert str(judged["reason"]).startswith("cannot be judged")
        return
    assert state(casemate)["summary"]["status"] == "running"  # type: ignore[index]
    deadline = time.monotonic() + 30
    while "could be judged again" not in casemate.daemons.journal("casemated"):
        assert time.monotonic() < deadline, casemate.daemons.journal("casemated")[-3000:]
        time.sleep(0.1)
    assert len(told(casemate, "unjudged", id_)) == 1
    assert state(casemate)["summary"]["status"] == "running"  # type: ignore[index]
    casemate.run(*words, str(tracker(tmp_path, TRACKER)))
    until(casemate, "exited")
    assert told(casemate, "judged", id_)[-1]["because"] == "feed debian changed"
