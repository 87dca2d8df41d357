"""``--help``: the overview, groups, and a page for each command, all from the table. Pure."""

from __future__ import annotations

from casemate.cli.flags import GLOBAL_FLAGS, SWITCH, Command, Flag
from casemate.cli.index import ALIASES, GROUPS, ROWS

_WIDTH = 100
#: Where the text of a flag begins; a longer flag has its text on the next line.
_COLUMN = 42


def overview() -> str:
    """What ``casemate --help`` prints."""
    text = "Casemate: every container in its own armoured chamber.\n\nUsage: casemate [OPTIONS] COMMAND\n"
    heading = ""
    for path, _, _, summary, group in ROWS:
        if group != heading:
            heading = group
            text += f"\n{heading}:\n"
        text += f"  {path:<20} {summary}\n"
    text += f"\nGlobal options:\n{_flags(GLOBAL_FLAGS)}"
    text += "  -v, --version                           Print the version\n"
    shown = ", ".join(sorted(alias for alias in ALIASES if " " not in alias))
    text += f"\nAlso: {shown}; `container` before a command.\n"
    return text + "\n`casemate COMMAND --help` tells more of a command.\n"


def page(path: str, command: Command) -> str:
    """What ``casemate PATH --help`` prints."""
    text = f"Usage: casemate {path} {command.usage}\n\n{summary_of(path)}\n"
    if command.more:
        text += f"\n{command.more}\n"
    same = [alias for alias, target in ALIASES.items() if target == ALIASES.get(path, path)]
    names = sorted({ALIASES.get(path, path), *same} - {path})
    if names:
        text += f"\nAlso: {', '.join(names)}\n"
    if command.examples:
        text += "\nExamples:\n" + "".join(f"  {line}\n" for line in command.examples)
    taken = {flag.short for flag in command.flags}
    for group, flags in groups_of((*command.flags, *GLOBAL_FLAGS)):
        text += f"\n{group}:\n{_flags(flags, taken)}"
    return text


def groups_of(flags: tuple[Flag, ...]) -> list[tuple[str, tuple[Flag, ...]]]:
    """The flags by their heading, headings in the order in which they appear first."""
    found: dict[str, list[Flag]] = {}
    for flag in flags:
        found.setdefault(flag.group, []).append(flag)
    return [(group, tuple(held)) for group, held in found.items()]


def summary_of(path: str) -> str:
    wanted = ALIASES.get(path, path)
    return next(row[3] for row in ROWS if row[0] == wanted)


def _flags(flags: tuple[Flag, ...], taken: set[str] | None = None) -> str:
    text = ""
    for flag in flags:
        short = (
            f"-{flag.short},"
            if flag.short and not (flag.group == "Global options" and flag.short in (taken or ()))
            else ""
        )
        head = f"  {short:<3} --{flag.name}" + (f" {flag.form}" if flag.kind != SWITCH else "")
        lines = _wrapped(flag.help, _WIDTH - _COLUMN)
        if len(head) >= _COLUMN:
            text += f"{head}\n"
        else:
            text += f"{head:<{_COLUMN}}{lines.pop(0)}\n"
        text += "".join(f"{'':<{_COLUMN}}{line}\n" for line in lines)
    return text


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def group_page(group: str) -> str:
    text = f"Usage: casemate {group} COMMAND\n\n{GROUPS[group]}\n\nCommands:\n"
    rows = {row[0]: row[3] for row in ROWS}
    members = {path: rows[path] for path in rows if path.startswith(f"{group} ")}
    width = max([16, *(len(path) - len(group) for path in members)])
    if group == "container":
        members = {alias: rows[path] for alias, path in ALIASES.items() if alias.startswith("container ")}
    text += "".join(f"  {path[len(group) + 1 :]:<{width}} {summary}\n" for path, summary in sorted(members.items()))
    return text + f"\n`casemate {group} COMMAND --help` tells more of a command.\n"


def group_or_unknown(argv: list[str]) -> str:
    """The page of a group that stands alone or before ``--help``; raises a usage error for what is no command."""
    from casemate.cli.fail import usage
    from casemate.cli.suggest import nearest

    word, *rest = argv
    if rest and f"{word} {rest[0]}" in GROUPS:
        word, rest = f"{word} {rest[0]}", rest[1:]
    if word in GROUPS and (not rest or rest[0] in ("--help", "-h", "help")):
        return group_page(word)
    known = [*(row[0] for row in ROWS), *ALIASES, *GROUPS]
    if word in GROUPS:
        inner = [path[len(word) + 1 :] for path in known if path.startswith(f"{word} ")]
        near = nearest(rest[0], inner)
        hint = f"; did you mean `casemate {word} {near}`?" if near else ""
        raise usage(f"unknown command: casemate {word} {rest[0][:60]}{hint}", path=word)
    near = nearest(word, [path for path in known if " " not in path])
    hint = f"; did you mean `casemate {near}`?" if near else ""
    raise usage(f"unknown command: casemate {word[:60]}{hint}", "`casemate --help` lists the commands.")
