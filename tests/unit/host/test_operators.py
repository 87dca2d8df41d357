"""Whom the settings open a project to; names that nobody has close."""

from __future__ import annotations

import grp
import pwd

import pytest

from casemate.host import operators
from casemate.spec.settings import SettingInvalid, Settings

DAEMON = pwd.getpwnam("daemon")
GROUP = grp.getgrnam("daemon")


def _of(uid: int, *gids: int, operators_: tuple[str, ...] = (), chiefs: tuple[str, ...] = ()) -> frozenset[str] | None:
    settings = Settings({"projects.operators": operators_, "projects.administrators": chiefs})
    operators.check(settings)
    return operators.projects_of_user(uid, gids[0] if gids else uid, gids[1:], settings)


def test_without_settings_all_is_open_to_everybody() -> None:
    assert _of(1234) is None
    assert operators.projects_of_client("anybody", Settings({})) is None


def test_operators_by_name_number_and_group() -> None:
    pairs = ("a=daemon", f"b={DAEMON.pw_uid}", "c=@daemon", f"d=@{GROUP.gr_gid}", "e=1234", "f=@4321")
    assert _of(DAEMON.pw_uid, 99, operators_=pairs) == {"a", "b"}
    assert _of(1234, 99, GROUP.gr_gid, operators_=pairs) == {"c", "d", "e"}
    assert _of(5678, GROUP.gr_gid, operators_=pairs) == {"c", "d"}
    assert _of(5678, 4321, operators_=pairs) == {"f"}


def test_root_and_administrators_have_all() -> None:
    assert _of(0, operators_=("a=root",)) is None
    assert _of(1234, operators_=("a=1234",), chiefs=("1234",)) is None
    assert _of(1234, 99, operators_=("a=1234",), chiefs=("@99",)) is None


def test_who_is_named_nowhere_has_none() -> None:
    assert _of(1234, operators_=("a=5678",)) == frozenset()
    assert _of(1234, chiefs=("5678",)) == frozenset()
    # A name that no user has: a mistyped one, or a directory that does not answer.
    assert _of(1234, operators_=("a=no-such-user", "b=@no-such-group"), chiefs=("@no-such-group",)) == frozenset()


def test_clients_by_their_certificates_name() -> None:
    settings = Settings({"projects.operators": ("a=tls:ci", "b=ci", "c=@ci", "a=tls:ops")})
    assert operators.projects_of_client("ci", settings) == {"a"}
    assert operators.projects_of_client("cio", settings) == frozenset()
    assert operators.projects_of_client("ops", Settings({"projects.administrators": ("tls:ops",)})) is None
    # A user whose name looks like a certificate's is none.
    assert _of(1234, operators_=("a=tls:1234",)) == frozenset()


@pytest.mark.parametrize(
    "entry", ["alice", "=alice", "a=", "a=@", "a=tls:", "A=alice", "a b=alice", "../x=alice", "a= "]
)
def test_entries_that_cannot_be_meant_are_refused(entry: str) -> None:
    with pytest.raises(SettingInvalid) as error:
        _of(1, operators_=(entry,))
    assert error.value.code == "settings.invalid"


@pytest.mark.parametrize("entry", ["", "@", "tls:", " "])
def test_administrators_that_cannot_be_meant_are_refused(entry: str) -> None:
    with pytest.raises(SettingInvalid):
        _of(1, chiefs=(entry,))


def test_names_that_nobody_has_are_told() -> None:
    given = ("a=daemon", "a=no-such-user", "b=@no-such-group", "b=77777", "b=tls:ci")
    settings = Settings({"projects.operators": given, "projects.administrators": ("@daemon", "no-such-chief")})
    assert operators.unknown(settings) == ["a=no-such-user", "b=@no-such-group", "no-such-chief"]
