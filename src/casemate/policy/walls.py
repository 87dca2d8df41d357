"""Walls: conflict-of-interest classes after Brewer and Nash (1989), as a state machine without effects.

A wall is a class with members that must not mix (two banks, two stages of a payment, two projects). A workload that
has once reached a member may reach that member again, and no other until an officer releases it. Workloads go by
their stable names, and members by what selects them; a history names the workload, so relabelling it, giving it a new
address or starting it anew changes nothing. Who keeps the history must write it before the first packet passes.
"""

from __future__ import annotations

from dataclasses import dataclass

from casemate.policy.errors import PolicyInvalid, WallBreached
from casemate.policy.identity import Endpoint, Identity
from casemate.policy.rules import Workloads


@dataclass(frozen=True, slots=True)
class Wall:
    """A class: *members* by name, each with what selects it. Exempt are the members' own workloads, towards theirs."""

    name: str
    members: tuple[tuple[str, tuple[Workloads, ...]], ...]

    def members_of(self, end: Endpoint | Identity) -> tuple[str, ...]:
        """The members that *end* belongs to: none, one; two is a contradiction that no connection may use."""
        return tuple(name for name, picks in self.members if any(pick.matches(end) for pick in picks))


@dataclass(frozen=True, slots=True)
class Reached:
    """One line of history. *sequence* orders lines; *member* "" is an officer's release."""

    sequence: int
    workload: str
    wall: str
    member: str
    officer: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class History:
    """What has been reached; a value: each step gives another, and only ever adds lines."""

    lines: tuple[Reached, ...] = ()

    def member(self, workload: str, wall: str) -> str | None:
        """The member that *workload* is bound to, or None."""
        for line in reversed(self.lines):
            if line.workload == workload and line.wall == wall:
                return line.member or None
        return None

    def add(self, line: Reached) -> History:
        return History((*self.lines, line))


@dataclass(frozen=True, slots=True)
class Outcome:
    """*allowed*, the history to keep (write it before the packet passes), the new line if there is one, and why."""

    allowed: bool
    history: History
    new: Reached | None
    why: str

    def demand(self) -> History:
        """The history to keep. Raises :class:`WallBreached` where the wall forbids it."""
        if not self.allowed:
            raise WallBreached(self.why)
        return self.history


def reach(history: History, wall: Wall, workload: str, member: str) -> Outcome:
    """*workload* wants to reach *member* of *wall*."""
    if member not in dict(wall.members):
        raise PolicyInvalid(f"wall {wall.name!r} has no member {member[:80]!r}")
    bound = history.member(workload, wall.name)
    if bound == member:
        return Outcome(True, history, None, f"{workload} has reached {member} before")
    if bound is not None:
        return Outcome(False, history, None, f"{workload} has reached {bound} of wall {wall.name}: {member} is closed")
    line = Reached(len(history.lines), workload, wall.name, member)
    return Outcome(True, history.add(line), line, f"the first member of wall {wall.name} that {workload} reaches")


def release(history: History, wall: Wall, workload: str, officer: str, reason: str) -> History:
    """*officer* lets *workload* begin anew; both are kept. Raises :class:`PolicyInvalid` without a reason."""
    if not officer.strip() or not reason.strip():
        raise PolicyInvalid(f"release of {workload!r} from wall {wall.name!r} needs an officer and a reason")
    if history.member(workload, wall.name) is None:
        raise PolicyInvalid(f"{workload!r} is bound by no member of wall {wall.name!r}")
    return history.add(Reached(len(history.lines), workload, wall.name, "", officer, reason))


def connect(history: History, walls: tuple[Wall, ...], source: Endpoint, destination: Endpoint) -> Outcome:
    """A connection under every wall, both ways: data flows in both. All allow it, or nothing is written.

    A workload that is itself a member is bound to its own member from the start.
    """
    now, why, last = history, "no wall is touched", None
    for wall in walls:
        ends = (source, wall.members_of(source)), (destination, wall.members_of(destination))
        if any(len(held) > 1 for _, held in ends):
            end, held = next((e, h) for e, h in ends if len(h) > 1)
            return Outcome(False, history, None, f"{end.name} is in {' and '.join(held)} of wall {wall.name} at once")
        for (one, own), (_, theirs) in (ends, ends[::-1]):
            if not theirs:
                continue
            if own and own != theirs:
                return Outcome(False, history, None, f"wall {wall.name} stands between {own[0]} and {theirs[0]}")
            if own:
                continue
            outcome = reach(now, wall, one.name, theirs[0])
            if not outcome.allowed:
                return Outcome(False, history, None, outcome.why)
            now, why, last = outcome.history, outcome.why, outcome.new or last
    return Outcome(True, now, last, why)
