"""DNS messages, as much as a forwarder needs: the question, and where each record of an answer stands. Pure.

Answers of others are passed on as they came; only their identifier, their times to live and their additional section
change. Every length and every pointer is checked: both sides are hostile. Sources: RFC 1035 (4), 6891, 2308, 8482.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from casemate.spec.errors import InvalidArgument

HEADER_BYTES = 12
_HEADER = struct.Struct("!6H")
_RECORD = struct.Struct("!HHIH")
A, NS, CNAME, SOA, PTR, MX, TXT, AAAA, SRV, OPT, SVCB, HTTPS, AXFR, ANY = (
    1, 2, 5, 6, 12, 15, 16, 28, 33, 41, 64, 65, 252, 255,
)  # fmt: skip
IN = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)
_QR, _AA, _TC, _RD, _RA, _AD, _CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010
_OPCODE, _RCODE = 0x7800, 0x000F
#: Without EDNS a datagram holds 512 bytes (RFC 1035); with it we send and take 1,232, which no path cuts in pieces.
PLAIN_BYTES, DATAGRAM_BYTES = 512, 1232
MAX_NAME_BYTES, MAX_LABEL_BYTES, _MAX_POINTERS = 255, 63, 32
#: Records that one message is read for; real answers have tens.
MAX_RECORDS = 512


class MessageBroken(InvalidArgument):
    code = "dns.message_broken"
    title = "A DNS message is broken"
    remedy = "Nothing is to be done: it was counted, and answered with FORMERR or not at all."


@dataclass(frozen=True, slots=True)
class Query:
    """A question. *name* is in lower case without the last dot; *question* its bytes as they came, for the answer."""

    number: int
    flags: int
    name: str
    kind: int
    class_: int
    question: bytes
    has_edns: bool
    room_bytes: int
    wants_dnssec: bool

    @property
    def opcode(self) -> int:
        return (self.flags & _OPCODE) >> 11


@dataclass(frozen=True, slots=True)
class Record:
    """A record of an answer: *section* 1 answer, 2 authority, 3 additional; where its TTL and its data stand."""

    section: int
    name: str
    kind: int
    ttl_s: int
    ttl_at: int
    data_at: int
    data_end: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A response. *end* is where its authority section ends."""

    number: int
    flags: int
    question: bytes
    records: tuple[Record, ...]
    data: bytes
    end: int

    @property
    def code(self) -> int:
        return self.flags & _RCODE

    @property
    def is_cut(self) -> bool:
        return bool(self.flags & _TC)

    def addresses(self) -> list[tuple[bytes, int]]:
        """Packed addresses in the answer section, each with its lifetime in seconds."""
        return [
            (self.data[record.data_at : record.data_end], record.ttl_s)
            for record in self.records
            if record.section == 1 and (record.kind, record.data_end - record.data_at) in ((A, 4), (AAAA, 16))
        ]

    def hints(self) -> list[bytes]:
        """Addresses inside SVCB and HTTPS records (RFC 9460, 7.3): they lead a client as A and AAAA do."""
        found: list[bytes] = []
        for record in self.records:
            if record.kind in (SVCB, HTTPS):
                found += _hints(self.data, record.data_at, record.data_end)
        return found

    def lifetime_s(self) -> int:
        """How long this may be kept: the least of its records'; for "no such name" what the SOA says; 0: not at all."""
        kept = [record for record in self.records if record.section < 3]
        if not any(record.section == 1 for record in kept):
            soa = [record for record in kept if record.kind == SOA and record.data_end - record.data_at >= 22]
            if not soa:
                return 0
            minimum = int.from_bytes(self.data[soa[0].data_end - 4 : soa[0].data_end], "big")
            return min(soa[0].ttl_s, minimum)
        return min(record.ttl_s for record in kept)


