"""Maven's order (POM reference, "Version order specification"; org.apache.maven.artifact ComparableVersion).

Maven nests a list in a list at every hyphen. Here the same order is had from one flat list of tokens, so that a
version of a million hyphens cannot exhaust the stack.
"""

from __future__ import annotations

import re

from casemate.trust.version.digits import ZERO, Number, number, sign

_TOKEN = re.compile(r"([.-])|([0-9]+)|([^.\-0-9]+)")
_ALIAS = {"a": "alpha", "b": "beta", "m": "milestone"}
_SAME = {"cr": "rc", "ga": "", "final": "", "release": ""}
#: The empty qualifier is the release itself; words that are not here come after "sp", by alphabet.
_RANK = {"alpha": 0, "beta": 1, "milestone": 2, "rc": 3, "snapshot": 4, "": 5, "sp": 6}
_UNKNOWN = 7

#: ("." or "-", is a number, its number or its word)
Token = tuple[str, bool, Number | str]


def tokens(version: str) -> list[Token]:
    """The tokens of *version* with the separator before each; a change between digits and letters is a hyphen."""
    out: list[Token] = []
    separator, pending, word_open = ".", True, False
    for mark, digits, word in _TOKEN.findall(version.lower()):
        if mark:
            if pending:
                out.append((separator, True, ZERO))  # nothing between two marks is 0
            separator, pending, word_open = mark, True, False
            continue
        if not pending:
            separator = "-"
        if digits:
            if word_open:
                out[-1] = (out[-1][0], False, _qualifier(str(out[-1][2]), digit_follows=True))
            out.append((separator, True, number(digits)))
        else:
            out.append((separator, False, word))
        word_open = bool(word)
        pending = False
    if pending and out:
        out.append((separator, True, ZERO))
    return _trim(
        [token if token[1] else (token[0], False, _qualifier(str(token[2]), digit_follows=False)) for token in out]
    )


def _qualifier(word: str, *, digit_follows: bool) -> str:
    return _ALIAS.get(word, word) if digit_follows else _SAME.get(word, word)


def _trim(found: list[Token]) -> list[Token]:
    """Without the null values (0 and the release) at the end, and before each hyphen."""
    kept: list[Token] = []
    for place, token in enumerate(found):
        if token[0] == "-" and place:
            _drop_nulls(kept)
        kept.append(token)
    _drop_nulls(kept)
    return kept


def _drop_nulls(kept: list[Token]) -> None:
    while len(kept) > 1 and kept[-1][2] in (ZERO, ""):
        kept.pop()


def compare(left: str, right: str) -> int:
    """-1, 0 or 1."""
    a, b = tokens(left), tokens(right)
    for one, other in zip(a, b, strict=False):
        if one != other and (result := sign(_key(one), _key(other))):
            return result
    if len(a) == len(b):
        return 0
    longer, more = (a, 1) if len(a) > len(b) else (b, -1)
    for token in longer[min(len(a), len(b)) :]:
        null: Token = (token[0], token[1], ZERO if token[1] else "")
        if result := sign(_key(token), _key(null)):
            return result * more
    return 0


def _key(token: Token) -> tuple[int, object]:
    mark, is_number, value = token
    if is_number:
        return (3 if mark == "." else 2, value)
    # Before 3.9 (MNG-7644) ".word" came before "-word"; the ecosystem's records were compared so.
    return (0 if mark == "." else 1, (_RANK.get(str(value), _UNKNOWN), "" if value in _RANK else value))
