"""casemated killed at one step of a restart at a stronger level, and what has to be so afterwards."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

from tests.integration.trust.conftest import TRACKER, Casemate, another_casemated, tracker

#: Before, while or after the function of that name of that module.
Step = tuple[str, str, str]
WAIT_S = 60.0
TODAY = datetime.now(UTC).date().isoformat()
POLICY = """
apiVersion: casemate/v1
kind: TrustPolicy
metadata: {name: test}
spec:
  rules:
    - name: here
      prefix: local
      grades:
        - {name: high, when: "findings.exists(f, f.severity == 'high')", then: raise, level: LEVEL, running: restart}
"""
#: casemated that kills itself at one step of a restart at another level: before or after the function of that name.
DYING = """
import os, signal, sys
from casemate.api import daemon
from casemate.node import lifecycle
from casemate.node.trust import actions
place, when, name = {"actions": actions, "lifecycle": lifecycle}[sys.argv[1]], sys.argv[2], sys.argv[3]
real = getattr(place, name)
def die():
    os.kill(os.getpid(), signal.SIGKILL)
if name == "_clear":
    def wrapped(*words):
        real(*words)
        die()  # in the middle of the transaction
else:
    async def wrapped(*words, **named):
        if when == "before":
            die()
        if when == "during":
            import asyncio
            asyncio.get_running_loop().call_later(0.15, die)
        found = await real(*words, **named)
        die()
        return found
setattr(place, name, wrapped)
sys.exit(daemon.main([]))
"""


def summary(casemate: Casemate) -> dict[str, object]:
    found = casemate.json("inspect", "one")
    assert isinstance(found, list)
    return dict(found[0]["summary"])


def sandboxes(casemate: Casemate, id_: str) -> list[str]:
    """The command lines of conmons of the container: of the old one, of the new one, of both or of none."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"conmon") and id_.encode() in words:
            found.append(path.parent.name)
    return found


def converges(casemate: Casemate, image: str, folder: Path, step: Step, level: str, wait_s: float = WAIT_S) -> None:
    """An advisory makes the policy restart a container at *level*; casemated dies at *step* of it, and starts again."""
    repaired = {"openssl": {"CVE-2026-1001": TRACKER["openssl"]["CVE-2026-1001"]}}
    words = ("feed", "import", "debian-tracker", "--date", TODAY, "--name", "debian")
    casemate.run(*words, str(tracker(folder, repaired)))
    path = folder / "policy.yaml"
    path.write_text(POLICY.replace("LEVEL", level))
    casemate.run("trust", "policy", "apply", str(path))
    # It does not hear TERM: the stop takes its second.
    id_ = casemate.run(
        "run", "-d", "--network", "none", "--stop-timeout", "1", "--name", "one", image, "sleep", "600"
    ).strip()
    assert summary(casemate)["level"] == "namespace"
    another_casemated(casemate, DYING, *step)
    process = casemate.daemons.processes["casemated"]
    casemate.ended(*words, str(tracker(folder)))
    process.wait(wait_s)
    assert process.returncode == -9, casemate.daemons.journal("casemated")[-3000:]
    del casemate.daemons.processes["casemated"]
    casemate.daemons.start()
    deadline = time.monotonic() + wait_s
    while True:
        row = summary(casemate)
        if (row["level"], row["status"]) == (level, "running"):
            break
        assert time.monotonic() < deadline, (row, casemate.daemons.journal("casemated")[-3000:])
        time.sleep(0.2)
    assert casemate.run("exec", "one", "echo", "there") == "there\n"
    assert len(sandboxes(casemate, id_)) == 1
    casemate.run("rm", "-f", "one")
    assert not sandboxes(casemate, id_)
    left = casemate.json("system", "prune", "--left-overs", "--dry-run")
    assert not left["removed"], left  # type: ignore[index,call-overload]