def _hints(data: bytes, at: int, end: int) -> list[bytes]:
    found: list[bytes] = []
    try:
        _, at = read_name(data, at + 2, end)
    except MessageBroken:
        return found
    while at + 4 <= end:
        key, size = struct.unpack_from("!HH", data, at)
        at += 4
        if at + size > end:
            break
        step = {4: 4, 6: 16}.get(key)
        if step is not None:
            found += [data[one : one + step] for one in range(at, at + size - size % step, step)]
        at += size
    return found


def read_name(data: bytes, at: int, end: int | None = None) -> tuple[str, int]:
    """The name at *at* (lower case, escaped where a label holds more than host name characters), and what follows."""
    labels: list[str] = []
    total, jumps, after = 0, 0, -1
    end = len(data) if end is None else end
    while True:
        if at >= len(data) or (after < 0 and at >= end):
            raise MessageBroken("a name goes on behind the message's end")
        size = data[at]
        if size & 0xC0 == 0xC0:
            if at + 1 >= len(data) or jumps >= _MAX_POINTERS:
                raise MessageBroken("a name's pointers lead nowhere")
            target = (size & 0x3F) << 8 | data[at + 1]
            if target >= at:
                raise MessageBroken("a name's pointer leads forward")
            after = at + 2 if after < 0 else after
            at, jumps = target, jumps + 1
            continue
        if size & 0xC0:
            raise MessageBroken("a label of an unknown kind")
        at += 1
        if size == 0:
            return ".".join(labels), at if after < 0 else after
        total += size + 1
        if at + size > len(data) or total > MAX_NAME_BYTES - 1:
            raise MessageBroken("a name is longer than 255 bytes, or than the message")
        labels.append(_label(data[at : at + size]))
        at += size


_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_*/")


def _label(raw: bytes) -> str:
    if _PLAIN.issuperset(raw):
        return raw.decode("ascii").lower()
    return "".join(chr(byte).lower() if byte in _PLAIN else f"\\{byte:03d}" for byte in raw)


def read_query(data: bytes) -> Query:
    """The question in *data*. Raises :class:`MessageBroken` for anything that is not exactly one question."""
    if len(data) < HEADER_BYTES:
        raise MessageBroken(f"{len(data)} bytes are no message")
    number, flags, questions, answers, authorities, additional = _HEADER.unpack_from(data)
    if flags & _QR or questions != 1 or answers or authorities or additional > 8:
        raise MessageBroken("not a query with one question")
    name, at = read_name(data, HEADER_BYTES)
    if at + 4 > len(data):
        raise MessageBroken("the question is cut")
    kind, class_ = struct.unpack_from("!HH", data, at)
    question = data[HEADER_BYTES : at + 4]
    at += 4
    has_edns, room, wants_dnssec = False, PLAIN_BYTES, False
    for _ in range(additional):
        record, at = _read_record(data, at, 3)
        if record.kind == OPT:
            has_edns = True
            room = int.from_bytes(data[record.ttl_at - 2 : record.ttl_at], "big")
            wants_dnssec = bool(record.ttl_s & 0x8000)
    room = min(max(room, PLAIN_BYTES), DATAGRAM_BYTES)
    return Query(number, flags, name, kind, class_, question, has_edns, room, wants_dnssec)


def _read_record(data: bytes, at: int, section: int) -> tuple[Record, int]:
    name, at = read_name(data, at)
    if at + _RECORD.size > len(data):
        raise MessageBroken("a record is cut")
    kind, _, ttl_s, size = _RECORD.unpack_from(data, at)
    begin = at + _RECORD.size
    if begin + size > len(data):
        raise MessageBroken("a record's data goes on behind the message's end")
    # RFC 2181, 8: the highest bit set means 0.
    lifetime = ttl_s if kind == OPT or ttl_s < 1 << 31 else 0
    return Record(section, name, kind, lifetime, at + 4, begin, begin + size), begin + size


