"""Kernel events in, rows of the ring out: the joining, without sockets and without a clock of its own.

A connection's record waits until casemated has said which rule decided it (asked once for each pair of addresses and
port, then remembered until the rules change), at most :data:`RULING_WAIT_S`; what nobody ruled on is written without
a rule, and counted. What passed and what was refused is the kernel's word, never the planner's.
"""

from __future__ import annotations

import ipaddress
import re
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence

from casemate.node.flows import conntrack, packetlog
from casemate.node.flows.clienthello import server_name
from casemate.node.flows.conntrack import ICMP, ICMPV6, Ended, Seen, Tuple
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
#: When it ended (seconds since the epoch), packets and bytes there, packets and bytes back.
_Ending = tuple[float, int, int, int, int]


class _Flow:
    """A connection under way; *written* once its row is among those of *batch*, at *place*."""

    __slots__ = ("batch", "began", "ending", "ends", "five", "number", "place", "refused", "tls", "via",
                 "waits_since", "written")  # fmt: skip

    def __init__(self, number: int, began: float, five: _Five, via: str) -> None:
        self.number = number
        self.began = began
        self.five = five
        self.via = via
        self.tls = ""
        self.refused = ""
        self.ending: _Ending | None = None
        self.waits_since = 0.0
        self.written = False
        self.ends: tuple[End | None, End | None] = (None, None)
        self.batch, self.place = -1, 0

    @property
    def key(self) -> _Key:
        source, destination, protocol, _, port = self.five
        return (source, destination, protocol, port)


