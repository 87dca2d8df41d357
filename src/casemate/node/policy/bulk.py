"""Much made at once: Python's collector of cycles stands aside meanwhile, and passes over it afterwards.

A policy of 100,000 rules is some three million objects, none of them in a cycle. The collector would look at all of
them again and again while they are made (it doubles the time), and once more at each of its rounds afterwards: a
second in which nothing else of casemated runs.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Generator

_lock = threading.Lock()
_held = 0


@contextlib.contextmanager
def bulk() -> Generator[None]:
    """Around the making of much that stays. May be entered by several threads at a time."""
    global _held  # noqa: PLW0603 - the collector is the process's
    with _lock:
        _held += 1
        gc.disable()
    try:
        yield
    finally:
        with _lock:
            _held -= 1
            if not _held:
                gc.freeze()
                gc.enable()
