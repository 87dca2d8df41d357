"""How a process of the guest is scheduled, how its input and output are, and what machine it believes to be on. Pure.

Sources: OCI runtime-spec 1.2 (config.md, "Scheduler", "IOPriority"; config-linux.md, "Personality"), sched_setattr(2),
ioprio_set(2), personality(2).
"""

from __future__ import annotations

import struct

from casemate.isolation.microvm import frames
from casemate.isolation.microvm.errors import BundleUnsupported
from casemate.isolation.microvm.frames import Field, Tag
from casemate.isolation.microvm.oci import IoPriority, Personality, Process, Scheduler

_POLICIES = {"OTHER": 0, "FIFO": 1, "RR": 2, "BATCH": 3, "IDLE": 5, "DEADLINE": 6}
_FLAGS = {
    **{"RESET_ON_FORK": 1, "RECLAIM": 2, "DL_OVERRUN": 4, "KEEP_POLICY": 8, "KEEP_PARAMS": 16},
    **{"UTIL_CLAMP_MIN": 32, "UTIL_CLAMP_MAX": 64},
}
_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
_CLASS_SHIFT = 13
#: linux/personality.h: a machine of 64 bits that says it had 32.
_DOMAINS = {"LINUX": 0, "LINUX32": 8}
_DEADLINE = 6
#: What kernel/sched/deadline.c takes: the resolution of its clock, and times without the highest bit.
_LEAST_NS, _MOST_NS = 1 << 10, (1 << 63) - 1


def fields(process: Process) -> list[Field]:
    """What CREATE and EXEC say of *process*; nothing for what every process has. :class:`BundleUnsupported`."""
    found = [] if process.scheduler is None else [_scheduler(process.scheduler)]
    return found if process.io_priority is None else [*found, _io_priority(process.io_priority)]


def personality(wanted: Personality | None) -> list[Field]:
    """The container's; its flags are reserved for later. :class:`BundleUnsupported`."""
    if wanted is None:
        return []
    if wanted.domain not in _DOMAINS or wanted.flags:
        raise BundleUnsupported(
            f"personality {wanted.domain[:40]!r} with {len(wanted.flags)} flags; allowed are {', '.join(_DOMAINS)}, "
            "without any"
        )
    domain = _DOMAINS[wanted.domain]
    return [frames.u32(Tag.PERSONALITY, domain)] if domain else []


def _scheduler(wanted: Scheduler) -> Field:
    policy = _POLICIES.get(wanted.policy.removeprefix("SCHED_"))
    if policy is None:
        raise BundleUnsupported(
            f"scheduler policy {wanted.policy[:40]!r}; allowed are SCHED_{', SCHED_'.join(_POLICIES)}"
        )
    flags = 0
    for name in wanted.flags:
        bit = _FLAGS.get(name.removeprefix("SCHED_FLAG_"))
        if bit is None:
            raise BundleUnsupported(
                f"scheduler flag {name[:40]!r}; allowed are SCHED_FLAG_{', SCHED_FLAG_'.join(_FLAGS)}"
            )
        flags |= bit
    times = (wanted.runtime or 0, wanted.deadline or 0, wanted.period or 0)
    if policy == _DEADLINE:
        _check_deadline(wanted)
    elif any(times):
        raise BundleUnsupported(f"scheduler {wanted.policy}: runtime, deadline and period are of SCHED_DEADLINE")
    return Field(Tag.SCHEDULER, struct.pack("<IiIQQQQ", policy, wanted.nice, wanted.priority, flags, *times))


def _check_deadline(wanted: Scheduler) -> None:
    """The kernel's own conditions (sched(7), "SCHED_DEADLINE"), in words: it says EINVAL to each."""
    what = "sched_setattr: `SCHED_DEADLINE`"
    for name, value in (("runtime", wanted.runtime), ("deadline", wanted.deadline)):
        if value is None:
            raise BundleUnsupported(f"{what} requires `{name}`")
        if value == 0:
            raise BundleUnsupported(f"{what} {name} must be greater than 0")
    runtime, deadline = wanted.runtime or 0, wanted.deadline or 0
    period = wanted.period or deadline
    if not _LEAST_NS <= runtime <= _MOST_NS:
        raise BundleUnsupported(f"{what} runtime {runtime} must be between {_LEAST_NS} and {_MOST_NS} ns")
    if runtime > deadline:
        raise BundleUnsupported(f"{what} runtime {runtime} must be <= deadline {deadline}")
    if deadline > period:
        raise BundleUnsupported(f"{what} deadline {deadline} must be <= period {period}")
    if period > _MOST_NS:
        raise BundleUnsupported(f"{what} period {period} must be <= {_MOST_NS}")


def _io_priority(wanted: IoPriority) -> Field:
    kind = _CLASSES.get(wanted.kind)
    if kind is None:
        raise BundleUnsupported(f"ioPriority class {wanted.kind[:40]!r}; allowed are {', '.join(_CLASSES)}")
    return frames.u32(Tag.IO_PRIORITY, kind << _CLASS_SHIFT | wanted.priority)
