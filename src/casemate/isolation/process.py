"""The ``process`` object of the OCI runtime specification (config.md, "Process"): for a container and for an exec."""

from __future__ import annotations

from typing import Any

from casemate.isolation.bundle import HostFacts
from casemate.spec import capabilities
from casemate.spec.errors import InvalidArgument
from casemate.spec.workload import Process, Rlimit, Security

#: Limits of setrlimit(2), without ``RLIMIT_``.
_RLIMITS = "as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack"
RLIMITS = frozenset(_RLIMITS.split(" "))
#: Where catatonit is mounted for ``--init``: /dev is the container's own tmpfs, so no image is changed.
INIT_PATH = "/dev/init"
#: execve(2) takes 128 KiB for one string and 2 MiB for all; below that with room for the auxiliary vector.
MAX_ARGUMENT_BYTES = (2 << 20) - (64 << 10)
_UNLIMITED = (1 << 64) - 1


def process(
    wanted: Process, security: Security, facts: HostFacts, *, init: bool = False, oom_score_adj: int | None = None
) -> tuple[dict[str, Any], list[str]]:
    """The OCI process of *wanted*, and warnings. Raises :class:`InvalidArgument`."""
    size = sum(len(text.encode()) + 9 for text in (*wanted.args, *wanted.env))
    if size > MAX_ARGUMENT_BYTES:
        raise InvalidArgument(f"arguments and environment take {size} bytes, allowed are {MAX_ARGUMENT_BYTES}")
    for text in (*wanted.args, *wanted.env):
        if "\0" in text:
            raise InvalidArgument(f"{text[:60]!r} holds a null byte")
    if not wanted.args[0]:
        raise InvalidArgument("the command is empty")
    names = capabilities.ALL if security.privileged else security.capabilities
    have, missing = capabilities.available(names, facts.bounding)
    warnings = [] if security.privileged else [f"{name}: the host itself does not hold it" for name in missing]
    limits, more = rlimits(wanted.rlimits, facts)
    user = wanted.user
    found: dict[str, Any] = {
        "terminal": wanted.terminal,
        "user": {"uid": user.uid, "gid": user.gid, "umask": user.umask, "additionalGids": list(user.groups)},
        "args": [INIT_PATH, "--", *wanted.args] if init else list(wanted.args),
        "env": list(wanted.env),
        "cwd": wanted.cwd,
        "capabilities": _sets(have, user.uid),
        "rlimits": limits,
        "noNewPrivileges": security.no_new_privileges and not security.privileged,
    }
    score, said = _oom_score(oom_score_adj, facts)
    found["oomScoreAdj"] = score
    return found, [*warnings, *more, *said]


def _sets(names: tuple[str, ...], uid: int) -> dict[str, list[str]]:
    """Root has the set; another user may only gain from it by executing (file capabilities), as Docker does.

    Nothing is inheritable or ambient: a program that gives up root gives up everything (CVE-2022-24769).
    """
    held = list(names) if uid == 0 else []
    return {"bounding": list(names), "effective": held, "permitted": held, "inheritable": [], "ambient": []}


def rlimits(wanted: tuple[Rlimit, ...], facts: HostFacts) -> tuple[list[dict[str, Any]], list[str]]:
    """OCI rlimits, lowered to what hostd may give: without CAP_SYS_RESOURCE no hard limit can be raised."""
    found, warnings, seen = [], [], set()
    for limit in wanted:
        if limit.name not in RLIMITS or limit.name in seen:
            problem = "given twice" if limit.name in seen else f"not one of {', '.join(sorted(RLIMITS))}"
            raise InvalidArgument(f"ulimit {limit.name!r}: {problem}")
        seen.add(limit.name)
        hard, soft = _number(limit.hard), _number(limit.soft)
        if soft > hard:
            raise InvalidArgument(f"ulimit {limit.name}: soft limit {limit.soft} is above the hard limit {limit.hard}")
        highest = _number(facts.hard_limits.get(limit.name, -1))
        if hard > highest:
            warnings.append(f"ulimit {limit.name}: {limit.hard} lowered to {highest}, the highest that can be had here")
            hard, soft = highest, min(soft, highest)
        found.append({"type": f"RLIMIT_{limit.name.upper()}", "soft": soft, "hard": hard})
    return found, warnings


def _number(value: int) -> int:
    return _UNLIMITED if value < 0 else value


def _oom_score(wanted: int | None, facts: HostFacts) -> tuple[int, list[str]]:
    """Set in any case: a container must not inherit the protection that the daemon itself has."""
    value = 0 if wanted is None else wanted
    if value >= facts.oom_score_adj:
        return value, []
    said = [f"oom-score-adj: {value} raised to {facts.oom_score_adj}, the daemon's own"] if wanted is not None else []
    return facts.oom_score_adj, said
