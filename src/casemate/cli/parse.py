"""From words to :class:`Arguments`: GNU long flags, clusters of short ones, ``--flag=value``, ``--``.

The rules are those of Docker's command line: ``-it``, ``-p8080:80``, ``-e=A=b``, ``--rm=false``; where a command is
not interspersed the first word ends the flags. It never raises anything but a usage error (tested with Hypothesis).
"""

from __future__ import annotations

from casemate.cli.fail import usage
from casemate.cli.flags import CHOICE, GLOBAL_FLAGS, SWITCH, VALUES, Arguments, Command, Flag

#: The words of Go's strconv.ParseBool, which fingers know from ``--sig-proxy=false``.
_BOOLEANS = {
    "1": True, "t": True, "true": True, "True": True, "TRUE": True,
    "0": False, "f": False, "false": False, "False": False, "FALSE": False,
}  # fmt: skip


class _Table:
    """The flags of a command by their long and short names."""

    __slots__ = ("long", "path", "short")

    def __init__(self, path: str, flags: tuple[Flag, ...]) -> None:
        self.path = path
        self.long: dict[str, Flag] = {}
        self.short: dict[str, Flag] = {}
        for flag in (*GLOBAL_FLAGS, *flags):
            self.long[flag.name] = flag
            if flag.also:
                self.long[flag.also] = flag
            if flag.short:
                self.short[flag.short] = flag
        if "h" not in self.short:
            self.short["h"] = self.long["help"]


def parse(path: str, command: Command, argv: list[str]) -> Arguments:
    """The flags and words of *argv* for *command*, which was called by *path* (``image ls``).

    The number of words is checked, except when help was asked for. Raises a usage error, nothing else.
    """
    table = _Table(path, command.flags)
    given: dict[str, bool | str | list[str]] = {}
    words = _read(table, argv, given, command.interspersed)
    arguments = Arguments(given, words)
    if not arguments.on("help"):
        _count(path, command, words)
    return arguments


def parse_leading(argv: list[str]) -> tuple[Arguments, list[str]]:
    """The global flags that stand before the command, and what follows them."""
    table = _Table("", (Flag(SWITCH, "version", "", "Print the version", "v", "Global options"),))
    given: dict[str, bool | str | list[str]] = {}
    words = _read(table, argv, given, interspersed=False)
    return Arguments(given, []), words


def _read(table: _Table, argv: list[str], given: dict[str, bool | str | list[str]], interspersed: bool) -> list[str]:
    words: list[str] = []
    index = 0
    while index < len(argv):
        word = argv[index]
        index += 1
        if word == "--":
            return words + argv[index:]
        if word.startswith("--"):
            index = _long(table, word[2:], argv, index, given)
        elif len(word) > 1 and word[0] == "-":
            index = _cluster(table, word[1:], argv, index, given)
        elif interspersed:
            words.append(word)
        else:
            return argv[index - 1 :]
    return words


def _long(table: _Table, text: str, argv: list[str], index: int, given: dict[str, bool | str | list[str]]) -> int:
    name, equals, attached = text.partition("=")
    flag = table.long.get(name)
    if flag is None:
        raise _unknown(table, f"--{name}", name)
    if flag.kind == SWITCH:
        given[flag.name] = _boolean(table, f"--{name}", attached) if equals else True
        return index
    if flag.kind == CHOICE:
        return _choice(table, flag, attached if equals else None, argv, index, given)
    if not equals:
        if index >= len(argv):
            raise usage(f"flag needs an argument: --{name} {flag.form}", path=table.path)
        attached = argv[index]
        index += 1
    _store(flag, attached, given)
    return index


def _choice(
    table: _Table,
    flag: Flag,
    attached: str | None,
    argv: list[str],
    index: int,
    given: dict[str, bool | str | list[str]],
) -> int:
    """``--hold``, ``--hold connections``, ``--hold=connections``: a word that is none of the flag's is the next."""
    words = flag.completes.split(",")
    if attached is None:
        follows = index < len(argv) and argv[index] in words
        given[flag.name] = argv[index] if follows else True
        return index + follows
    if attached in words:
        given[flag.name] = attached
    elif attached in _BOOLEANS:
        given[flag.name] = _BOOLEANS[attached]
    else:
        raise usage(f"--{flag.name}: {attached!r} is none of {', '.join(words)}", path=table.path)
    return index


def _cluster(table: _Table, text: str, argv: list[str], index: int, given: dict[str, bool | str | list[str]]) -> int:
    """Short flags: switches may stand together, the first that takes a value takes the rest."""
    at = 0
    while at < len(text):
        letter = text[at]
        at += 1
        flag = table.short.get(letter)
        if flag is None:
            raise _unknown(table, f"-{letter}" + (f" in -{text}" if len(text) > 1 else ""), "")
        if flag.kind == SWITCH:
            if text[at : at + 1] == "=":
                given[flag.name] = _boolean(table, f"-{letter}", text[at + 1 :])
                return index
            given[flag.name] = True
            continue
        rest = text[at:]
        if rest.startswith("="):
            rest = rest[1:]
        elif not rest:
            if index >= len(argv):
                raise usage(f"flag needs an argument: -{letter} {flag.form}", path=table.path)
            rest = argv[index]
            index += 1
        _store(flag, rest, given)
        return index
    return index


def _store(flag: Flag, text: str, given: dict[str, bool | str | list[str]]) -> None:
    if flag.kind != VALUES:
        given[flag.name] = text
        return
    held = given.setdefault(flag.name, [])
    assert isinstance(held, list)
    held.append(text)


def _boolean(table: _Table, shown: str, text: str) -> bool:
    if text not in _BOOLEANS:
        raise usage(f"{shown}: {text!r} is neither true nor false", path=table.path)
    return _BOOLEANS[text]


#: What another program has, and we refuse as a whole: said in words, not as a mistake of the typist's.
_NO_IPV6 = ("pods have no IPv6: each packet of it is dropped, and counted", "Leave the flag out; pods speak IPv4.")
_REFUSED = {"ip6": _NO_IPV6, "ipv6": _NO_IPV6}


def _unknown(table: _Table, shown: str, name: str) -> Exception:
    from casemate.cli.suggest import nearest

    if name in _REFUSED:
        why, remedy = _REFUSED[name]
        return usage(f"{shown}: {why}", remedy, path=table.path)
    near = nearest(name, [known for known, flag in table.long.items() if known == flag.name]) if name else ""
    hint = f"; did you mean --{near}?" if near else ""
    kind = "flag" if name else "shorthand flag"
    return usage(f"unknown {kind}: {shown}{hint}", path=table.path)


def _count(path: str, command: Command, words: list[str]) -> None:
    number = len(words)
    if number >= command.least and (command.most is None or number <= command.most):
        return
    if command.most == command.least:
        wanted = f"exactly {command.least} argument{'' if command.least == 1 else 's'}"
    elif number < command.least:
        wanted = f"at least {command.least} argument{'' if command.least == 1 else 's'}"
    else:
        wanted = f"at most {command.most} argument{'' if command.most == 1 else 's'}"
    if command.most == 0:
        wanted = "no arguments"
    raise usage(f"`casemate {path}` wants {wanted}, {number} given: casemate {path} {command.usage}", path=path)
