"""Rules and identities to verdicts: for each pair of identities the whole port space, cut where the answer changes.

How it is fast. The rules about a pair are one bitwise *and* of two sets (:mod:`casemate.policy.rulebook`), and equal
sets of rules give equal answers, so each set is worked out once.

How it is small. Most pairs are like most others: no rule names both in particular. What an identity may do towards
those is its *bases* (:mod:`casemate.policy.bases`); only pairs that some rule relates *in particular*, and
that differ from their bases, are kept. A change works out the bases of identities that changed rules are about, and
the pairs around them; nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from casemate.policy.bases import Base, Based, Bases, Pair
from casemate.policy.cells import Cells, SideCells, combine, decide
from casemate.policy.decision import UNGOVERNED
from casemate.policy.errors import PolicyTooLarge
from casemate.policy.identity import Identity, Kind
from casemate.policy.kinship import Kindred
from casemate.policy.lower import Runs, alike, runs, tightens
from casemate.policy.ports import LAST_PLACE, NamedPort
from casemate.policy.rulebook import Masks, Rulebook, Zone, particular_peers, zone_of
from casemate.policy.rules import Direction, Names, Rule, RuleSet, Tier
from casemate.policy.verdict import Verdict

MAX_IDENTITIES = 65_536
MAX_RULES = 200_000
#: Pairs that need elements of their own. A million elements take the kernel some 100 MiB.
MAX_PAIRS = 1_000_000
#: Pairs that rules relate in particular, each looked at once in a compile.
MAX_CANDIDATES = 4_000_000
#: More changed rules than this are cheaper worked out all anew.
MAX_STEPS = 200
_OUTSIDE: SideCells = ((0, LAST_PLACE, Verdict.ALLOW, UNGOVERNED),)


@dataclass(slots=True)
class Changed:
    """What a change did. *pairs*: of identities and of bases, with what held before and what holds now (None: no
    element of their own). *bases*: of each identity, before and now. *tightened*: pairs in which something passes no
    more; 0 stands for every identity.
    """

    pairs: dict[Pair, tuple[Runs | None, Runs | None]] = field(default_factory=dict)
    bases: dict[int, tuple[Based | None, Based | None]] = field(default_factory=dict)
    tightened: set[Pair] = field(default_factory=set)

    def merge(self, later: Changed) -> None:
        """Add what happened afterwards."""
        for pair, (old, new) in later.pairs.items():
            self.pairs[pair] = (self.pairs[pair][0] if pair in self.pairs else old, new)
        for number, (was, now) in later.bases.items():
            self.bases[number] = (self.bases[number][0] if number in self.bases else was, now)
        self.tightened |= later.tightened


def differences(old: Sequence[Rule], new: Sequence[Rule]) -> tuple[list[Rule], list[Rule]]:
    """Rules that are in *old* alone, and in *new* alone. Objects first: comparing values of all would take long."""
    before, after = set(map(id, old)), set(map(id, new))
    removed = [rule for rule in old if id(rule) not in after]
    added = [rule for rule in new if id(rule) not in before]
    equal = set(removed) & set(added)
    return [rule for rule in removed if rule not in equal], [rule for rule in added if rule not in equal]


class Compiler:
    """The verdicts of *rules* for *identities* (by number). Changing it gives what changed, and nothing else.

    After :class:`PolicyTooLarge` out of a change it is between two states, and must be thrown away.
    """

    def __init__(self, rules: RuleSet, identities: Mapping[int, Identity]) -> None:
        self.default = rules.default
        self.audited = rules.audited
        self._bases = Bases()
        loaded = self._load(rules, identities)
        self._homes: dict[Zone, int] = {}
        self._classes: list[Masks] = []
        self.based: dict[int, Based] = {}
        #: Pairs of identities that differ from what their bases say, with the verdicts.
        self.particular: dict[Pair, Runs] = {}
        self._around: dict[int, set[Pair]] = {number: set() for number in identities}
        self._settle(set(identities), self._candidates(loaded))

    @property
    def identities(self) -> Mapping[int, Identity]:
        return self._book.identities

    @property
    def names(self) -> tuple[Names, ...]:
        """The names of the outside that rules speak of."""
        return self._book.names

    @property
    def elements(self) -> dict[Pair, Runs]:
        """Everything that needs elements: pairs of identities, and pairs of bases."""
        return self._bases.pairs | self.particular

    def cells(self, source: int, destination: int) -> Cells:
        """The port space of a pair; KeyError for a pair that has none (unknown, or both outside)."""
        one, other, book = self.identities[source], self.identities[destination], self._book
        if Kind.POD not in (one.kind, other.kind):
            raise KeyError((source, destination))
        egress = ingress = _OUTSIDE
        ports = other.ports if book.named else ()
        if one.kind is Kind.POD:
            egress = self._side(book.subject(source, 0) & book.peer(destination, 0), source, ports)
        if other.kind is Kind.POD:
            ingress = self._side(book.subject(destination, 1) & book.peer(source, 1), destination, ports)
        cells = self._joined.get((id(egress), id(ingress)))
        if cells is None:
            cells = self._joined[id(egress), id(ingress)] = combine(egress, ingress)
        return cells

    def verdicts(self, source: int, destination: int) -> Runs:
        """The same without rules, as the kernel is told; from what is kept, without working anything out."""
        own = self.particular.get((source, destination))
        return own or self._bases.pairs[self.based[source].egress, self.based[destination].ingress]

    def rules_of(self, number: int, direction: Direction) -> list[Rule]:
        """The rules of *direction* that are about *number*, as they are evaluated."""
        return self._book.in_order(self._book.subject(number, int(direction is Direction.INGRESS)))

    def neighbours(self, number: int, among: Mapping[Based, set[int]]) -> Iterator[int]:
        """Who of *among* (by their bases) may be reached from *number*, or may reach it, at some place."""
        own = self.based[number]
        near = {other for pair in self._around[number] for other in pair}
        for based, members in among.items():
            pairs = ((own.egress, based.ingress), (based.egress, own.ingress))
            if any(_passes(self._bases.pairs.get(pair, ())) for pair in pairs):
                yield from (other for other in members if other not in near)
        for other in near:
            if other not in among.get(self.based[other], ()):
                continue
            both = ((number, other), (other, number))
            if any(self._is_asked(*pair) and _passes(self.verdicts(*pair)) for pair in both):
                yield other

    def heard(self) -> set[str]:
        """The ids of rules that decide something for somebody."""
        found: set[str] = set()
        for number, identity in self.identities.items():
            if identity.kind is Kind.POD:
                for side in (side for zone in self._classes for side in self._towards(number, zone)):
                    found.update(rule for _, _, _, rule in side)
        for pair in self._candidates(self._book.rules):
            if self._is_asked(*pair):
                for cell in self.cells(*pair):
                    found |= {cell.decision.egress.rule, cell.decision.ingress.rule}
        return found

    def add_identity(self, number: int, identity: Identity) -> Changed:
        """With *identity* as *number*: its bases, and the pairs that a rule relates it in particular with."""
        self._check(len(self._book), len(self.identities) + 1)
        self._book.enter(number, identity)
        self._tiers[number] = self._audited_tiers(identity)
        self._around[number] = set()
        done = self._settle({number}, self._candidates_of(number))
        if fresh := self._kindred.enter(identity):
            done.merge(self._change([], fresh))
        return done

    def remove_identity(self, number: int) -> Changed:
        """Without *number*: its pairs are gone."""
        done = Changed()
        for pair in self._around.pop(number):
            done.pairs[pair] = (self.particular.pop(pair), None)
            self._around.get(pair[1 - pair.index(number)], set()).discard(pair)
        old = self.based.pop(number)
        done.bases[number] = (old, None)
        self._bases.let_go(old)
        done.pairs.update(self._bases.taken())
        unneeded = self._kindred.leave(self.identities[number])
        self._book.leave(number)
        del self._tiers[number]
        done.merge(self._settle(set(), set()))
        if unneeded:
            done.merge(self._change(unneeded, []))
        return done

    def replace(self, rules: RuleSet, changes: tuple[list[Rule], list[Rule]]) -> Changed:
        """With *rules* in place of what was: by what differs (*changes*), or all anew where much does."""
        same = rules.audited == self.audited and rules.default == self.default
        if same:
            removed, added = changes
            if len(removed) + len(added) <= MAX_STEPS:
                return self.change_rules(removed, added)
        self.default, self.audited = rules.default, rules.audited
        loaded = self._load(rules, dict(self.identities))
        # The rules have other slots: classes of zones, told by sets of rules, cannot be compared with those before.
        self._classes = []
        return self._settle(set(self.identities), {*self.particular, *self._candidates(loaded)})

    def change_rules(self, removed: Iterable[Rule], added: Iterable[Rule]) -> Changed:
        """Without the rules *removed*, with *added*; only what those are about is worked out."""
        return self._change(self._kindred.take(removed), self._kindred.put(added))

    def _change(self, removed: list[Rule], added: list[Rule]) -> Changed:
        self._check(len(self._book) - len(removed) + len(added), len(self.identities))
        for rule in removed:
            self._book.take(rule)
        for rule in added:
            self._book.put(rule)
        self._forget()
        about = [*removed, *added]
        subjects = {number for rule in about for number in self._book.subjects_of(rule)}
        pairs = set(self._candidates(about))
        if any(self._is_zonal(rule) for rule in about):
            for number in subjects:
                # What a rule changes of a subject's bases changes what its other pairs are compared with.
                pairs |= self._around[number]
                pairs |= self._candidates_of(number)
        else:
            subjects = set()
        return self._settle(subjects, pairs)

    @staticmethod
    def _is_zonal(rule: Rule) -> bool:
        """Whether *rule* says something about somebody that it does not name in particular."""
        return len(particular_peers(rule)) < len(rule.peers)

    def _check(self, rules: int, identities: int) -> None:
        if identities > MAX_IDENTITIES:
            raise PolicyTooLarge(f"{identities} identities on one node, allowed are {MAX_IDENTITIES}")
        if rules > MAX_RULES:
            raise PolicyTooLarge(f"{rules} rules in force, allowed are {MAX_RULES}")

    def _load(self, rules: RuleSet, identities: Mapping[int, Identity]) -> list[Rule]:
        self._kindred = Kindred(identities.values())
        loaded = self._kindred.put(rules.rules)
        self._check(len(loaded), len(identities))
        self._book = Rulebook(loaded, identities.items())
        self._tiers = {number: self._audited_tiers(identity) for number, identity in identities.items()}
        self._forget()
        return loaded

    def _audited_tiers(self, identity: Identity) -> frozenset[Tier]:
        return frozenset(tier for audit in self.audited if audit.subject.matches(identity) for tier in audit.tiers)

    def _forget(self) -> None:
        self._sides: dict[tuple[int, frozenset[Tier], tuple[NamedPort, ...]], SideCells] = {}
        self._same: dict[SideCells, SideCells] = {}
        self._bare: dict[int, SideCells] = {}
        self._joined: dict[tuple[int, int], Cells] = {}
        self._bases.forget()

    def _side(self, mask: int, number: int, ports: tuple[NamedPort, ...]) -> SideCells:
        key = (mask, self._tiers[number], ports)
        found = self._sides.get(key)
        if found is None:
            worked_out = decide(self._book.in_order(mask), self._tiers[number], ports, self.default)
            # Equal answers are one object: pairs are joined, and compared, by identity.
            found = self._sides[key] = self._same.setdefault(worked_out, worked_out)
        return found

    def _candidates(self, rules: Iterable[Rule]) -> Iterator[Pair]:
        """The pairs that *rules* relate in particular. Raises :class:`PolicyTooLarge`."""
        count = 0
        for rule in rules:
            peers = self._book.peers_of(rule)
            subjects = self._book.subjects_of(rule) if peers else []
            count += len(subjects) * len(peers)
            if count > MAX_CANDIDATES:
                raise PolicyTooLarge(
                    f"rules relate more than {MAX_CANDIDATES} pairs of identities in particular; "
                    f"rule {rule.id}: {len(subjects)} with {len(peers)}"
                )
            egress = rule.direction is Direction.EGRESS
            for subject in subjects:
                yield from ((subject, peer) if egress else (peer, subject) for peer in peers)

    def _candidates_of(self, number: int) -> set[Pair]:
        """Those among them that *number* is in."""
        book, found = self._book, set[Pair]()
        for way in (0, 1):
            for rule in book.in_order(book.subject(number, way) & book.precise):
                found.update((peer, number) if way else (number, peer) for peer in book.peers_of(rule))
            for rule in book.in_order(book.particular(number, way)):
                found.update((number, one) if way else (one, number) for one in book.subjects_of(rule))
        return found

    def _settle(self, dirty: set[int], pairs: Iterable[Pair]) -> Changed:
        """New bases for *dirty* (for all, where the classes of zones are others now), then *pairs* against them."""
        done = Changed()
        if self._class_zones():
            dirty = set(self.identities)
            done.tightened.add((0, 0))
        before = dict(self.based) if len(dirty) > 1 else {n: self.based[n] for n in dirty if n in self.based}
        left: list[Based] = []
        for number in dirty:
            old, new = self.based.get(number), self._bases.hold(*self._base(number))
            if old is not None:
                left.append(old)
            self.based[number] = new
            if old != new:
                done.bases[number] = (old, new)
        self._settle_tightened(done)
        for pair in dict.fromkeys(pairs):  # many rules may be about one pair
            self._settle_pair(pair, before, done)
        for old in left:
            self._bases.let_go(old)
        done.pairs.update(self._bases.taken())
        if len(self.particular) + len(self._bases.pairs) > MAX_PAIRS:
            raise PolicyTooLarge(f"{len(self.particular)} pairs differ from their bases, allowed are {MAX_PAIRS}")
        return done

    def _settle_tightened(self, done: Changed) -> None:
        known: dict[tuple[Based, Based], tuple[bool, bool]] = {}
        for number, (old, new) in done.bases.items():
            if old is None or new is None:
                continue
            if (old, new) not in known:
                known[old, new] = self._bases.tightened(old, new)
            out, into = known[old, new]
            done.tightened |= {pair for pair, so in (((number, 0), out), ((0, number), into)) if so}

    def _settle_pair(self, pair: Pair, before: Mapping[int, Based], done: Changed) -> None:
        source, destination = pair
        if not self._is_asked(source, destination):
            return
        new = runs(self.cells(source, destination))
        one, other = self.based[source], self.based[destination]
        old = self.particular.get(pair)
        was = old
        if (
            was is None
            and (source not in done.bases or source in before)
            and (destination not in done.bases or destination in before)
        ):
            was = self._bases.pairs.get((before.get(source, one).egress, before.get(destination, other).ingress))
        if new == self._bases.pairs[one.egress, other.ingress]:
            if old is not None:
                del self.particular[pair]
                self._around[source].discard(pair)
                self._around[destination].discard(pair)
                done.pairs[pair] = (old, None)
        elif new != old:
            self.particular[pair] = new
            self._around[source].add(pair)
            self._around[destination].add(pair)
            done.pairs[pair] = (old, new)
        if was is not None and was != new and tightens(was, new):
            done.tightened.add(pair)

    def _is_asked(self, source: int, destination: int) -> bool:
        return Kind.POD in (self.identities[source].kind, self.identities[destination].kind)

    def _class_zones(self) -> bool:
        """Zones that the rules treat alike are one class. True when the classes are others than before."""
        keys: dict[tuple[bool, int, int], int] = {}
        homes: dict[Zone, int] = {}
        classes: list[Masks] = []
        for zone, masks in self._book.zones.items():
            key = (zone.kind is Kind.POD, masks.peer[0], masks.peer[1])
            if key not in keys:
                keys[key] = len(classes)
                classes.append(masks)
            homes[zone] = keys[key]
        pods = tuple(is_pod for is_pod, _, _ in keys)
        same = pods == self._bases.pods and all(self._homes.get(zone, home) == home for zone, home in homes.items())
        fresh = not self._classes or not same
        self._homes, self._classes = homes, classes
        if fresh:
            self._bases.start_anew(pods)
        return fresh

    def _base(self, number: int) -> tuple[Base, Base]:
        identity = self.identities[number]
        home = self._homes[zone_of(identity)]
        if identity.kind is not Kind.POD:
            open_to_all = Base(home, (self._unnamed(_OUTSIDE),) * len(self._classes))
            return open_to_all, open_to_all
        rows = [self._towards(number, zone) for zone in self._classes]
        egress, ingress = (tuple(self._unnamed(row[way]) for row in rows) for way in (0, 1))
        return Base(home, egress), Base(home, ingress)

    def _towards(self, number: int, zone: Masks) -> tuple[SideCells, SideCells]:
        """What a pod's egress and ingress rules say of those in *zone* that none of them names in particular."""
        egress, ingress = (self._side(self._book.subject(number, way) & zone.peer[way], number, ()) for way in (0, 1))
        return egress, ingress

    def _unnamed(self, side: SideCells) -> SideCells:
        """*side* without the names of rules: many rules say the same."""
        found = self._bare.get(id(side))
        if found is None:
            bare = tuple((first, last, verdict, "") for first, last, verdict in alike(side))
            found = self._bare[id(side)] = self._same.setdefault(bare, bare)
            self._same.setdefault(side, side)  # kept alive: it is told by its identity
        return found


def _passes(cut: Runs) -> bool:
    return any(verdict < Verdict.HOLD for _, _, verdict in cut)
