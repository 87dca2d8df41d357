"""The reconcile loop: what should be, against what is; a plan of operations, each with its reason.

:func:`plan` is pure. It runs when the connection to hostd is made: after a start of casemated, of hostd, or of the
host. What it says is applied by :mod:`casemate.node.recovery`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from casemate.hostd.protocol import ObservedContainer
from casemate.node.restart import after_boot

#: What the field answers where a container's exit code is not known.
LOST_EXIT_CODE = 255
_ALIVE_THERE = frozenset(("running", "paused"))


@dataclass(frozen=True, slots=True)
class Wanted:
    """A container as the store has it. *interrupted*: kinds of journal entries that a crash left about it."""

    id: str
    name: str
    pod: str
    status: str
    desired: str
    policy: str
    auto_remove: bool
    exit_code: int
    #: When its last start was intended; an end before that is an older run's.
    intent_at: float = 0.0
    interrupted: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class RecordRunning:
    """It runs, and the store says otherwise (or a crash left a start unrecorded)."""

    id: str
    pid: int
    paused: bool
    reason: str

    def describe(self) -> str:
        return f"record that {self.id[:12]} {'is paused' if self.paused else 'runs'}: {self.reason}"


#: The reason of an end that has none of its own.
ENDED = "it ended"


@dataclass(frozen=True, slots=True)
class RecordExit:
    """It ended while nobody looked; the restart policy and ``--rm`` follow as for any end."""

    id: str
    exit_code: int
    oom_killed: bool
    finished_at: float
    reason: str

    def describe(self) -> str:
        return f"record that {self.id[:12]} ended with {self.exit_code}: {self.reason}"


@dataclass(frozen=True, slots=True)
class RecordUnstarted:
    """A start was interrupted before hostd made anything."""

    id: str
    reason: str

    def describe(self) -> str:
        return f"record that {self.id[:12]} was not started: {self.reason}"


@dataclass(frozen=True, slots=True)
class FinishRemoval:
    """A removal was interrupted; it is done to its end."""

    id: str
    reason: str

    def describe(self) -> str:
        return f"remove {self.id[:12]}: {self.reason}"


@dataclass(frozen=True, slots=True)
class StartAgain:
    """The restart policy wants it, after a reboot of the host or a restart of casemated in its waiting time."""

    id: str
    reason: str

    def describe(self) -> str:
        return f"start {self.id[:12]}: {self.reason}"


@dataclass(frozen=True, slots=True)
class FinishPodRemoval:
    """The removal of a pod was interrupted."""

    pod: str
    reason: str

    def describe(self) -> str:
        return f"remove pod {self.pod[:12]}: {self.reason}"


Operation = RecordRunning | RecordExit | RecordUnstarted | FinishRemoval | StartAgain | FinishPodRemoval


def plan(
    wanted: Sequence[Wanted],
    observed: Mapping[str, ObservedContainer],
    *,
    rebooted: bool,
    pods_to_remove: Sequence[str] = (),
) -> list[Operation]:
    """What brings the store and the host together, in order. What hostd has and the store does not know is left
    alone: `system doctor` names it, and only `system prune` removes it.
    """
    operations: list[Operation] = []
    for row in wanted:
        operations += _plan_one(row, observed.get(row.id), rebooted=rebooted)
    operations += [FinishPodRemoval(pod, "its removal was interrupted") for pod in pods_to_remove]
    return operations


def _plan_one(row: Wanted, seen: ObservedContainer | None, *, rebooted: bool) -> list[Operation]:
    if row.status == "removing" or "container.remove" in row.interrupted:
        return [FinishRemoval(row.id, "its removal was interrupted")]
    if seen is not None and seen.state in _ALIVE_THERE:
        return _plan_alive(row, seen)
    match row.status:
        case "starting" | "running" | "paused" | "stopping":
            return [*_plan_ended(row, seen, rebooted=rebooted), *_again_after_boot(row, rebooted=rebooted)]
        case "restarting":
            return [StartAgain(row.id, "its restart was waiting")]
        case "exited" if row.auto_remove:
            return [FinishRemoval(row.id, "it ended, and was to be removed then")]
        case "exited" if rebooted and row.policy == "always" and after_boot(row.policy, row.desired, row.exit_code):
            return [StartAgain(row.id, "the host rebooted, and the restart policy is always")]
        case _:
            return []


def _plan_alive(row: Wanted, seen: ObservedContainer) -> list[Operation]:
    expected = "paused" if seen.state == "paused" else "running"
    if row.status == expected and "container.start" not in row.interrupted:
        return []
    if row.status == "stopping":
        return [RecordRunning(row.id, seen.pid, expected == "paused", "its stop was interrupted")]
    return [RecordRunning(row.id, seen.pid, expected == "paused", f"the store says {row.status}")]


def _plan_ended(row: Wanted, seen: ObservedContainer | None, *, rebooted: bool) -> list[Operation]:
    if row.status == "starting" and (seen is None or seen.state == "created" or seen.finished_at < row.intent_at):
        # Nothing is there, it was made and not started, or what is told is the end of an older run.
        return [RecordUnstarted(row.id, "its start was interrupted")]
    if seen is not None and seen.exit_code is not None:
        return [RecordExit(row.id, seen.exit_code, seen.oom_killed, seen.finished_at, seen.reason or ENDED)]
    why = "the host rebooted" if rebooted else "it is gone, and nobody knows how it ended"
    return [RecordExit(row.id, LOST_EXIT_CODE, False, 0.0, why)]


def _again_after_boot(row: Wanted, *, rebooted: bool) -> list[Operation]:
    """After a reboot the end counts as one that the policy answers; RecordExit decides all but an interrupted start."""
    if rebooted and row.status == "starting" and after_boot(row.policy, row.desired, LOST_EXIT_CODE):
        return [StartAgain(row.id, f"the host rebooted, and the restart policy is {row.policy}")]
    return []
