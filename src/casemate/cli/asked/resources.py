"""Limits: ``--memory``, ``--cpus`` and the rest, of run, create, update and pod create."""

from __future__ import annotations

from casemate.cli.asked.quantities import cpu_millis, size, size_or_unlimited, whole
from casemate.cli.fail import bad_value, usage
from casemate.cli.flags import Flag, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.flags import Arguments

_GROUP = "Limits"

RESOURCE_FLAGS: tuple[Flag, ...] = (
    value("memory", "SIZE", "Memory limit: 512m, 2g", "m", _GROUP),
    value("memory-swap", "SIZE", "Memory and swap together; -1 is unlimited swap", "", _GROUP),
    value("memory-reservation", "SIZE", "Memory that is kept under pressure", "", _GROUP),
    value("cpus", "CPUS", "How many cpus: 0.5, 2", "", _GROUP),
    value("cpu-shares", "N", "Weight against others when cpus are short (1024)", "c", _GROUP),
    value("cpu-period", "MICROSECONDS", "Length of a scheduling period; with --cpu-quota", "", _GROUP),
    value("cpu-quota", "MICROSECONDS", "Cpu time in one period; --cpus says it shorter", "", _GROUP),
    value("cpuset-cpus", "CPUS", "The cpus that may be used: 0-3,7", "", _GROUP),
    value("pids-limit", "N", "Most processes and threads; -1 is unlimited", "", _GROUP),
    value("blkio-weight", "N", "Weight of input and output against others, 10 to 1000", "", _GROUP),
    value("oom-score-adj", "N", "Whom the kernel kills first when memory ends, -1000 to 1000", "", _GROUP),
)


def resources(arguments: Arguments) -> dict[str, object]:
    """The API's Resources; only what was asked for is in it."""
    made: dict[str, object] = {}
    for flag, name in (("memory", "memory_bytes"), ("memory-reservation", "memory_reservation_bytes")):
        text = arguments.text(flag)
        if text is not None:
            made[name] = size(f"--{flag}", text)
    text = arguments.text("memory-swap")
    if text is not None:
        made["memory_swap_bytes"] = size_or_unlimited("--memory-swap", text)
    for flag, name, least, most in (
        ("cpu-shares", "cpu_shares", 2, 262_144),
        ("pids-limit", "pids", -1, 4_194_304),
        ("blkio-weight", "io_weight", 10, 1000),
        ("oom-score-adj", "oom_score_adj", -1000, 1000),
    ):
        text = arguments.text(flag)
        if text is not None:
            made[name] = whole(f"--{flag}", text, least, most)
    _cpus(arguments, made)
    return made


def _cpus(arguments: Arguments, made: dict[str, object]) -> None:
    text, quota = arguments.text("cpus"), arguments.text("cpu-quota")
    if text is not None and quota is not None:
        raise usage("--cpus and --cpu-quota say the same; give one of them")
    if text is not None:
        made["cpu_millis"] = cpu_millis("--cpus", text)
    elif quota is not None:
        period = whole("--cpu-period", arguments.text("cpu-period") or "100000", 1000, 1_000_000)
        made["cpu_millis"] = whole("--cpu-quota", quota, 1000, 100_000_000_000) * 1000 // period
    cpuset = arguments.text("cpuset-cpus")
    if cpuset is not None:
        if not cpuset or len(cpuset) > 256 or cpuset.strip("0123456789,-"):
            raise bad_value("--cpuset-cpus", cpuset, "a list of cpus, for example 0-3,7")
        made["cpuset"] = cpuset


def restart_policy(text: str) -> dict[str, object]:
    """``--restart``: no, always, unless-stopped, on-failure[:N]."""
    name, colon, maximum = text.partition(":")
    form = "no, on-failure[:N], always or unless-stopped"
    if name not in ("no", "on-failure", "always", "unless-stopped") or (colon and name != "on-failure"):
        raise bad_value("--restart", text, form)
    made: dict[str, object] = {"name": name}
    if colon:
        made["maximum"] = whole("--restart on-failure", maximum, 0, 1_000_000)
    return made


def rlimit(text: str) -> dict[str, object]:
    """``--ulimit``: NAME=SOFT[:HARD]; -1 and ``unlimited`` are no limit."""
    name, equals, limits = text.partition("=")
    soft, colon, hard = limits.partition(":")
    hard = hard if colon else soft
    form = "NAME=SOFT[:HARD], for example nofile=1024:4096 or core=-1"
    name = name.strip().lower()
    if not equals or not 2 <= len(name) <= 12 or not (name.isascii() and name.isalpha()):
        raise bad_value("--ulimit", text, form)
    numbers: list[int] = []
    for part in (soft, hard):
        if part in ("-1", "unlimited"):
            numbers.append(-1)
        elif part.isascii() and part.isdigit() and int(part[:20]) <= 1 << 62:
            numbers.append(int(part))
        else:
            raise bad_value("--ulimit", text, form)
    if numbers[1] != -1 and (numbers[0] == -1 or numbers[0] > numbers[1]):
        raise bad_value("--ulimit", text, f"{form}; the soft limit is not above the hard one")
    return {"name": name, "soft": numbers[0], "hard": numbers[1]}
