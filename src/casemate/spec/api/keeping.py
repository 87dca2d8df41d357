"""``/v1/holds``: kept ports, and what is held for them now."""

from __future__ import annotations

from casemate.spec.workload import Value


class HeldPort(Value, frozen=True):
    """A kept port of a workload. *open*: connections through the relay; *held*: those that wait for the pod;
    *kept_bytes*: what they asked and was not answered; *left_s*: how long the hold may still last, 0: none."""

    workload: str
    pod: str
    address: str
    port: int
    replay: bool
    open: int = 0
    held: int = 0
    kept_bytes: int = 0
    left_s: float = 0.0


class RelayCounters(Value, frozen=True):
    """Of connections, since the relay started. *refused*: beyond a bound; *failed*: the pod did not take them;
    *resumed*, *replayed*, *reset*: after holds; *cut*: not allowed any more."""

    accepted: int = 0
    refused: int = 0
    failed: int = 0
    resumed: int = 0
    replayed: int = 0
    reset: int = 0
    cut: int = 0


class HoldList(Value, frozen=True):
    """*relaying*: whether the relay runs; where it does not, connections go straight to their pods and are not kept."""

    relaying: bool
    ports: tuple[HeldPort, ...]
    counters: RelayCounters