def read_answer(data: bytes) -> Answer:
    """The response in *data*. Raises :class:`MessageBroken`."""
    if len(data) < HEADER_BYTES:
        raise MessageBroken(f"{len(data)} bytes are no message")
    number, flags, questions, *counts = _HEADER.unpack_from(data)
    if not flags & _QR or questions != 1:
        raise MessageBroken("not a response to one question")
    _, at = read_name(data, HEADER_BYTES)
    if at + 4 > len(data):
        raise MessageBroken("the question is cut")
    question = data[HEADER_BYTES : at + 4]
    at += 4
    if sum(counts) > MAX_RECORDS:
        raise MessageBroken(f"{sum(counts)} records, {MAX_RECORDS} are read")
    records: list[Record] = []
    end = at
    for section, count in enumerate(counts, 1):
        for _ in range(count):
            record, at = _read_record(data, at, section)
            records.append(record)
        if section == 2:
            end = at
    return Answer(number, flags, question, tuple(records), data, end)


def write_query(number: int, question: bytes, *, wants_dnssec: bool) -> bytes:
    """A query for a resolver: recursion asked for, EDNS with our size."""
    return _HEADER.pack(number, _RD, 1, 0, 0, 1) + question + _opt(wants_dnssec)


def _opt(wants_dnssec: bool) -> bytes:
    return b"\0" + struct.pack("!HHIH", OPT, DATAGRAM_BYTES, 0x8000 if wants_dnssec else 0, 0)


def respond(
    query: Query, code: int, records: list[tuple[int, int, bytes]] | None = None, *, own: bool = False
) -> bytes:
    """A response of ours: *records* are (type, lifetime in seconds, data), all for the question's own name."""
    body = b"".join(
        b"\xc0\x0c" + _RECORD.pack(kind, IN, ttl_s, len(data)) + data for kind, ttl_s, data in records or ()
    )
    flags = _QR | _RA | query.flags & (_OPCODE | _RD | _CD) | (_AA if own else 0) | code
    edns = _opt(query.wants_dnssec) if query.has_edns else b""
    counts = (1, len(records or ()), 0, int(query.has_edns))
    return _HEADER.pack(query.number, flags, *counts) + query.question + body + edns


def pass_on(query: Query, answer: Answer, age_s: int) -> bytes:
    """*answer* (perhaps kept for *age_s*) for who asked *query*: his number and spelling, lifetimes that are left."""
    data = bytearray(answer.data[: answer.end])
    flags = _QR | _RA | query.flags & (_RD | _CD) | answer.flags & (_AD | _RCODE)
    if not query.wants_dnssec and not query.flags & _AD:
        flags &= ~_AD
    _, _, questions, answers, authorities, _ = _HEADER.unpack_from(answer.data)
    _HEADER.pack_into(data, 0, query.number, flags, questions, answers, authorities, int(query.has_edns))
    data[HEADER_BYTES : HEADER_BYTES + len(query.question)] = query.question
    for record in answer.records:
        if record.section < 3 and record.kind != OPT:
            struct.pack_into("!I", data, record.ttl_at, max(record.ttl_s - age_s, 0))
    return bytes(data) + (_opt(query.wants_dnssec) if query.has_edns else b"")


def cut(query: Query, response: bytes) -> bytes:
    """*response* as a datagram: where there is no room, the question alone and the word to ask again over TCP."""
    if len(response) <= query.room_bytes:
        return response
    flags = int.from_bytes(response[2:4], "big") | _TC
    edns = _opt(query.wants_dnssec) if query.has_edns else b""
    return _HEADER.pack(query.number, flags, 1, 0, 0, int(query.has_edns)) + query.question + edns


def write_name(name: str) -> bytes:
    """*name* (of plain labels) as bytes without pointers. Raises :class:`MessageBroken`."""
    out = b""
    for label in name.split("."):
        raw = label.encode("ascii", "replace")
        if not 0 < len(raw) <= MAX_LABEL_BYTES:
            raise MessageBroken(f"label {label[:80]!r} has not 1 to {MAX_LABEL_BYTES} bytes")
        out += bytes((len(raw),)) + raw
    return out + b"\0"
