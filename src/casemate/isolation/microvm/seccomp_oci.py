"""An engine's seccomp profile (OCI config-linux.md, "Seccomp") in the form that our compiler takes. Pure."""

from __future__ import annotations

from typing import Any

from casemate.isolation.microvm.errors import BundleUnsupported

_EPERM = 1
_ACTIONS = {"SCMP_ACT_ALLOW": "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO": "SCMP_ACT_ERRNO"}
#: Guests are x86-64.
_ARCHITECTURES = ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86")


def normalised(profile: dict[str, Any]) -> dict[str, Any]:
    """*profile* with every default filled in. :class:`BundleUnsupported` for actions other than allow and errno."""
    default = profile.get("defaultAction")
    if default != "SCMP_ACT_ERRNO":
        raise BundleUnsupported(f"seccomp's default action {str(default)[:40]!r}; supported is SCMP_ACT_ERRNO")
    errno = profile.get("defaultErrnoRet", _EPERM)
    rules = []
    for rule in profile.get("syscalls") or ():
        action = _ACTIONS.get(rule.get("action"))
        if action is None:
            raise BundleUnsupported(f"seccomp action {str(rule.get('action'))[:40]!r}; supported: allow and errno")
        rules.append(
            {
                "names": list(rule.get("names") or ()),
                "action": action,
                "errnoRet": rule.get("errnoRet", _EPERM),
                "args": [{"valueTwo": 0, **one} for one in rule.get("args") or ()],
            }
        )
    return {
        "defaultAction": default,
        "defaultErrnoRet": errno,
        "architectures": list(_ARCHITECTURES),
        "syscalls": rules,
    }
