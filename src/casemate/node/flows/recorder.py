"""Kernel events in, rows of the ring out: the joining, without sockets and without a clock of its own.

A connection's record waits until casemated has said which rule decided it (asked once for each pair of addresses and
port, then remembered until the rules change), at most :data:`RULING_WAIT_S`; what nobody ruled on is written without
a rule, and counted. What passed and what was refused is the kernel's word, never the planner's.
"""

from __future__ import annotations

import ipaddress
import re
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

from casemate.node.flows import conntrack, packetlog
from casemate.node.flows.clienthello import server_name
from casemate.node.flows.conntrack import ICMP, ICMPV6, Seen, Tuple
from casemate.node.flows.store import EndedFlow, NewFlow, Ring
from casemate.node.flows.wire import (
    MAX_ITEMS,
    Counters,
    End,
    Ends,
    Names,
    Question,
    Questions,
    ReferralTold,
    Referred,
    RulesChanged,
    Ruling,
    Rulings,
)

RULING_WAIT_S = 1.0
#: The kernel's own bound on connections (nf_conntrack_max) is 262,144 on hosts of some size; beyond ours a connection
#: is written when it ends.
MAX_OPEN = 400_000
#: A pod that is gone is still known so long, unless another has its address.
LEAVING_S = 5.0
MAX_NAMES = 200_000
MAX_RULINGS = 200_000
MAX_WAITING = 50_000
#: A refused connection that is tried again (a SYN goes out again after 1, 3, 7 ... s) is the same record so long.
AGAIN_S = 60.0
MAX_REFUSED = 50_000
#: Answers whose connection the kernel has not told of yet.
MAX_REFERRED = 65_536
#: The pods' resolver: what they ask it is no connection between workloads, and it has counters of its own.
GATEWAY, DNS_PORT = bytes((169, 254, 1, 1)), 53
#: What is dropped before any policy: the firewall's own word for it.
_GUARD = re.compile(rb"casemate:guard:([a-z_]{1,32})\Z")
_REFUSING = frozenset((b"deny", b"drop", b"refer", b"hold"))

_Key = tuple[bytes, bytes, int, int]
_Five = tuple[bytes, bytes, int, int, int]


class _Flow:
    """A connection under way; *written* once its row is in the ring."""

    __slots__ = ("began", "destination", "ending", "ends", "number", "port", "protocol", "refused", "row", "source",
                 "source_port", "tls", "via", "waits_since", "written")  # fmt: skip

    def __init__(self, number: int, began: float, five: _Five, via: str) -> None:
        self.number = number
        self.began = began
        self.source, self.destination, self.protocol, self.source_port, self.port = five
        self.via = via
        self.tls = ""
        self.refused = ""
        self.ending: tuple[float, int, int, int, int] | None = None
        self.waits_since = 0.0
        self.written = False
        self.ends: tuple[End | None, End | None] = (None, None)
        self.row: tuple[int, int] = (-1, 0)

    @property
    def key(self) -> _Key:
        return (self.source, self.destination, self.protocol, self.port)