class Recorder:
    """*ask* sends questions to casemated; *now* is given with each batch (seconds since the epoch)."""

    def __init__(self, ring: Ring, ask: Callable[[Questions], bool]) -> None:
        self._ring = ring
        self._ask = ask
        self._number = ring.number
        self._ends: dict[bytes, End] = {}
        self._leaving: deque[tuple[float, bytes, End]] = deque()
        self._texts: dict[bytes, str] = {}
        #: The ring's number of an end, by its address and identity, as long as the same end is there.
        self._end_numbers: dict[tuple[bytes, int], tuple[End | None, int]] = {}
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
        #: Rows in the order of :class:`NewFlow`; lists, since most connections end before theirs is written.
        self._new: list[list[object]] = []
        self._batch = 0
        self._ended: list[EndedFlow] = []
        self._named: list[tuple[int, str, int]] = []
        self._again: list[tuple[int, float, int]] = []
        self._swept = 0
        self._next_sequence: dict[str, int] = {}
        self.recorded = self.denied = self.audited = self.ended = 0
        self.lost_log = self.overruns = self.broken = self.unruled = self.names_seen = 0
        for number, source, destination, protocol, source_port, port in ring.still_open():
            known = _Flow(number, 0.0, (_packed(source), _packed(destination), protocol, source_port, port), "")
            known.written = True
            self._by_five[known.five] = known

    # --- what the kernel tells -------------------------------------------------------------------------------------

    def connections(self, messages: Iterable[bytes], now: float) -> None:
        """Messages of conntrack's, as they came."""
        for data in messages:
            seen = conntrack.quick(data)
            if seen is None:
                self._connection(data, now)
                continue
            is_new, key, source, destination, protocol, source_port, port, server, server_port = seen
            if port == DNS_PORT and destination == GATEWAY:
                continue
            via = "" if server == destination else f"{self._text(destination)}:{port}"
            five = (source, server, protocol, source_port, server_port)
            if is_new:
                self._opened(key, five, via, now)
                continue
            try:
                self._closed(key, five, via, conntrack.ending(data, conntrack.QUICK_END), now)
            except ValueError:
                self.broken += 1

    def _connection(self, data: bytes, now: float) -> None:
        """One message of conntrack's, of whatever form."""
        try:
            seen = conntrack.parse(data)
            if seen is None or (seen.original.port == DNS_PORT and seen.original.destination == GATEWAY):
                return
            five, via = self._five(seen)
            if seen.is_new:
                self._opened(seen.key, five, via, now)
            else:
                self._closed(seen.key, five, via, conntrack.ending(data, seen.rest), now)
        except ValueError:
            self.broken += 1

    def _five(self, seen: Seen) -> tuple[_Five, str]:
        """Who is really at both ends, and by which address the other end was meant."""
        original, reply = seen.original, seen.reply
        protocol, port, source_port = original.protocol, reply.source_port, original.source_port
        if protocol in (ICMP, ICMPV6):
            port, source_port = original.port >> 8, 0
        via = "" if reply.source == original.destination else f"{self._text(original.destination)}:{original.port}"
        return (original.source, reply.source, protocol, source_port, port), via

    def _opened(self, key: bytes, five: _Five, via: str, now: float) -> None:
        if len(self._open) >= MAX_OPEN or key in self._open:
            return
        self._number += 1
        self._open[key] = self._by_five[five] = flow = _Flow(self._number, now, five, via)
        self._settle(flow, now)

    def _closed(self, key: bytes, five: _Five, via: str, ended: Ended, now: float) -> None:
        packets_out, bytes_out, packets_in, bytes_in, began_ns, ended_ns = ended
        known = self._open.pop(key, None)
        at = (ended_ns if ended_ns > began_ns else began_ns) / 1e9 or now
        self.ended += 1
        if known is None:
            # It began before we did (an earlier recorder may have written its beginning), or when too many were open.
            known = self._by_five.get(five)
            if known is None:
                self._number += 1
                flow = _Flow(self._number, began_ns / 1e9 or now, five, via)
                flow.ending = (at, packets_out, bytes_out, packets_in, bytes_in)
                self._settle(flow, now)
                return
        counts = (at if at > known.began else known.began, packets_out, bytes_out, packets_in, bytes_in)
        self._by_five.pop(known.five, None)
        if known.written:
            self._finish(known, counts)
        else:
            known.ending = counts

    def _finish(self, flow: _Flow, counts: _Ending) -> None:
        """The end of a record that was written: while its row waits to be written, into that row."""
        if flow.batch == self._batch:
            row = self._new[flow.place]
            row[_ENDED], *row[_COUNTS] = counts
            return
        self._ring.stamp += 1
        self._ended.append(EndedFlow(self._ring.stamp, *counts, flow.number))

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
            flow.ends = (self._ends.get(five[0]), self._ends.get(five[1]))
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
        five = flow.five
        flow.ends = (self._ends.get(five[0]), self._ends.get(five[1]))
        if self._referred:
            # Who answered has said who the ends are: nobody need be asked.
            told = self._referred.get(five)
            if told is not None:
                self._write_answered(flow, told, told.source_identity, told.destination_identity)
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

    def _write(self, flow: _Flow, ruling: Ruling) -> None:
        verdict, rule, note = ruling.verdict, ruling.rule, ruling.note
        if self._referred:
            told = self._referred.get(flow.five)
            if told is not None:
                self._write_answered(flow, told, ruling.source_identity, ruling.destination_identity)
                return
        if flow.refused:
            verdict = flow.refused if flow.refused != "deny" or verdict in ("allow", "audit") else verdict
            verdict = "deny" if verdict in ("refer", "hold") else verdict
        elif verdict in ("deny", "hold"):
            # It passed: under the rules of that moment, which have changed since.
            verdict, note = "allow", note or f"now {ruling.verdict}"
        self._append(flow, verdict, rule, note, ruling.source_identity, ruling.destination_identity)

    def _write_answered(self, flow: _Flow, told: ReferralTold, source_identity: int, destination_identity: int) -> None:
        verdict = "referred" if told.verdict == "allow" else "deny"
        self._append(flow, verdict, told.rule, told.note, source_identity, destination_identity)

    def _append(  # noqa: PLR0917 - columns of one row, in their order
        self, flow: _Flow, verdict: str, rule: str, note: str, source_identity: int, destination_identity: int
    ) -> None:
        source, destination, protocol, source_port, port = flow.five
        name = self._names.get((source, destination), _NO_NAME)[0] if self._names else ""
        ring, rows = self._ring, self._new
        if not rows:
            ring.begin()
        ring.stamp += 1
        ended, *counts = flow.ending or _NOT_ENDED
        one, other = flow.ends
        flow.written, flow.batch, flow.place = True, self._batch, len(rows)
        rows.append(
            [
                flow.number, ring.stamp, flow.began, ended,
                self._end(source, one, source_identity), self._text(source), source_port,
                self._end(destination, other, destination_identity), self._text(destination), port,
                protocol, verdict, rule, note, flow.via, name, flow.tls, 1, *counts,
            ]
        )  # fmt: skip
        self.recorded += 1
        ring.number = max(ring.number, flow.number)

    def _end(self, address: bytes, end: End | None, identity: int) -> int:
        held = self._end_numbers.get((address, identity))
        if held is not None and held[0] is end:
            return held[1]
        if end is None:
            number = self._ring.end_number(("world", "", "", "", identity, ""))
        else:
            number = self._ring.end_number(
                (end.kind, end.project, end.name, end.pod, identity or end.identity, end.labels)
            )
        if len(self._end_numbers) >= MAX_NAMES:
            self._end_numbers.clear()
        self._end_numbers[address, identity] = (end, number)
        return number

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
        if self._ring.sweeps != self._swept:
            # Ends without a record are gone from the ring, and may have another number when they come again.
            self._swept = self._ring.sweeps
            self._end_numbers.clear()

    def counters(self) -> Counters:
        return Counters(
            self.recorded, self.denied, self.audited, self.ended, self.lost_log, self.overruns, self.broken,
            self.unruled, self.names_seen,
        )  # fmt: skip


_NO_RULING = Ruling(note="no ruling in time")
_NO_NAME = ("", 0.0)
_NOT_ENDED: tuple[float | None, int, int, int, int] = (None, 0, 0, 0, 0)
#: Where the end is in a row, and its counters.
_ENDED, _COUNTS = NewFlow._fields.index("ended"), slice(NewFlow._fields.index("packets_out"), None)


def _packed(address: str) -> bytes:
    try:
        return ipaddress.ip_address(address).packed
    except ValueError:
        return b""


def batches(items: Sequence[End]) -> list[tuple[End, ...]]:
    """*items* in messages of at most :data:`MAX_ITEMS`."""
    return [tuple(items[at : at + MAX_ITEMS]) for at in range(0, len(items), MAX_ITEMS)]
