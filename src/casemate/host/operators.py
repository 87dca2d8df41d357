"""Which projects the settings open to somebody: pairs ``PROJECT=WHO`` of operators, and administrators.

WHO is a user's name or number, ``@`` and a group, or ``tls:`` and the name in a client certificate. A name that nobody
has opens nothing, and where any of the two settings names somebody, who is named nowhere is let into no project: a
wrong name, or a directory of users that does not answer, closes.
"""

from __future__ import annotations

import grp
import pwd
from collections.abc import Callable, Sequence

import msgspec

from casemate.host.granted import is_named
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
    if uid == 0:
        return None
    gids = {gid, *groups}
    return _projects(settings, lambda who: not who.startswith(TLS) and is_named(who, uid, gids))


def projects_of_client(name: str, settings: Settings) -> frozenset[str] | None:
    """The projects that are open to who has a client certificate with *name*; None: all."""
    return _projects(settings, lambda who: who == TLS + name)


def _projects(settings: Settings, is_meant: Callable[[str], bool]) -> frozenset[str] | None:
    operators, administrators = settings.texts(OPERATORS), settings.texts(ADMINISTRATORS)
    if not operators and not administrators:
        return None
    if any(is_meant(who) for who in administrators):
        return None
    pairs = (entry.partition("=") for entry in operators)
    return frozenset(project for project, _, who in pairs if is_meant(who))


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
