"""Which system calls stand between a level's code and this host's kernel, as casemated is told them at hello. Pure."""

from __future__ import annotations

from casemate.isolation import seccomp, seccomp_groups
from casemate.isolation.microvm import calls


def offered(machine: str, gvisor: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    """Sorted names: by level, for a container without capabilities, and by capability what that adds (``namespace``).

    *machine*: as uname(2) names it. *gvisor*: what the filter of a sandbox was seen to allow, which differs by version.
    """
    base = _allowed(frozenset(), machine)
    found = {"namespace": tuple(sorted(base)), "microvm": tuple(sorted(calls.ALLOWED))}
    if gvisor:
        found["gvisor"] = gvisor
    for capability in sorted({*seccomp_groups.BY_CAPABILITY, "CAP_SYS_ADMIN"}):
        if more := _allowed(frozenset((capability,)), machine) - base:
            found[capability] = tuple(sorted(more))
    return found


def _allowed(capabilities: frozenset[str], machine: str) -> frozenset[str]:
    """Those allowed for some arguments at least."""
    rules = seccomp.profile(capabilities, machine)["syscalls"]
    return frozenset(name for rule in rules if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"])
