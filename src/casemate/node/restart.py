"""When a container that ended is started again, and how much later. Pure.

The back-off is Docker's: 100 ms, doubled each time up to a minute, forgotten after 10 s of running.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST_DELAY_S = 0.1
MAX_DELAY_S = 60.0
HEALTHY_S = 10.0


@dataclass(frozen=True, slots=True)
class Ended:
    """A container's end as the policy sees it. *failures*: restarts since it last ran for :data:`HEALTHY_S`."""

    policy: str
    maximum: int
    exit_code: int
    ran_s: float
    restarts: int
    failures: int
    #: The user stopped or killed it through the API.
    by_user: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to start again, after how long, and the reason as a person reads it."""

    again: bool
    delay_s: float
    failures: int
    reason: str


def decide(ended: Ended) -> Decision:
    """What the restart policy says to *ended*."""
    failures = 0 if ended.ran_s >= HEALTHY_S else ended.failures
    if ended.policy == "no":
        return Decision(False, 0.0, 0, "restart policy no")
    if ended.by_user:
        return Decision(False, 0.0, 0, "stopped by the user")
    if ended.policy == "on-failure":
        if ended.exit_code == 0:
            return Decision(False, 0.0, 0, "restart policy on-failure, and it ended with 0")
        if ended.maximum and ended.restarts >= ended.maximum:
            return Decision(False, 0.0, failures, f"restart policy on-failure: {ended.maximum} restarts are used up")
    delay = min(FIRST_DELAY_S * 2 ** min(failures, 20), MAX_DELAY_S)
    return Decision(True, delay, failures + 1, f"restart policy {ended.policy}, exit code {ended.exit_code}")


def after_boot(policy: str, desired: str, exit_code: int) -> bool:
    """Whether a container that a reboot of the host ended is started again.

    ``always`` starts whatever was stopped by hand before; ``unless-stopped`` and ``on-failure`` only what should run
    (a reboot counts as a failure).
    """
    match policy:
        case "always":
            return desired != "created"
        case "unless-stopped":
            return desired == "running"
        case "on-failure":
            return desired == "running" and exit_code != 0
        case _:
            return False
