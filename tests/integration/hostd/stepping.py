"""hostd with a hook at each step of its journal: to be killed there, or to have the steps timed.

``TEST_CRASH_AT=name[:n]``: SIGKILL to itself at the n-th passing of that step. ``TEST_STEPS=file``: a line
``seconds name`` for each step. Only tests start hostd through this module; the daemon itself reads neither.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from casemate.hostd.daemon import main


def _hook() -> object:
    crash, _, count = os.environ.get("TEST_CRASH_AT", "").partition(":")
    left = int(count or "1")
    path = os.environ.get("TEST_STEPS")
    out = open(path, "a", buffering=1) if path else None  # noqa: SIM115 - open as long as the daemon

    def step(name: str) -> None:
        nonlocal left
        if out is not None:
            out.write(f"{time.monotonic():.6f} {name}\n")
        if name == crash:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return step


if __name__ == "__main__":
    sys.exit(main(step=_hook()))
