"""A seccomp program made shorter: a search over ranges of values in place of a comparison for each. Pure.

libseccomp writes one comparison for each system call that has a rule; neighbours mostly have the same answer. What a
program answers is found out for each range of values between two that it compares with, equal neighbours are joined,
and a search over what is left is written. Nothing is known here of system calls or profiles: the answer to every
input stays what it was, since it is read from the program itself.
Source: linux/filter.h, linux/seccomp.h, kernel/seccomp.c (seccomp_check_filter; kernel 6.1).
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

_LOAD, _AND, _RETURN, _GO = 0x20, 0x54, 0x06, 0x05
_EQUAL, _GREATER, _AT_LEAST, _ANY_BIT = 0x15, 0x25, 0x35, 0x45
_KNOWN = frozenset((_LOAD, _AND, _RETURN, _GO, _EQUAL, _GREATER, _AT_LEAST, _ANY_BIT))
_FULL = 0xFFFF_FFFF
#: How far a comparison can jump (``struct sock_filter``), and how long a program may be (BPF_MAXINSNS).
_FAR, _MAX_INSTRUCTIONS = 255, 4096
#: Instructions that are looked at before the program is left as it is: our own profile takes 13,000, in 12 ms.
_MAX_STEPS = 100_000
#: Tests that stand behind each other and that no range decides, words of the input among them: ours has four.
_MAX_DEPTH = 40
#: Values with an answer of their own that are compared with in a row, and ranges of which the best order is looked for.
_ROW, _FEW = 3, 7


class Instruction(NamedTuple):
    """``struct sock_filter``: what to do, how far to jump when a test holds and when not, and the number with it."""

    code: int
    yes: int
    no: int
    value: int


class Ranges(NamedTuple):
    """What to do by the word of the input at *offset*: from each first value on, to the next one's."""

    offset: int
    starts: tuple[int, ...]
    nodes: tuple[Node, ...]


class Bits(NamedTuple):
    """What to do by a test of some bits of a word, which is no matter of ranges."""

    offset: int
    mask: int
    test: int
    value: int
    yes: Node
    no: Node


#: What is left to be done for an input: a number is the program's answer.
Node = int | Ranges | Bits
#: What is loaded: the offset in the input, and the bits of it that are left.
_Word = tuple[int, int]
#: Between which values, both among them, the words lie by their offsets.
_Known = dict[int, tuple[int, int]]
#: A range of values, both ends among them, and what to do there.
_Range = tuple[int, int, Node]


class _Unable(Exception):
    """The program is left as it was."""


def shorter(program: bytes) -> bytes:
    """A program that answers as *program* does to every input, and is shorter; or *program*."""
    try:
        code = [Instruction(*one) for one in struct.iter_unpack("<HBBI", program)]
        found = _Writer().write(_Reader(code).node(0, (0, 0), {}))
    except _Unable:
        return program
    return found if len(found) < len(program) else program


@dataclass(slots=True)
class _Reader:
    """Finds out what *code* does."""

    code: Sequence[Instruction]
    _same: dict[Node, Node] = field(default_factory=dict)
    _steps: int = 0
    _depth: int = 0

    def node(self, at: int, word: _Word, known: _Known) -> Node:
        """What is done from the instruction *at* on, with *word* loaded, as far as *known* does not decide it."""
        while True:
            one = self._look(at)
            at += 1
            if one.code == _LOAD:
                word = (one.value, _FULL)
            elif one.code == _AND:
                word = (word[0], word[1] & one.value)
            elif one.code == _GO:
                at += one.value
            elif one.code == _RETURN:
                return one.value
            else:
                low, high = known.get(word[0], (0, _FULL))
                holds = _holds(word[1], one, low, high)
                if holds is None:
                    self._depth += 1
                    if self._depth > _MAX_DEPTH:
                        raise _Unable
                    found = self._split(at - 1, word, known)
                    self._depth -= 1
                    return found
                at += one.yes if holds else one.no

    def _look(self, at: int) -> Instruction:
        self._steps += 1
        if self._steps > _MAX_STEPS or at >= len(self.code):
            raise _Unable
        one = self.code[at]
        if one.code not in _KNOWN:
            raise _Unable
        return one

    def _split(self, at: int, word: _Word, known: _Known) -> Node:
        """By the test *at*, which is of *word*, and which what is known does not decide."""
        one, (offset, mask) = self.code[at], word
        if _cuts(mask, one.code, one.value) is None:
            yes, no = (self.node(at + 1 + far, word, known) for far in (one.yes, one.no))
            return yes if yes == no else self._kept(Bits(offset, mask, one.code, one.value, yes, no))
        low, high = known.get(offset, (0, _FULL))
        starts = [low, *(cut for cut in self._all_cuts(at, word) if low < cut <= high)]
        ends = [*(start - 1 for start in starts[1:]), high]
        pairs: list[tuple[int, Node]] = []
        for start, end in zip(starts, ends, strict=True):
            then = self.node(at, word, known | {offset: (start, end)})
            if not pairs or pairs[-1][1] != then:
                pairs.append((start, then))
        if len(pairs) == 1:
            return pairs[0][1]
        return self._kept(Ranges(offset, tuple(one[0] for one in pairs), tuple(one[1] for one in pairs)))

    def _all_cuts(self, at: int, word: _Word) -> list[int]:
        """Where ranges of the word begin that any test tells apart which comes after *at*."""
        found: set[int] = set()
        seen: set[tuple[int, _Word]] = set()
        left = [(at, word)]
        while left:
            place = left.pop()
            if place in seen:
                continue
            seen.add(place)
            (now, loaded), one = place, self._look(place[0])
            if one.code == _LOAD:
                left.append((now + 1, (one.value, _FULL)))
            elif one.code == _AND:
                left.append((now + 1, (loaded[0], loaded[1] & one.value)))
            elif one.code == _GO:
                left.append((now + 1 + one.value, loaded))
            elif one.code != _RETURN:
                if loaded[0] == word[0]:
                    found.update(_cuts(loaded[1], one.code, one.value) or ())
                left += [(now + 1 + one.yes, loaded), (now + 1 + one.no, loaded)]
        return sorted(found)

    def _kept(self, node: Node) -> Node:
        """The one that stands for all that are equal: it is written once."""
        return self._same.setdefault(node, node)


