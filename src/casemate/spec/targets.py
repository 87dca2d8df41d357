"""Where something of the user's may be mounted in a container: asked before anything is made, and again by hostd."""

from __future__ import annotations

from casemate.spec.errors import InvalidArgument

_PROTECTED = ("/proc", "/sys", "/dev")


class TargetRefused(InvalidArgument):
    code = "isolation.mount_target_refused"
    title = "Nothing can be mounted at this place of a container"
    remedy = "Mount below a folder of your own, not over /, /proc, /sys or /dev."


def check_target(target: str) -> str:
    """*target*, when something of the user's may be mounted there; raises :class:`TargetRefused`.

    A mount over /proc or /dev would take the masks away, or hide what the runtime relies on (CVE-2019-19921).
    """
    parts = target.split("/")
    if len(target) > 4095 or not target.startswith("/") or ".." in parts or "\0" in target:
        raise TargetRefused(f"mount target {target[:100]!r} is not absolute, or holds '..'", target=target[:200])
    clean = "/" + "/".join(part for part in parts if part not in ("", "."))
    if clean == "/" or clean in _PROTECTED or clean.startswith(("/proc/", "/sys/")):
        raise TargetRefused(f"mount target {clean[:200]!r}", target=clean[:200])
    return clean
