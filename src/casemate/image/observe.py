"""Who else looks at a layer while it is rewritten: the seam by which its package list needs no second reading.

This layer knows nothing of packages: whoever starts the worker hands in a :class:`LayerWatch`. An observer is told of
each entry that stays (by name, in the order of the stream) and may take the content of a regular file piece by piece,
without a copy. It must not keep the stream waiting, and should it raise, the conversion fails.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Tap = Callable[[memoryview], None]


class LayerObserver(Protocol):
    """Sees one reading of one layer."""

    def begin(self, name: bytes, kind: bytes, size_bytes: int, *, mode: int, uid: int, gid: int) -> Tap | None:
        """A file begins (no folder); the answer takes its content, or is None. *kind*: tar's type flag."""

    def end(self) -> None:
        """The content for which a tap was given is complete."""

    def hide(self, name: bytes, *, opaque: bool) -> None:
        """A whiteout of *name*, or *name* is an opaque folder."""


class LayerWatch(Protocol):
    """Gives observers and takes them back when their layer is stored; called from the threads that convert."""

    def open(self) -> LayerObserver:
        """A fresh observer for one reading (a layer with an entry that is there twice is read twice)."""
        ...

    def close(self, diff_id: str, observer: LayerObserver) -> None:
        """*observer* has seen the whole layer *diff_id*, whose digest is checked."""
