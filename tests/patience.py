"""How long a test waits for what is promised within a time: the promise is a quiet machine's."""

from __future__ import annotations

import os


def patience_s(promised_s: float) -> float:
    """*promised_s*, or as many times more as the processors have others to serve: the last minute's load, thrice."""
    return promised_s * max(1.0, 3 * os.getloadavg()[0] / (os.cpu_count() or 1))