class Recorder:
    """*ask* sends questions to casemated; *now* is given with each batch (seconds since the epoch)."""

    def __init__(self, ring: Ring, ask: Callable[[Questions], bool]) -> None:
        self._ring = ring
        self._ask = ask
        self._number = ring.number
        self._ends: dict[bytes, End] = {}
        self._leaving: deque[tuple[float, bytes, End]] = deque()
        self._texts: dict[bytes, str] = {}
        self._names: OrderedDict[tuple[bytes, bytes], tuple[str, float]] = OrderedDict()
        self._rulings: OrderedDict[_Key, Ruling] = OrderedDict()
        self._open: dict[bytes, _Flow] = {}
        self._by_five: dict[_Five, _Flow] = {}
        self._refused: OrderedDict[_Five, tuple[int, float]] = OrderedDict()
        self._referred: OrderedDict[_Five, ReferralTold] = OrderedDict()
        self._waiting: dict[_Key, list[_Flow]] = {}
        self._count_waiting = 0
        self._unasked: list[_Key] = []
        self._asked: dict[int, tuple[_Key, ...]] = {}
        self._question = 0
        self._new: list[NewFlow] = []
        self._batch = 0
        self._ended: list[EndedFlow] = []
        self._named: list[tuple[int, str, int]] = []
        self._again: list[tuple[int, float, int]] = []
        self._next_sequence: dict[str, int] = {}
        self.recorded = self.denied = self.audited = self.ended = 0
        self.lost_log = self.overruns = self.broken = self.unruled = self.names_seen = 0
        for number, source, destination, protocol, source_port, port in ring.still_open():
            known = _Flow(number, 0.0, (_packed(source), _packed(destination), protocol, source_port, port), "")
            known.written = True
            self._by_five[known.source, known.destination, known.protocol, known.source_port, known.port] = known

    # --- what the kernel tells -------------------------------------------------------------------------------------

    def connection(self, data: bytes, now: float) -> None:
        """One message of conntrack's."""
        try:
            seen = conntrack.parse(data)
            if seen is None or (seen.original.port == DNS_PORT and seen.original.destination == GATEWAY):
                return
            if seen.is_new:
                if len(self._open) < MAX_OPEN and seen.key not in self._open:
                    flow = self._begin(seen, now)
                    self._open[seen.key] = flow
                    self._by_five[flow.source, flow.destination, flow.protocol, flow.source_port, flow.port] = flow
                    self._settle(flow, now)
                return
            ended = conntrack.ending(data, seen.rest)
        except ValueError:
            self.broken += 1
            return
        known = self._open.pop(seen.key, None)
        at = max(ended.ended_ns / 1e9, ended.began_ns / 1e9) or now
        counts = (at, ended.packets_out, ended.bytes_out, ended.packets_in, ended.bytes_in)
        self.ended += 1
        if known is None:
            # It began before we did (an earlier recorder may have written its beginning), or when too many were open.
            flow = self._begin(seen, ended.began_ns / 1e9 or now)
            known = self._by_five.get((flow.source, flow.destination, flow.protocol, flow.source_port, flow.port))
            if known is None:
                flow.ending = counts
                self._settle(flow, now)
                return
        if at < known.began:
            counts = (known.began, *counts[1:])
        self._by_five.pop((known.source, known.destination, known.protocol, known.source_port, known.port), None)
        if known.written:
            self._finish(known, counts)
        else:
            known.ending = counts

    def _finish(self, flow: _Flow, counts: tuple[float, int, int, int, int]) -> None:
        """The end of a record that was written: while its row waits to be written, into that row."""
        batch, place = flow.row
        if batch == self._batch:
            self._new[place] = self._new[place]._replace(
                ended=counts[0], packets_out=counts[1], bytes_out=counts[2], packets_in=counts[3], bytes_in=counts[4]
            )
            return
        self._ring.stamp += 1
        self._ended.append(EndedFlow(self._ring.stamp, *counts, flow.number))

    def _begin(self, seen: Seen, began: float) -> _Flow:
        original, reply = seen.original, seen.reply
        self._number += 1
        protocol, port, source_port = original.protocol, reply.source_port, original.source_port
        if protocol in (ICMP, ICMPV6):
            port, source_port = original.port >> 8, 0
        via = ""
        if reply.source != original.destination:
            via = f"{self._text(original.destination)}:{original.port}"
        return _Flow(self._number, began, (original.source, reply.source, protocol, source_port, port), via)

    def verdicts(self, data: bytes, now: float) -> None:
        """One datagram of the group that firewall rules log refused and audited packets to."""
        for logged in self._logged("verdict", data):
            found = packetlog.headers(logged.packet)
            word = logged.prefix.rpartition(b":")[2]
            guard = _GUARD.match(logged.prefix)
            if found is None or (word not in _REFUSING and guard is None):
                self.audited += word == b"audit"
                continue
            self.denied += 1
            if guard is None:
                self._refuse(found[0], word.decode(), len(logged.packet), now)
            else:
                self._refuse(found[0], "deny", len(logged.packet), now, f"Guard:{guard[1].decode()}")

    def _refuse(self, header: Tuple, word: str, size: int, now: float, guard: str = "") -> None:
        """A packet that did not pass; by *guard*, whatever the policy is, or by the rule that is asked for."""
        port = header.port >> 8 if header.protocol in (ICMP, ICMPV6) else header.port
        five = (header.source, header.destination, header.protocol, header.source_port, port)
        before = self._refused.get(five)
        if before is not None and now - before[1] < AGAIN_S:
            self._refused[five] = (before[0], now)
            self._ring.stamp += 1
            self._again.append((self._ring.stamp, now, before[0]))
            return
        self._number += 1
        flow = _Flow(self._number, now, five, "")
        flow.refused = "deny" if word == "drop" else word
        flow.ending = (now, 1, size, 0, 0)
        self._refused[five] = (flow.number, now)
        while len(self._refused) > MAX_REFUSED:
            self._refused.popitem(last=False)
        if guard:
            flow.ends = (self._ends.get(flow.source), self._ends.get(flow.destination))
            self._write(flow, Ruling("deny", guard))
        else:
            self._settle(flow, now)

    def hellos(self, data: bytes, _now: float) -> None:
        """One datagram of the group of first packets that begin a TLS handshake."""
        for logged in self._logged("hello", data):
            found = packetlog.headers(logged.packet)
            if found is None:
                continue
            header, content = found
            name = server_name(logged.packet[content:])
            flow = self._by_five.get(
                (header.source, header.destination, header.protocol, header.source_port, header.port)
            )
            if not name or flow is None or flow.tls:
                continue
            self.names_seen += 1
            flow.tls = name
            if flow.written:
                self._ring.stamp += 1
                self._named.append((self._ring.stamp, name, flow.number))

    def _logged(self, group: str, data: bytes) -> list[packetlog.Logged]:
        try:
            found = list(packetlog.parse(data))
        except ValueError:
            self.broken += 1
            return []
        for one in found:
            expected = self._next_sequence.get(group, one.sequence)
            if 0 <= expected < one.sequence:
                self.lost_log += one.sequence - expected
            self._next_sequence[group] = one.sequence + 1
        return found

    # --- what casemated tells --------------------------------------------------------------------------------------

    def told(self, message: Ends | Names | Rulings | RulesChanged | Referred, now: float) -> None:
        match message:
            case Ends():
                if message.replace:
                    self._ends.clear()
                # What the kernel tells of a pod comes after the word that it is gone.
                for address in message.gone:
                    packed = _packed(address)
                    if packed in self._ends:
                        self._leaving.append((now + LEAVING_S, packed, self._ends[packed]))
                self._ends.update((_packed(end.address), end) for end in message.set)
            case Names():
                for viewer, address, name, lifetime_s in message.answers:
                    self._names[_packed(viewer), _packed(address)] = (name, now + max(lifetime_s, 60))
                while len(self._names) > MAX_NAMES:
                    self._names.popitem(last=False)
            case Rulings():
                for key, ruling in zip(self._asked.pop(message.number, ()), message.rulings, strict=False):
                    self._rulings[key] = ruling
                    self._release(key, ruling)
                while len(self._rulings) > MAX_RULINGS:
                    self._rulings.popitem(last=False)
            case RulesChanged():
                self._rulings.clear()
            case Referred():
                self._answered(message, now)

    def _answered(self, message: Referred, now: float) -> None:
        referred, answers = self._referred, message.answers
        for five, place in message.connections:
            if place >= len(answers):
                self.broken += 1
                continue
            answer = referred[five] = answers[place]
            if answer.verdict == "deny":
                source, destination, protocol, source_port, port = five
                port = port << 8 if protocol in (ICMP, ICMPV6) else port
                self.denied += 1
                self._refuse(Tuple(source, destination, protocol, source_port, port), "deny", 0, now)
        while len(referred) > MAX_REFERRED:
            referred.popitem(last=False)

    # --- rulings ---------------------------------------------------------------------------------------------------

    def _settle(self, flow: _Flow, now: float) -> None:
        """Write *flow* when its ruling is known, otherwise let it wait for one. Who its ends are is known now."""
        flow.ends = (self._ends.get(flow.source), self._ends.get(flow.destination))
        if self._referred:
            # Who answered has said who the ends are: nobody need be asked.
            told = self._referred.get((flow.source, flow.destination, flow.protocol, flow.source_port, flow.port))
            if told is not None:
                self._write(flow, Ruling("refer", told.rule, told.source_identity, told.destination_identity), told)
                return
        key = flow.key
        ruling = self._rulings.get(key)
        if ruling is not None:
            self._write(flow, ruling)
            return
        if self._count_waiting >= MAX_WAITING:
            self.unruled += 1
            self._write(flow, _NO_RULING)
            return
        flow.waits_since = now
        waiting = self._waiting.get(key)
        if waiting is None:
            self._waiting[key] = [flow]
            self._unasked.append(key)
        else:
            waiting.append(flow)
        self._count_waiting += 1

    def ask(self) -> None:
        """Ask for every ruling that is wanted and was not asked for."""
        while self._unasked:
            part, self._unasked = tuple(self._unasked[:MAX_ITEMS]), self._unasked[MAX_ITEMS:]
            self._question += 1
            questions = tuple(Question(self._text(s), self._text(d), protocol, port) for s, d, protocol, port in part)
            if not self._ask(Questions(self._question, questions)):
                self._unasked = [*part, *self._unasked]
                return
            self._asked[self._question] = part

    def expire(self, now: float) -> None:
        """Write what has waited too long for a ruling, without one; forget who is gone."""
        while self._leaving and self._leaving[0][0] <= now:
            _, address, end = self._leaving.popleft()
            if self._ends.get(address) is end:
                del self._ends[address]
        if not self._waiting:
            return
        late = [key for key, flows in self._waiting.items() if now - flows[0].waits_since > RULING_WAIT_S]
        for key in late:
            self.unruled += len(self._waiting[key])
            self._release(key, _NO_RULING)
        if late:
            gone = set(late)
            self._unasked = [key for key in self._unasked if key not in gone]
            self._asked = {number: keys for number, keys in self._asked.items() if not gone.issuperset(keys)}

    def _release(self, key: _Key, ruling: Ruling) -> None:
        for flow in self._waiting.pop(key, ()):
            self._count_waiting -= 1
            self._write(flow, ruling)

    # --- rows ------------------------------------------------------------------------------------------------------

    def _write(self, flow: _Flow, ruling: Ruling, answer: ReferralTold | None = None) -> None:
        verdict, rule, note = ruling.verdict, ruling.rule, ruling.note
        if flow.refused:
            verdict = flow.refused if flow.refused != "deny" or verdict in ("allow", "audit") else verdict
            verdict = "deny" if verdict in ("refer", "hold") else verdict
        elif verdict in ("deny", "hold"):
            # It passed: under the rules of that moment, which have changed since.
            verdict, note = "allow", note or f"now {ruling.verdict}"
        if answer is None and self._referred:
            answer = self._referred.get((flow.source, flow.destination, flow.protocol, flow.source_port, flow.port))
        if answer is not None:
            rule, note = answer.rule, answer.note
            verdict = "referred" if answer.verdict == "allow" else "deny"
        name = ""
        if self._names:
            name = self._names.get((flow.source, flow.destination), ("", 0.0))[0]
        ring = self._ring
        ring.stamp += 1
        ended, *counts = flow.ending or (None, 0, 0, 0, 0)
        ring.begin()
        self._new.append(
            NewFlow(
                flow.number, ring.stamp, flow.began, ended,
                self._end(flow.ends[0], ruling.source_identity), self._text(flow.source), flow.source_port,
                self._end(flow.ends[1], ruling.destination_identity), self._text(flow.destination), flow.port,
                flow.protocol, verdict, rule, note, flow.via, name, flow.tls, 1, *counts,
            )
        )  # fmt: skip
        flow.written = True
        flow.row = (self._batch, len(self._new) - 1)
        self.recorded += 1
        ring.number = max(ring.number, flow.number)

    def _end(self, end: End | None, identity: int) -> int:
        if end is None:
            return self._ring.end_number(("world", "", "", "", identity, ""))
        return self._ring.end_number((end.kind, end.project, end.name, end.pod, identity or end.identity, end.labels))

    def _text(self, address: bytes) -> str:
        text = self._texts.get(address)
        if text is None:
            if len(self._texts) > MAX_NAMES:
                self._texts.clear()
            text = self._texts[address] = str(ipaddress.ip_address(address))
        return text

    @property
    def pending(self) -> int:
        """Rows that wait to be written."""
        return len(self._new) + len(self._ended) + len(self._again) + len(self._named)

    @property
    def waiting(self) -> int:
        return self._count_waiting

    def flush(self) -> None:
        """Write what is pending in one transaction."""
        self._ring.write(self._new, self._ended, named=self._named, again=self._again)
        self._new, self._ended, self._again, self._named = [], [], [], []
        self._batch += 1

    def counters(self) -> Counters:
        return Counters(
            self.recorded, self.denied, self.audited, self.ended, self.lost_log, self.overruns, self.broken,
            self.unruled, self.names_seen,
        )  # fmt: skip


_NO_RULING = Ruling(note="no ruling in time")


def _packed(address: str) -> bytes:
    try:
        return ipaddress.ip_address(address).packed
    except ValueError:
        return b""


def batches(items: Sequence[End]) -> list[tuple[End, ...]]:
    """*items* in messages of at most :data:`MAX_ITEMS`."""
    return [tuple(items[at : at + MAX_ITEMS]) for at in range(0, len(items), MAX_ITEMS)]
