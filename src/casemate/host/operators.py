"""Which projects the settings open to somebody: pairs ``PROJECT=WHO`` of operators, and administrators.

WHO is a user's name or number, ``@`` and a group, or ``tls:`` and the name in a client certificate. A name that nobody
has opens nothing, and where any of the two settings names somebody, who is named nowhere is let into no project: a
wrong name, or a directory of users that does not answer, closes.
"""

from __future__ import annotations

import contextlib
import grp
import pwd
from collections.abc import Iterable, Sequence

import msgspec

from casemate.spec.settings import SettingInvalid, Settings
from casemate.spec.workload import Project

OPERATORS = "projects.operators"
ADMINISTRATORS = "projects.administrators"
TLS = "tls:"


def check(settings: Settings) -> None:
    """Raises :class:`SettingInvalid` for an entry that cannot be meant."""
    for entry in settings.texts(OPERATORS):
        project, equals, who = entry.partition("=")
        if not equals or not _is_project(project) or not _can_be_somebody(who):
            raise SettingInvalid(f"{OPERATORS}: {entry[:140]!r} is not PROJECT=WHO, WHO a user, @group or tls:NAME")
    for entry in settings.texts(ADMINISTRATORS):
        if not _can_be_somebody(entry):
            raise SettingInvalid(f"{ADMINISTRATORS}: {entry[:140]!r} is no user, @group or tls:NAME")


def _is_project(text: str) -> bool:
    try:
        msgspec.convert(text, Project)
    except msgspec.ValidationError:
        return False
    return True


def _can_be_somebody(who: str) -> bool:
    return bool(who.removeprefix(TLS).removeprefix("@").strip())


def projects_of_user(uid: int, gid: int, groups: Sequence[int], settings: Settings) -> frozenset[str] | None:
    """The projects that are open to a user of this host; None: all."""
    if uid == 0 or not _are_kept(settings):
        return None
    return _projects(settings, _called(uid, {gid, *groups}))


def projects_of_client(name: str, settings: Settings) -> frozenset[str] | None:
    """The projects that are open to who has a client certificate with *name*; None: all."""
    return _projects(settings, {TLS + name}) if _are_kept(settings) else None


def _are_kept(settings: Settings) -> bool:
    return bool(settings.texts(OPERATORS) or settings.texts(ADMINISTRATORS))


def _projects(settings: Settings, called: set[str]) -> frozenset[str] | None:
    if not called.isdisjoint(settings.texts(ADMINISTRATORS)):
        return None
    pairs = (entry.partition("=") for entry in settings.texts(OPERATORS))
    return frozenset(project for project, _, who in pairs if who in called)


def _called(uid: int, gids: Iterable[int]) -> set[str]:
    """All that entries may call who has these ids: looked up once, and not once for each entry."""
    found = {str(uid)}
    with contextlib.suppress(KeyError):
        found.add(pwd.getpwuid(uid).pw_name)
    for gid in gids:
        found.add(f"@{gid}")
        with contextlib.suppress(KeyError):
            found.add(f"@{grp.getgrgid(gid).gr_name}")
    return found


def unknown(settings: Settings) -> list[str]:
    """Entries whose user or group this host does not have."""
    entries = [(entry, entry.partition("=")[2]) for entry in settings.texts(OPERATORS)]
    entries += [(entry, entry) for entry in settings.texts(ADMINISTRATORS)]
    return [entry for entry, who in entries if not who.startswith(TLS) and not _is_there(who)]


def _is_there(who: str) -> bool:
    name = who.removeprefix("@")
    try:
        if not name.isdigit():
            (grp.getgrnam if who.startswith("@") else pwd.getpwnam)(name)
    except KeyError:
        return False
    return True
