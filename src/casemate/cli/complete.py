"""Completion: what may stand next, from the table and, for names of objects, from the daemon.

The shells' scripts call ``casemate __complete WORD...`` (the last word is the one being typed, maybe empty) and offer
the lines that it prints: ``word<TAB>description``. A line ``:files`` lets the shell complete file names.
"""

from __future__ import annotations

import posix

from casemate.cli.flags import CHOICE, GLOBAL_FLAGS, SWITCH, VALUES, Command, Flag
from casemate.cli.index import GROUPS, find, load, paths

Offer = tuple[str, str]

FILES: Offer = (":files", "")
#: Where the names of each kind come from: path, list, field, parameters.
_SOURCES = {
    "container": ("/v1/containers", "containers", "name", [("all", "true")]),
    "running": ("/v1/containers", "containers", "name", []),
    "image": ("/v1/images", "images", "names", []),
    "pod": ("/v1/pods", "pods", "name", []),
    "volume": ("/v1/volumes", "volumes", "name", []),
}


def answer(words: list[str]) -> int:
    """Print the offers for *words*; a daemon that is away offers nothing, and nothing is said."""
    lines = "".join(f"{word}\t{text}\n" if text else f"{word}\n" for word, text in offers(words or [""]))
    posix.write(1, lines.encode("utf-8", "replace"))
    return 0


def offers(words: list[str]) -> list[Offer]:
    *before, typed = words
    before = _without_leading(before)
    if not before:
        found = _top() if not typed.startswith("-") else _flag_names(GLOBAL_FLAGS)
    elif " ".join(before) in GROUPS:
        found = _members(" ".join(before))
    else:
        path, rest = find(before)
        if path is None:
            return []
        found = _for_command(load(path), rest, typed)
    return [offer for offer in found if offer == FILES or offer[0].startswith(typed)]


def _without_leading(before: list[str]) -> list[str]:
    """The words behind the global flags."""
    while before and before[0].startswith("-"):
        takes = before[0] in ("--host", "-H", "--project")
        before = before[2 if takes else 1 :]
    return before


def _members(group: str) -> list[Offer]:
    """What may follow *group*: its commands, and groups inside it by their own line."""
    found: dict[str, str] = {}
    for path, row in paths().items():
        if path.startswith(f"{group} "):
            word = path[len(group) + 1 :].partition(" ")[0]
            found[word] = GROUPS.get(f"{group} {word}", row[3])
    return list(found.items())


def _top() -> list[Offer]:
    rows = [(path, row[3]) for path, row in paths().items() if " " not in path]
    return sorted(rows + [(group, text) for group, text in GROUPS.items() if " " not in group])


def _flag_names(flags: tuple[Flag, ...]) -> list[Offer]:
    return [(f"--{flag.name}", flag.help) for flag in flags]


def _for_command(command: Command, rest: list[str], typed: str) -> list[Offer]:
    flags = (*command.flags, *GLOBAL_FLAGS)
    pending, count, ended = _state(flags, rest, command.interspersed)
    if pending is not None:
        return _values(pending.completes)
    if typed.startswith("-") and not ended:
        name, equals, _ = typed.partition("=")
        flag = next((flag for flag in flags if f"--{flag.name}" == name), None)
        if equals and flag is not None:
            return [(f"{name}={word}", text) for word, text in _values(flag.completes) if (word, text) != FILES]
        seen = {word.partition("=")[0] for word in rest}
        return _flag_names(tuple(flag for flag in flags if flag.kind == VALUES or f"--{flag.name}" not in seen))
    if not command.words or (command.most is not None and count >= command.most):
        return []
    kind = command.words[min(count, len(command.words) - 1)]
    return _values(kind)


def _state(flags: tuple[Flag, ...], rest: list[str], interspersed: bool) -> tuple[Flag | None, int, bool]:
    """The flag that waits for its value, how many words there are, and whether flags have ended."""
    count, pending = 0, None
    for word in rest:
        if pending is not None:
            pending = None
        elif count and not interspersed:
            count += 1
        elif word == "--":
            return None, count, True
        elif word.startswith("-") and len(word) > 1:
            pending = _waits(flags, word)
        else:
            count += 1
    return pending, count, bool(count) and not interspersed


def _waits(flags: tuple[Flag, ...], word: str) -> Flag | None:
    """The flag at the end of *word* whose value is the next word."""
    if word.startswith("--"):
        return next((flag for flag in flags if f"--{flag.name}" == word and flag.kind not in (SWITCH, CHOICE)), None)
    for at, letter in enumerate(word[1:], 1):
        flag = next((flag for flag in flags if flag.short == letter), None)
        if flag is None or flag.kind not in (SWITCH, CHOICE):
            return flag if at == len(word) - 1 else None
    return None


def _values(kind: str) -> list[Offer]:
    if kind in ("file", "command"):
        return [FILES] if kind == "file" else []
    if kind in _SOURCES:
        return _names(kind)
    return [(word, "") for word in kind.split(",") if word]


def _names(kind: str) -> list[Offer]:
    """Names from the daemon; at most a few thousand, and none where it does not answer."""
    from casemate.cli.show.human import familiar
    from casemate.cli.variables import default_host, environment
    from casemate.cli.wire.client import Client, rows_of

    path, key, field, pairs = _SOURCES[kind]
    client = Client(default_host(), environment("CASEMATE_PROJECT") or "default")
    try:
        found: list[Offer] = []
        for row in rows_of(client.get(path, list(pairs)), key)[:5000]:
            held = row.get(field)
            names = held if isinstance(held, list) else [held]
            found += [(familiar(str(name)), str(row.get("status") or "")) for name in names if name]
        return [offer for offer in found if offer[0].isprintable()]
    except Exception:  # completion never disturbs what is being typed
        return []
    finally:
        client.close()
