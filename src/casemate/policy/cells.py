"""The port space of one pair of identities, cut into cells of one answer each."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable
from operator import attrgetter
from typing import NamedTuple

from casemate.policy.decision import DEFAULT_RULE, Decision, Side
from casemate.policy.ports import LAST_PLACE, WHOLE, Interval, NamedPort, merged
from casemate.policy.rules import Rule, Tier
from casemate.policy.verdict import VERDICT_OF, Action, Verdict

#: First and last place, verdict, rule: sorted, without gaps, one side's answer.
SideCells = tuple[tuple[int, int, Verdict, str], ...]


class Cell(NamedTuple):
    """Places *first* to *last* (see :mod:`casemate.policy.ports`), with both sides' answers."""

    first: int
    last: int
    verdict: Verdict
    decision: Decision


Cells = tuple[Cell, ...]
_first = attrgetter("first")


class _Piece(NamedTuple):
    """Undecided places: *passed* is the tier that a Pass left, *would* the audited rule that would forbid it, *least*
    the rule that lets nothing pass unasked.
    """

    first: int
    last: int
    passed: Tier | None
    would: str
    least: str = ""

    def decided(self, verdict: Verdict, rule: str) -> tuple[int, int, Verdict, str]:
        """These places with their answer; *rule* is what gave *verdict*."""
        if self.least and verdict < Verdict.REFER:
            return (self.first, self.last, Verdict.REFER, self.least)
        return (self.first, self.last, verdict, rule)


def decide(
    rules: Iterable[Rule], audited: Collection[Tier], ports: tuple[NamedPort, ...], default: Action
) -> SideCells:
    """One side's answer over the whole port space; *rules* match the pair and come in order."""
    undecided = [_Piece(0, LAST_PLACE, None, "")]
    done: list[tuple[int, int, Verdict, str]] = []
    for rule in rules:
        _step(undecided, done, rule, audited, ports)
        if not undecided:
            break
    verdict = VERDICT_OF[default]
    for piece in undecided:
        if verdict is Verdict.ALLOW:
            done.append(piece.decided(Verdict.AUDIT if piece.would else verdict, piece.would or DEFAULT_RULE))
        elif Tier.DEFAULT in audited:
            done.append(piece.decided(Verdict.AUDIT, piece.would or DEFAULT_RULE))
        else:
            done.append(piece.decided(verdict, DEFAULT_RULE))
    return _joined(done)


def _step(
    undecided: list[_Piece], done: list[tuple[int, int, Verdict, str]], rule: Rule, audited: Collection[Tier],
    ports: tuple[NamedPort, ...],
) -> None:  # fmt: skip
    """What *rule* decides of *undecided* (sorted, without overlap) goes over to *done*.

    Only the pieces that the rule is about are looked at: of 100,000 rules about one pair, each names a few ports.
    """
    for first, last in rule_places(rule, ports):
        begin = max(0, bisect_right(undecided, first, key=_first) - 1)
        if begin < len(undecided) and undecided[begin].last < first:
            begin += 1
        end = begin
        left: list[_Piece] = []
        while end < len(undecided) and undecided[end].first <= last:
            piece = undecided[end]
            end += 1
            if piece.passed is rule.tier:
                left.append(piece)
                continue
            start, stop = max(first, piece.first), min(last, piece.last)
            if start > piece.first:
                left.append(piece._replace(last=start - 1))
            _match(piece._replace(first=start, last=stop), left, done, rule, audited)
            if stop < piece.last:
                left.append(piece._replace(first=stop + 1))
        undecided[begin:end] = left


def _match(
    piece: _Piece, left: list[_Piece], done: list[tuple[int, int, Verdict, str]], rule: Rule, audited: Collection[Tier]
) -> None:
    if rule.least:
        left.append(piece if piece.least else piece._replace(least=rule.id))
    elif rule.action in (Action.DENY, Action.REFER) and (rule.audit or rule.tier in audited):
        left.append(piece if piece.would else piece._replace(would=rule.id))
    elif rule.condition is not None:
        done.append(piece.decided(Verdict.REFER, rule.id))
    elif rule.action is Action.PASS:
        left.append(piece._replace(passed=rule.tier))
    elif rule.action is Action.ALLOW and piece.would:
        done.append(piece.decided(Verdict.AUDIT, piece.would))
    else:
        done.append(piece.decided(VERDICT_OF[rule.action], rule.id))


def rule_places(rule: Rule, ports: tuple[NamedPort, ...]) -> tuple[Interval, ...]:
    """The places that *rule* is about at a destination with these named *ports*; sorted, without overlap."""
    if rule.ports is None:
        return WHOLE
    if len(rule.ports) == 1:
        return merged(rule.ports[0].intervals(ports))
    return merged(interval for port in rule.ports for interval in port.intervals(ports))


def _joined(cells: list[tuple[int, int, Verdict, str]]) -> SideCells:
    out: list[tuple[int, int, Verdict, str]] = []
    for cell in sorted(cells):
        if out and out[-1][2:] == cell[2:]:
            out[-1] = (out[-1][0], cell[1], *cell[2:])
        else:
            out.append(cell)
    return tuple(out)


def combine(egress: SideCells, ingress: SideCells) -> Cells:
    """Both sides laid over each other; the stricter verdict of each place holds."""
    out: list[Cell] = []
    at, e, i = 0, 0, 0
    while at <= LAST_PLACE:
        one, other = egress[e], ingress[i]
        last = min(one[1], other[1])
        decision = Decision(Side(one[2], one[3]), Side(other[2], other[3]))
        out.append(Cell(at, last, decision.verdict, decision))
        e += one[1] == last
        i += other[1] == last
        at = last + 1
    return tuple(out)


def cell_at(cells: Cells, place: int) -> Cell:
    """The cell that holds *place*."""
    low, high = 0, len(cells) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if cells[middle].first <= place:
            low = middle
        else:
            high = middle - 1
    return cells[low]
