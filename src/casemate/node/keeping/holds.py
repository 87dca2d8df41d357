"""Holds of the relay: a pod's connections stop, wait for the pod that takes its place, and go on or are reset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Set
from dataclasses import dataclass

from casemate.node.keeping import wire
from casemate.node.keeping.pair import OPEN, OVER, Pair


@dataclass(slots=True)
class Hold:
    """A hold in force; *drain_until* 0 once casemated was told. *resuming*: connections that are made anew."""

    until: float
    drain_until: float
    resuming: set[Pair] | None = None
    resumed: int = 0
    replayed: int = 0
    reset: int = 0


class Holds:
    """Those in force, by the pod's address.

    *pairs_of* gives the connections of an address, *reset* ends one and counts it, *tell* sends to casemated.
    """

    def __init__(
        self, pairs_of: Callable[[str], Set[Pair]], reset: Callable[[Pair], None],
        tell: Callable[[wire.Drained | wire.Resumed], None], counted: Counter[str],
    ) -> None:  # fmt: skip
        self._pairs_of = pairs_of
        self._reset = reset
        self._tell = tell
        self._counted = counted
        self._holds: dict[str, Hold] = {}

    def __len__(self) -> int:
        return len(self._holds)

    def of(self, address: str) -> Hold | None:
        return self._holds.get(address)

    @property
    def is_pressing(self) -> bool:
        """Whether one drains or resumes: somebody waits for what comes next."""
        return any(hold.drain_until or hold.resuming is not None for hold in self._holds.values())

    def begin(self, message: wire.Hold, now: float) -> None:
        """Hold the connections of a pod, as many as may be; the others are reset."""
        pairs = list(self._pairs_of(message.address))
        self._holds[message.address] = Hold(now + message.wait_s, now + message.drain_s)
        for number, pair in enumerate(pairs):
            if number < message.limit:
                pair.hold()
            else:
                self._reset(pair)

    def resume(self, message: wire.Resume) -> None:
        """Let a pod's connections go on, or reset them where the pod is not to be reached any more."""
        hold = self._holds.get(message.address)
        pairs = list(self._pairs_of(message.address))
        if hold is None:
            self._tell(wire.Resumed(message.address, 0, 0, 0))
            return
        if not message.accept:
            for pair in pairs:
                self._reset(pair)
            del self._holds[message.address]
            self._tell(wire.Resumed(message.address, 0, 0, len(pairs)))
            return
        hold.drain_until, hold.resuming = 0.0, set(pairs)
        for pair in pairs:
            pair.replayed = False
            pair.resume(anew=message.anew)

    def look(self, now: float) -> None:
        """Do what is due: what ran dry is told, what was held too long is reset."""
        for address, hold in list(self._holds.items()):
            pairs = self._pairs_of(address)
            if hold.resuming is not None:
                self._look_at_resuming(address, hold, pairs, now)
            elif now >= hold.until:
                for pair in list(pairs):
                    self._reset(pair)
                del self._holds[address]
            elif hold.drain_until:
                busy = sum(not pair.is_quiet for pair in pairs)
                if not busy or now >= hold.drain_until:
                    hold.drain_until = 0.0
                    for pair in list(pairs):
                        pair.stop()
                    self._tell(wire.Drained(address, len(pairs) - busy, busy))

    def _look_at_resuming(self, address: str, hold: Hold, pairs: Set[Pair], now: float) -> None:
        assert hold.resuming is not None
        for pair in list(hold.resuming):
            if pair.state == OPEN or (pair.state == OVER and not pair.was_reset):
                hold.resumed += 1
                hold.replayed += pair.replayed
            elif pair in pairs and now < hold.until:
                continue
            else:
                hold.reset += 1
                pair.reset()
            hold.resuming.discard(pair)
        if not hold.resuming:
            del self._holds[address]
            self._counted.update(resumed=hold.resumed, replayed=hold.replayed, reset=hold.reset)
            self._tell(wire.Resumed(address, hold.resumed, hold.replayed, hold.reset))
