"""What a remedy, a help text or a message tells people to type is a command of ours, with flags that it has."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from casemate.cli.flags import GLOBAL_FLAGS
from casemate.cli.index import GROUPS, find, load

COMMAND = re.compile(r"`(?:sudo )?casemate ([^`|]+)`")


def written(source: Path) -> list[tuple[str, str]]:
    """(where, command) of each command in backticks in a text of the package; what is put in at run time is a word."""
    found = []
    for path in sorted(source.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            text = ""
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            elif isinstance(node, ast.JoinedStr):
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
            found += [(f"{path.name}:{node.lineno}", match) for match in COMMAND.findall(text)]
    return found


def wrong(command: str) -> str:
    """What is wrong with *command*; empty when nothing is."""
    words = shlex.split(command.replace("[", "").replace("]", "").replace("...", ""))
    if (
        not words
        or words[0].isupper()
        or words[0] in ("X", "--help", "__complete")
        or (words[0] in GROUPS and len(words) == 1)
    ):
        return ""
    path, rest = find(words)
    if path is None:
        return "no such command"
    command_ = load(path)
    flags = (*command_.flags, *GLOBAL_FLAGS)
    long, short = {flag.name for flag in flags} | {flag.also for flag in flags}, {flag.short for flag in flags}
    for word in rest:
        if not word.startswith("-") and not command_.interspersed:
            break
        if word.startswith("--") and word[2:].partition("=")[0] not in long:
            return f"{path} has no {word}"
        if re.fullmatch(r"-[A-Za-z]+", word) and word[1] not in short:
            return f"{path} has no {word}"
    return ""


def test_each_is_a_command_with_flags_that_it_has(root: Path) -> None:
    commands = written(root / "src/casemate")
    assert len(commands) > 60
    assert not [f"{where}: casemate {command}: {wrong(command)}" for where, command in commands if wrong(command)]


@pytest.mark.parametrize("command", ["fly", "image import --rootfs x", "ps -Z", "rm --force=x --no"])
def test_a_wrong_one_is_found(command: str) -> None:
    assert wrong(command)
