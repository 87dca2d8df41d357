"""casemated with BlockBuster: a call that blocks the loop is an error. ``CASEMATE_TEST_UNBLOCKED=1`` chooses it.

What is raised names the call; casemated answers it as any error that it did not foresee, so the test at hand fails.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

from blockbuster import BlockBuster

from casemate.api import daemon


def _activate_when_it_serves() -> None:
    """What the daemon reads and writes before it serves may block: nobody waits yet."""
    socket = Path(os.environ["CASEMATE_PATHS_RUN"]) / "api.sock"
    while not socket.exists():
        time.sleep(0.01)
    time.sleep(0.3)
    BlockBuster("casemate").activate()
    sys.stderr.write("BlockBuster is active\n")
    sys.stderr.flush()


if __name__ == "__main__":
    threading.Thread(target=_activate_when_it_serves, daemon=True).start()
    sys.exit(daemon.main(sys.argv[1:]))
