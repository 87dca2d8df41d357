"""What a command takes, as values: the one table from which parsing, ``--help``, completion and cli.md come.

Plain slotted classes and not dataclasses: ``dataclasses`` costs more at import than the whole command line.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.cli.context import Context

#: ``switch``: present or not; ``value``: one text, the last wins; ``values``: every text, in order; ``choice``:
#: present, and one of a few words may follow.
SWITCH, VALUE, VALUES, CHOICE = "switch", "value", "values", "choice"


class Flag:
    """One flag: *form* is the value's form as help shows it, *completes* what the shell offers for it."""

    __slots__ = ("also", "completes", "default", "form", "group", "help", "kind", "name", "short")

    def __init__(
        self,
        kind: str,
        name: str,
        form: str,
        text: str,
        short: str = "",
        group: str = "Options",
        completes: str = "",
        default: bool = False,
        also: str = "",
    ) -> None:
        self.kind = kind
        self.name = name
        self.form = form
        self.help = text
        self.short = short
        self.group = group
        #: ``container``, ``image``, ``file`` ..., or words separated by commas.
        self.completes = completes
        #: A switch that is on unless ``--name=false``.
        self.default = default
        #: A second long name (``--net`` for ``--network``); works, and is not shown.
        self.also = also


def switch(name: str, text: str, short: str = "", group: str = "Options", default: bool = False) -> Flag:
    return Flag(SWITCH, name, "", text, short, group, "", default)


def value(
    name: str, form: str, text: str, short: str = "", group: str = "Options", completes: str = "", also: str = ""
) -> Flag:
    return Flag(VALUE, name, form, text, short, group, completes, False, also)


def choice(name: str, words: str, text: str, group: str = "Options") -> Flag:
    """A switch that one of *words* (separated by commas) may follow: see :meth:`Arguments.chosen`."""
    return Flag(CHOICE, name, f"[{words.replace(',', '|')}]", text, "", group, words)


def values(
    name: str, form: str, text: str, short: str = "", group: str = "Options", completes: str = "", also: str = ""
) -> Flag:
    return Flag(VALUES, name, form, text, short, group, completes, False, also)


#: Flags of every command. ``-h`` means help wherever the command has no ``-h`` of its own (``run`` has).
GLOBAL_FLAGS = (
    value("host", "ADDRESS", "The daemon: unix:///path or tcp://host:port (CASEMATE_HOST)", "H", "Global options"),
    value("project", "NAME", "The project to work in (CASEMATE_PROJECT, default: default)", "", "Global options"),
    switch("json", "Answer with JSON: the API's own values", "", "Global options"),
    switch("help", "Print this help", "", "Global options"),
)


class Command:
    """One command: its flags, its words, and the function that does it.

    *words* names what the words are, for help and completion (``container`` repeats when *most* is None);
    *interspersed* is False where the first word ends the flags (``run IMAGE COMMAND -x``).
    """

    __slots__ = ("do", "examples", "flags", "interspersed", "least", "more", "most", "usage", "words")

    def __init__(
        self,
        usage: str,
        do: Callable[[Arguments, Context], int],
        flags: tuple[Flag, ...] = (),
        least: int = 0,
        most: int | None = 0,
        words: tuple[str, ...] = (),
        more: str = "",
        examples: tuple[str, ...] = (),
        interspersed: bool = True,
    ) -> None:
        self.usage = usage
        self.do = do
        self.flags = flags
        self.least = least
        self.most = most
        self.words = words
        self.more = more
        self.examples = examples
        self.interspersed = interspersed


class Arguments:
    """What was typed: the flags by their long name, and the words."""

    __slots__ = ("_given", "words")

    def __init__(self, given: dict[str, bool | str | list[str]], words: list[str]) -> None:
        self._given = given
        self.words = words

    def given(self, name: str) -> bool:
        return name in self._given

    def on(self, name: str, default: bool = False) -> bool:
        """Whether the switch *name* is on; *default* where it was not typed."""
        found = self._given.get(name, default)
        return found if isinstance(found, bool) else default

    def chosen(self, name: str) -> str | None:
        """The word that follows the choice *name*, empty where none does; None where it was not typed."""
        found = self._given.get(name, False)
        return found if isinstance(found, str) else "" if found else None

    def text(self, name: str) -> str | None:
        found = self._given.get(name)
        return found if isinstance(found, str) else None

    def texts(self, name: str) -> list[str]:
        found = self._given.get(name)
        return found if isinstance(found, list) else []
