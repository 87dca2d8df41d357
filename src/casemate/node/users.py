"""Users and groups of an image: names to numbers through its own etc/passwd and etc/group. Pure.

Both files come from outside: lines that are not whole are skipped, as libc does, and bounds hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from casemate.node.errors import UserNotFound
from casemate.spec.workload import User

MAX_FILE_BYTES = 1 << 20
MAX_LINES = 65_536
#: Highest id in a pod's range of 65,536.
MAX_ID = 65_535
#: As many groups as :class:`casemate.spec.workload.User` takes.
MAX_GROUPS = 64


@dataclass(frozen=True, slots=True)
class Account:
    """Who a process runs as: numbers, and the home folder (``/`` when the image does not say)."""

    user: User
    home: str
    name: str = ""


def resolve_user(text: str, passwd: bytes | None, group: bytes | None, extra_groups: tuple[str, ...] = ()) -> Account:
    """*text* (``""``, ``name``, ``uid``, ``name:group``, ``uid:gid``) as an :class:`Account`.

    As Docker: a number need not exist in the files; its gid is then 0 and its home ``/``. Supplementary groups are
    those of the user's name, unless *text* names a group. Raises :class:`UserNotFound`.
    """
    who, colon, group_text = text.partition(":")
    uid, gid, home, name = _user(who, passwd)
    # The group is among the supplementary ones too: a process that drops it must not gain what a mode denies to it
    # (a file 0604 of that group), which is what CVE-2022-36109 was about.
    groups: list[int] = []
    if colon and group_text:
        gid = _group(group_text, group)
    elif name:
        groups = [number for number, members in _groups(group) if name in members and number != gid]
    groups.insert(0, gid)
    for extra in extra_groups:
        number = _group(extra, group)
        if number not in groups:
            groups.append(number)
    return Account(User(uid=uid, gid=gid, groups=tuple(groups[:MAX_GROUPS])), home, name)


def _user(who: str, passwd: bytes | None) -> tuple[int, int, str, str]:
    """(uid, gid, home, name) of *who*."""
    number = _number(who) if who else 0
    for name, uid, gid, home in _accounts(passwd):
        if (number is not None and uid == number) or (number is None and name == who):
            return uid, gid, home, name
    if number is None:
        raise UserNotFound(f"user {who[:80]!r} is not in the image's /etc/passwd", user=who[:80])
    # Without a passwd file root still lives in /root: what shells expect, and what the field does.
    return number, 0, "/root" if number == 0 else "/", ""


def _group(text: str, group: bytes | None) -> int:
    number = _number(text)
    if number is not None:
        return number
    for line in _lines(group):
        fields = line.split(":")
        if len(fields) >= 3 and fields[0] == text and (found := _number(fields[2])) is not None:
            return found
    raise UserNotFound(f"group {text[:80]!r} is not in the image's /etc/group", group=text[:80])


def _number(text: str) -> int | None:
    """*text* as an id; None when it is a name. A number that no pod has is refused."""
    if not (text.isascii() and text.isdigit()):
        return None
    if len(text) > 10 or int(text) > MAX_ID:
        raise UserNotFound(f"id {text[:20]} is above {MAX_ID}, the last id of a pod's range")
    return int(text)


def _accounts(passwd: bytes | None) -> Iterator[tuple[str, int, int, str]]:
    for line in _lines(passwd):
        fields = line.split(":")
        if len(fields) < 6 or not fields[0]:
            continue
        if not all(part.isascii() and part.isdigit() and len(part) <= 10 for part in fields[2:4]):
            continue
        uid, gid = int(fields[2]), int(fields[3])
        if uid <= MAX_ID and gid <= MAX_ID:
            yield fields[0], uid, gid, fields[5] if fields[5].startswith("/") else "/"


def _groups(group: bytes | None) -> Iterator[tuple[int, frozenset[str]]]:
    for line in _lines(group):
        fields = line.split(":")
        if len(fields) >= 4 and fields[2].isascii() and fields[2].isdigit() and len(fields[2]) <= 10:
            number = int(fields[2])
            if number <= MAX_ID:
                yield number, frozenset(fields[3].split(","))


def _lines(content: bytes | None) -> Iterator[str]:
    if not content:
        return
    text = content[:MAX_FILE_BYTES].decode("utf-8", "replace")
    for number, line in enumerate(text.split("\n")):
        if number >= MAX_LINES:
            return
        if line and not line.startswith(("#", "+", "-")):
            yield line.rstrip("\r")