@functools.lru_cache(maxsize=4096)
def _cuts(mask: int, test: int, value: int) -> tuple[int, ...] | None:
    """The values of a word at which ``word & mask`` begins or ceases to pass the test; None: it is not by ranges."""
    if test == _ANY_BIT:
        mask, test, value = mask & value, _GREATER, 0
    if mask == 0:
        return ()
    if mask & (mask >> 1 | 1 << 31) != mask:
        return () if test == _EQUAL and value & ~mask else None
    # The highest bits, all of them: blocks of as many values as the lower ones have.
    block = mask & -mask
    found: tuple[int, ...]
    if test == _EQUAL:
        found = (value, value + block) if value & ~mask == 0 else ()
    elif test == _GREATER:
        found = (value // block * block + block,)
    else:
        found = (-(-value // block) * block,)
    return tuple(cut for cut in found if 0 < cut <= _FULL)


def _holds(mask: int, one: Instruction, low: int, high: int) -> bool | None:
    """Whether all values of *low* to *high* pass the test, or none does; None: some do."""
    cuts = _cuts(mask, one.code, one.value)
    if low != high and (cuts is None or any(low < cut <= high for cut in cuts)):
        return None
    value = low & mask
    match one.code:
        case 0x15:
            return value == one.value
        case 0x25:
            return value > one.value
        case 0x35:
            return value >= one.value
        case _:
            return bool(value & one.value)


@dataclass(slots=True)
class _Writer:
    """Writes a program from its end: where a jump leads to is then known, and how far it is."""

    _backwards: list[Instruction] = field(default_factory=list)
    #: How many instructions there are from a node's first one to the end.
    _places: dict[Node, int] = field(default_factory=dict)

    def write(self, node: Node) -> bytes:
        self._put(node)
        if len(self._backwards) > _MAX_INSTRUCTIONS:
            raise _Unable
        return b"".join(struct.pack("<HBBI", *one) for one in reversed(self._backwards))

    def _put(self, node: Node) -> int:
        """The place of *node*, written where it is not there yet."""
        if node in self._places:
            return self._places[node]
        match node:
            case Ranges(offset, starts, nodes):
                ends = (*(start - 1 for start in starts[1:]), _FULL)
                self._search(list(zip(starts, ends, nodes, strict=True)))
                self._backwards.append(Instruction(_LOAD, 0, 0, offset))
            case Bits():
                yes, no = self._put(node.yes), self._put(node.no)
                self._test(node.test, node.value, yes, no)
                self._backwards += [Instruction(_AND, 0, 0, node.mask), Instruction(_LOAD, 0, 0, node.offset)]
            case answer:
                self._backwards.append(Instruction(_RETURN, 0, 0, answer))
        self._places[node] = len(self._backwards)
        return len(self._backwards)

    def _search(self, ranges: list[_Range]) -> int:
        """The place from which the word that is loaded is looked for among *ranges*."""
        row = _as_row(ranges)
        if row is not None:
            rest, values = row
            place = self._put(rest)
            for value, node in values:
                place = self._test(_EQUAL, value, self._put(node), place)
            return place
        middle = _best(ranges)[1]
        later = self._search(ranges[middle:])
        return self._test(_AT_LEAST, ranges[middle][0], later, self._search(ranges[:middle]))

    def _test(self, test: int, value: int, yes: int, no: int) -> int:
        """A comparison with two places to go on at; those that are too far for it get a jump of their own."""
        while max(far := [len(self._backwards) - place for place in (yes, no)]) > _FAR:
            self._backwards.append(Instruction(_GO, 0, 0, max(far)))
            if far[0] >= far[1]:
                yes = len(self._backwards)
            else:
                no = len(self._backwards)
        self._backwards.append(Instruction(test, far[0], far[1], value))
        return len(self._backwards)


def _as_row(ranges: Sequence[_Range]) -> tuple[Node, list[tuple[int, Node]]] | None:
    """*ranges* as one answer with few values that have another; None where they are not so."""
    # Neighbours differ: between so few others there is no more of the rest.
    if len(ranges) > 2 * _ROW + 1:
        return None
    for rest in dict.fromkeys(node for _, _, node in ranges):
        others = [one for one in ranges if one[2] != rest]
        if len(others) <= _ROW and all(first == last for first, last, _ in others):
            return rest, [(first, node) for first, _, node in others]
    return None


def _best(ranges: Sequence[_Range]) -> tuple[int, int]:
    """How many comparisons it takes to search *ranges*, and where to halve them; of many, in the middle."""
    row = _as_row(ranges)
    if row is not None:
        return len(row[1]), 0
    if len(ranges) > _FEW:
        return len(ranges), len(ranges) // 2
    costs = [1 + _best(ranges[:middle])[0] + _best(ranges[middle:])[0] for middle in range(1, len(ranges))]
    # Of those that are equal the one in the middle: the search is then the shortest.
    middle = min(range(1, len(ranges)), key=lambda one: (costs[one - 1], abs(2 * one - len(ranges))))
    return costs[middle - 1], middle


__all__ = ["shorter"]
