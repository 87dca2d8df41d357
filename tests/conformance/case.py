"""What a case is, and the register of all of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from tests.conformance.chamber import Chamber, Flags

Check = Callable[[Chamber], None]


@dataclass(frozen=True, slots=True)
class Case:
    """*id* is ``group.name``; *check* raises AssertionError where the level does not behave."""

    id: str
    title: str
    check: Check

    @property
    def group(self) -> str:
        return self.id.partition(".")[0]


CASES: dict[str, Case] = {}


def add(id_: str, title: str, check: Check) -> None:
    assert id_ not in CASES, id_
    CASES[id_] = Case(id_, title, check)


def case(id_: str, title: str) -> Callable[[Check], Check]:
    """Register a function as a case."""

    def register(check: Check) -> Check:
        add(id_, title, check)
        return check

    return register


def run_prints(id_: str, title: str, script: str, wanted: str, flags: Flags = (), *, code: int = 0) -> None:
    """A container of its own with *flags* runs *script*; its output matches *wanted* (a regular expression) whole."""

    def check(chamber: Chamber) -> None:
        done = chamber.run(*flags, script=script)
        matches(done.stdout.decode(errors="replace"), wanted, done)
        assert done.returncode == code, done

    add(id_, title, check)


def box_prints(id_: str, title: str, script: str, wanted: str, flags: Flags = (), *, code: int = 0) -> None:
    """The same by exec in the container that runs all the time."""

    def check(chamber: Chamber) -> None:
        done = chamber.exec(*flags, script=script)
        matches(done.stdout.decode(errors="replace"), wanted, done)
        assert done.returncode == code, done

    add(id_, title, check)


def run_ends(id_: str, title: str, argv: Flags, code: int, flags: Flags = ()) -> None:
    """A container of its own runs *argv* and ends with *code*."""

    def check(chamber: Chamber) -> None:
        done = chamber.cm("run", "--rm", *chamber.level_flags, *flags, chamber.image, *argv)
        assert done.returncode == code, done

    add(id_, title, check)


def matches(text: str, wanted: str, about: object) -> None:
    assert re.fullmatch(wanted, text.rstrip("\n"), re.DOTALL), (wanted, text, about)
