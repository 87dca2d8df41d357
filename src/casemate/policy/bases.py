"""What most pairs have in common: an identity's answers towards all that no rule names in particular.

The *egress base* of an identity is its answer, as a source, towards each class of zones; the *ingress base* the same
as a destination. Equal bases are one, with a number, and a verdict for each two of them; a pair of identities needs
an element of its own only where it differs from its bases'. With 10,000 identities that is the difference between
some tens of thousands of elements and a hundred million.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from casemate.policy.cells import SideCells, combine
from casemate.policy.identity import FIRST_BASE
from casemate.policy.lower import Runs, runs, tightens

Pair = tuple[int, int]


class Base(NamedTuple):
    """*home*: the class of zones that its identities are in; *row*: the answer towards each class, verdicts only."""

    home: int
    row: tuple[SideCells, ...]


class Based(NamedTuple):
    """The numbers of an identity's two bases."""

    egress: int
    ingress: int


class Bases:
    """Bases in use, and the verdicts between them. *pods* says of each class of zones whether it is of pods."""

    def __init__(self) -> None:
        self.pods: tuple[bool, ...] = ()
        self._egress: dict[Base, int] = {}
        self._ingress: dict[Base, int] = {}
        self._content: dict[int, Base] = {}
        self._uses: Counter[int] = Counter()
        self._next = FIRST_BASE
        self._known: dict[tuple[int, int], Runs] = {}
        #: Verdicts of each egress base towards each ingress base; none between two that are both outside.
        self.pairs: dict[Pair, Runs] = {}
        self._around: dict[int, set[Pair]] = {}
        #: What has changed since :meth:`taken` was last asked.
        self._changed: dict[Pair, tuple[Runs | None, Runs | None]] = {}

    def start_anew(self, pods: tuple[bool, ...]) -> None:
        """Other classes of zones: what was known is about classes that are no more. Holders must be given new ones."""
        self.pods = pods
        self._egress, self._ingress = {}, {}

    def hold(self, egress: Base, ingress: Base) -> Based:
        """The numbers of these two, for one more holder."""
        one, other = self._number(egress, self._egress, out=True), self._number(ingress, self._ingress, out=False)
        self._uses[one] += 1
        self._uses[other] += 1
        return Based(one, other)

    def let_go(self, held: Based) -> None:
        """One holder less; what nobody holds is gone."""
        for number in held:
            self._uses[number] -= 1
            if self._uses[number]:
                continue
            del self._uses[number]
            base = self._content.pop(number)
            for table in (self._egress, self._ingress):
                if table.get(base) == number:
                    del table[base]
            for pair in self._around.pop(number):
                self._around.get(pair[1 - pair.index(number)], set()).discard(pair)
                self._note(pair, self.pairs.pop(pair), None)

    def tightened(self, old: Based, new: Based) -> tuple[bool, bool]:
        """Whether somebody may do less as a source, and as a destination, with *new* in place of *old*."""
        egress = old.egress != new.egress and self._tightened(old.egress, new.egress, 0)
        ingress = old.ingress != new.ingress and self._tightened(old.ingress, new.ingress, 1)
        return egress, ingress

    def taken(self) -> dict[Pair, tuple[Runs | None, Runs | None]]:
        """The pairs of bases that changed since this was last asked, with what held before and what holds now."""
        done, self._changed = self._changed, {}
        return done

    def _tightened(self, old: int, new: int, side: int) -> bool:
        before = {pair[1 - side]: self.pairs[pair] for pair in self._around[old]}
        return any(
            tightens(before[pair[1 - side]], self.pairs[pair]) for pair in self._around[new] if pair[1 - side] in before
        )

    def _number(self, base: Base, table: dict[Base, int], *, out: bool) -> int:
        number = table.get(base)
        if number is not None:
            return number
        number = table[base] = self._next
        self._next += 1
        self._content[number] = base
        self._around[number] = set()
        others = self._ingress if out else self._egress
        for other, other_number in others.items():
            pair = (number, other_number) if out else (other_number, number)
            egress, ingress = (base, other) if out else (other, base)
            if self.pods[egress.home] or self.pods[ingress.home]:
                self.pairs[pair] = self._between(egress.row[ingress.home], ingress.row[egress.home])
                self._around[number].add(pair)
                self._around[other_number].add(pair)
                self._note(pair, None, self.pairs[pair])
        return number

    def _between(self, egress: SideCells, ingress: SideCells) -> Runs:
        """Answers are kept once (see the compiler), so that they can be told by identity."""
        key = (id(egress), id(ingress))
        if key not in self._known:
            self._known[key] = runs(combine(egress, ingress))
        return self._known[key]

    def forget(self) -> None:
        """The compiler's answers were made anew: their identities mean nothing any more."""
        self._known = {}

    def _note(self, pair: Pair, old: Runs | None, new: Runs | None) -> None:
        self._changed[pair] = (self._changed[pair][0] if pair in self._changed else old, new)
