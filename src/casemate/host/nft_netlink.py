"""nf_tables over netlink, without a library: batches of tables, chains, sets, elements and rules, and what is there.

Why our own: an element takes libnftables 90 us and this 5 to 9 us among many (decision 0086); the firewall's rules are
not in nft(8)'s language. A batch is one transaction of the kernel: all of it holds afterwards, or nothing.
Source: linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from casemate.host.netlink import attribute, attributes, messages
from casemate.host.nft import NftFailed
from casemate.host.nft_expressions import OBJECT_TIMEOUT, nested, text, u32, value_data, verdict_data

_SUBSYSTEM = 10 << 8
_BEGIN, _END = 0x10, 0x11
NEW_TABLE, DELETE_TABLE, NEW_CHAIN, NEW_RULE, DELETE_RULE = 0, 2, 3, 6, 8
NEW_SET, NEW_ELEMENTS, DELETE_ELEMENTS, NEW_OBJECT = 9, 12, 14, 18
_GET_TABLE, _GET_CHAIN, _GET_RULE, _GET_SET, _GET_ELEMENTS, _GET_OBJECT = 1, 4, 7, 10, 13, 19
#: Deletes what may be there or not (Linux 6.3).
DESTROY_ELEMENTS = 30
_REQUEST, _ACK, _DUMP, _CREATE, _APPEND = 1, 4, 0x300, 0x400, 0x800
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_SOL_NETLINK, _EXT_ACK = 270, 11
INET, IPV4 = 1, 2
FAMILIES = {"inet": INET, "ip": IPV4}
_INTERRUPTED = 0x10
_TRIES = 20
#: An attribute's length is 16 bits; elements are put together up to this.
_MAX_LIST_BYTES = 60_000
#: One batch is one packet of the kernel's; 64 MiB hold some 800,000 elements.
MAX_BATCH_BYTES = 128 << 20
_TIMEOUT_S = 30.0
SET_INTERVAL, SET_MAP, SET_TIMEOUT, SET_EVAL, SET_CONCAT = 4, 8, 0x10, 0x20, 0x80
_DATA_VERDICT = 0xFFFFFF00
#: NFTA_SET_COUNT (Linux 6.16)
_SET_COUNT = 20


@dataclass(frozen=True, slots=True)
class SetSpec:
    """A set or map. *fields*: (nft's type number, bytes) of the key, in order; *data*: of the value, if it is a map.

    *verdicts*: the map's values are verdicts. *interval* keys are ranges in every field (Linux 5.6), and have two
    fields at least: one alone would be kept in a tree, which wants each end as an element.
    """

    name: str
    fields: tuple[tuple[int, int], ...]
    data: tuple[int, int] | None = None
    verdicts: bool = False
    interval: bool = False
    timed: bool = False
    dynamic: bool = False
    size: int = 0

    @property
    def key_bytes(self) -> int:
        return sum((size + 3) & ~3 for _, size in self.fields)


@dataclass(frozen=True, slots=True)
class BaseChain:
    """A chain at a hook (by number: 2 is forward), with its policy: 0 drop, 1 accept."""

    family: str
    table: str
    name: str
    hook: int
    policy: int


@dataclass(slots=True)
class Batch:
    """Messages of one transaction on *table* of *family*, in order."""

    table: str
    family: int = INET
    parts: list[bytes] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    #: Rules that each chain has afterwards, of those chains that are emptied or made first.
    rules: dict[str, int] = field(default_factory=dict)

    def add(self, kind: int, flags: int, body: bytes, what: str) -> None:
        # The sequence number says which message the kernel refused.
        self.parts.append(_message(_SUBSYSTEM | kind, flags, len(self.parts) + 1, body, self.family))
        self.names.append(what)

    def new_table(self) -> None:
        self.add(NEW_TABLE, _CREATE, text(1, self.table), f"table {self.table}")

    def delete_table(self) -> None:
        self.add(DELETE_TABLE, 0, text(1, self.table), f"deleting table {self.table}")

    def new_chain(self, name: str, *, kind: str = "", hook: int = 0, priority: int = 0) -> None:
        """A chain; with a *kind* (``filter``) a base chain, policy accept."""
        body = text(1, self.table) + text(3, name)
        if kind:
            body += nested(4, u32(1, hook), u32(2, priority)) + u32(5, 1) + text(7, kind)
        self.add(NEW_CHAIN, _CREATE, body, f"chain {name}")
        self.rules[name] = 0

    def flush_chain(self, name: str) -> None:
        self.add(DELETE_RULE, 0, text(1, self.table) + text(2, name), f"flushing chain {name}")
        self.rules[name] = 0

    def new_rule(self, chain: str, expressions: bytes) -> None:
        body = text(1, self.table) + text(2, chain) + nested(4, expressions)
        self.add(NEW_RULE, _CREATE | _APPEND, body, f"a rule of chain {chain}")
        if chain in self.rules:
            self.rules[chain] += 1

    def new_counter(self, name: str) -> None:
        body = text(1, self.table) + text(2, name) + u32(3, 1) + nested(4)
        self.add(NEW_OBJECT, _CREATE, body, f"counter {name}")

    def new_timeouts(self, name: str, protocol: int, seconds: Mapping[int, int]) -> None:
        """Named timeouts for connections of *protocol* over IPv4, by the number of their state (CTA_TIMEOUT_TCP_*);
        what is not named has the host's."""
        data = attribute(1, struct.pack("!H", 2)) + attribute(2, bytes([protocol]))
        data += nested(3, *(u32(state, seconds[state]) for state in sorted(seconds)))
        body = text(1, self.table) + text(2, name) + u32(3, OBJECT_TIMEOUT) + nested(4, data)
        self.add(NEW_OBJECT, _CREATE, body, f"timeouts {name}")

    def new_set(self, spec: SetSpec) -> None:
        flags = (SET_INTERVAL | SET_CONCAT) * spec.interval | SET_MAP * (spec.data is not None or spec.verdicts)
        flags |= SET_TIMEOUT * spec.timed | SET_EVAL * spec.dynamic
        if len(spec.fields) > 1:
            flags |= SET_CONCAT
        kind = 0
        for number, _ in spec.fields:
            kind = kind << 6 | number
        body = text(1, self.table) + text(2, spec.name) + u32(3, flags) + u32(4, kind) + u32(5, spec.key_bytes)
        if spec.verdicts:
            body += u32(6, _DATA_VERDICT) + u32(7, 0)
        elif spec.data is not None:
            body += u32(6, spec.data[0]) + u32(7, spec.data[1])
        body += u32(10, len(self.parts) + 1)
        description = u32(1, spec.size) if spec.size else b""
        if spec.interval or len(spec.fields) > 1:
            description += nested(2, *(nested(1, u32(1, size)) for _, size in spec.fields))
        if description:
            body += nested(9, description)
        self.add(NEW_SET, _CREATE, body, f"set {spec.name}")

    def flush_set(self, name: str) -> None:
        self.add(DELETE_ELEMENTS, 0, text(1, self.table) + text(2, name), f"emptying {name}")

    def elements(self, kind: int, name: str, elements: Iterable[bytes]) -> None:
        """*kind* NEW_ELEMENTS, DELETE_ELEMENTS or DESTROY_ELEMENTS; *elements* as :func:`element` makes them."""
        head = text(1, self.table) + text(2, name)
        flags = _CREATE if kind == NEW_ELEMENTS else 0
        held: list[bytes] = []
        size = 0
        for one in elements:
            if size + len(one) > _MAX_LIST_BYTES:
                self.add(kind, flags, head + nested(3, *held), f"elements of {name}")
                held, size = [], 0
            held.append(one)
            size += len(one)
        if held:
            self.add(kind, flags, head + nested(3, *held), f"elements of {name}")


def element(key: bytes, *, end: bytes = b"", data: bytes = b"", timeout_ms: int = 0) -> bytes:
    """One element: its key (padded fields), an interval's *end*, its *data* as :func:`value` or :func:`goes_to`."""
    parts = value_data(1, key) + data
    if timeout_ms:
        parts += attribute(4, struct.pack("!Q", timeout_ms))
    if end:
        parts += value_data(10, end)
    return nested(1, parts)


def value(data: bytes) -> bytes:
    """An element's value."""
    return value_data(2, data)


def goes_to(code: int, chain: str = "") -> bytes:
    """An element's verdict."""
    return verdict_data(2, code, chain)


class NftSocket:
    """A netlink socket for batches and dumps, of the network namespace that it is made in. Not for two threads."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 12)
        self._socket.settimeout(_TIMEOUT_S)
        self._socket.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
        self._socket.bind((0, 0))
        self._buffer_bytes = 0
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def commit(self, batch: Batch) -> None:
        """Run *batch* as one transaction. Raises :class:`NftFailed` with the message that was refused."""
        if not batch.parts:
            return
        data = finished(batch)
        if len(data) > MAX_BATCH_BYTES:
            raise NftFailed(f"a transaction of {len(data)} bytes; {MAX_BATCH_BYTES} are allowed")
        self._make_room(len(data))
        try:
            self._socket.send(data)
            self._await_end(batch)
        except OSError as error:
            raise NftFailed(f"netlink: {error.strerror or error}") from error

    def _make_room(self, size: int) -> None:
        if size > self._buffer_bytes:
            wanted = max(2 * size, 1 << 20)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, wanted)
            # Each refused message is answered with an error of its own.
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 20)
            self._buffer_bytes = wanted

    def _await_end(self, batch: Batch) -> None:
        last = len(batch.parts)
        failed: tuple[int, int, str] | None = None
        while True:
            for kind, flags, sequence, body in messages(self._socket.recv(1 << 18)):
                if kind != 2:
                    continue
                number = -struct.unpack_from("=i", body)[0]
                if number and failed is None:
                    failed = sequence, number, _words(body, flags)
                if sequence >= last or failed is not None:
                    self._drain()
                    if failed is None:
                        return
                    at, number, words = failed
                    what = batch.names[at - 1] if 0 < at <= last else "the batch"
                    name = errno.errorcode.get(number, str(number))
                    raise NftFailed(f"{what}: {name}{f' ({words})' if words else ''}", errno=name, what=what)

    def _drain(self) -> None:
        """Throw away what else came of a transaction that is over."""
        self._socket.setblocking(False)
        try:
            while True:
                self._socket.recv(1 << 18)
        except BlockingIOError:
            pass
        finally:
            self._socket.settimeout(_TIMEOUT_S)

    def dump(self, kind: int, body: bytes, family: int = INET) -> list[bytes]:
        """The bodies of what the kernel lists; nothing where the table is not there.

        A list that somebody's transaction interrupted is begun again. Raises :class:`NftFailed`.
        """
        for _ in range(_TRIES):
            found = self._dump(kind, body, family)
            if found is not None:
                return found
        raise NftFailed(f"listing: the ruleset changed {_TRIES} times while it was read", errno="EINTR")

    def _dump(self, kind: int, body: bytes, family: int) -> list[bytes] | None:
        self._sequence = (self._sequence + 1) & 0x7FFFFFFF
        self._socket.send(_message(_SUBSYSTEM | kind, _DUMP, self._sequence, body, family))
        found: list[bytes] = []
        interrupted = False
        while True:
            for got, flags, sequence, answer in messages(self._socket.recv(1 << 18)):
                if sequence != self._sequence:
                    continue
                interrupted = interrupted or bool(flags & _INTERRUPTED)
                if got == 3:
                    return None if interrupted else found
                if got == 2:
                    number = -struct.unpack_from("=i", answer)[0]
                    if number == errno.ENOENT:
                        return []
                    if number in (errno.EINTR, errno.EAGAIN):
                        return None
                    raise NftFailed(f"listing: {errno.errorcode.get(number, str(number))}")
                found.append(answer[4:])

    def tables(self) -> list[tuple[str, str]]:
        """(family, name) of every table of the families that we use."""
        return [
            (word, _text(dict(attributes(body)).get(1)))
            for word, family in FAMILIES.items()
            for body in self.dump(_GET_TABLE, b"", family)
        ]

    def delete_table(self, family: str, table: str) -> bool:
        """Delete a table with all in it; False when it is not there."""
        batch = Batch(table)
        batch.parts.append(_message(_SUBSYSTEM | DELETE_TABLE, 0, 1, text(1, table), FAMILIES[family]))
        batch.names.append(f"deleting table {family} {table}")
        try:
            self.commit(batch)
        except NftFailed as error:
            if error.facts.get("errno") == "ENOENT":
                return False
            raise
        return True

    def rules(self, table: str, family: int = INET) -> dict[str, int]:
        """Chains of *table* with the number of their rules; chains without rules are there too."""
        return {name: len(found) for name, found in self.fingerprints(table, family).items()}

    def fingerprints(self, table: str, family: int = INET, *, handles: bool = True) -> dict[str, tuple[int, ...]]:
        """Chains of *table* with a number for each rule, in order, that is another when its words are: who replaces a
        rule leaves its handle and every count as they were. What a rule has counted is left out, and without *handles*
        which rule it is: the same rules made again have the same numbers. Good in this process."""
        found: dict[str, list[int]] = {name: [] for name in self.chains(table, family)}
        for body in self.dump(_GET_RULE, text(1, table), family):
            row = dict(attributes(body))
            if _text(row.get(1)) == table:
                words = _uncounted(row.get(4, b""))
                found.setdefault(_text(row.get(2)), []).append(hash((row.get(3) if handles else b"", words)))
        return {name: tuple(numbers) for name, numbers in found.items()}

    def is_dormant(self, table: str, family: int = INET) -> bool:
        """Whether *table* is there and its chains are at no hook."""
        rows = (dict(attributes(body)) for body in self.dump(_GET_TABLE, b"", family))
        return any(_text(row.get(1)) == table and row.get(2, b"")[-1:] == b"\1" for row in rows)

    def dropping(self, table: str, family: int = INET) -> list[str]:
        """Base chains of *table* whose policy is to drop."""
        rows = (dict(attributes(body)) for body in self.dump(_GET_CHAIN, b"", family))
        return [_text(row.get(3)) for row in rows if _text(row.get(1)) == table and row.get(5) == bytes(4)]

    def chains(self, table: str, family: int = INET) -> list[str]:
        rows = (dict(attributes(body)) for body in self.dump(_GET_CHAIN, b"", family))
        return [_text(row.get(3)) for row in rows if _text(row.get(1)) == table]

    def base_chains(self) -> list[BaseChain]:
        """Every base chain of the families that we use."""
        found: list[BaseChain] = []
        for word, family in FAMILIES.items():
            for body in self.dump(_GET_CHAIN, b"", family):
                row = dict(attributes(body))
                if 4 in row and 5 in row:
                    hook = dict(attributes(row[4]))
                    numbers = [struct.unpack("!I", one)[0] for one in (hook.get(1, bytes(4)), row[5])]
                    found.append(BaseChain(word, _text(row.get(1)), _text(row.get(3)), *numbers))
        return found

    def sets(self, table: str) -> list[str]:
        rows = (dict(attributes(body)) for body in self.dump(_GET_SET, text(1, table)))
        return [_text(row.get(2)) for row in rows if _text(row.get(1)) == table]

    def set_sizes(self, table: str) -> dict[str, int]:
        """How many elements each set of *table* has; those of which the kernel does not say so (before 6.16) are
        left out."""
        rows = (dict(attributes(body)) for body in self.dump(_GET_SET, text(1, table)))
        return {
            _text(row.get(2)): struct.unpack("!I", row[_SET_COUNT])[0]
            for row in rows
            if _text(row.get(1)) == table and len(row.get(_SET_COUNT, b"")) == 4
        }

    def counters(self, table: str) -> dict[str, int]:
        """Named counters of *table*, in packets."""
        found: dict[str, int] = {}
        for body in self.dump(_GET_OBJECT, text(1, table) + u32(3, 1)):
            row = dict(attributes(body))
            if _text(row.get(1)) == table and 4 in row:
                data = dict(attributes(row[4]))
                found[_text(row.get(2))] = struct.unpack("!Q", data[2])[0] if 2 in data else 0
        return found

    def listings(self, table: str, name: str) -> Iterator[bytes]:
        """The elements of a set as the kernel lists them, some hundred in each."""
        for body in self.dump(_GET_ELEMENTS, text(1, table) + text(2, name)):
            yield from (listing for kind, listing in attributes(body) if kind == 3)

    def elements(self, table: str, name: str, family: int = INET) -> Iterator[tuple[bytes, bytes, bytes]]:
        """Key, end of the interval (or nothing) and raw data attribute of each element."""
        for body in self.dump(_GET_ELEMENTS, text(1, table) + text(2, name), family):
            yield from _elements(body)

    def value_of(self, table: str, name: str, key: bytes, family: int = INET) -> bytes | None:
        """The value of the element *key* of a map; None where there is none. Takes as long with any number of them."""
        self._sequence = (self._sequence + 1) & 0x7FFFFFFF
        body = text(1, table) + text(2, name) + nested(3, element(key))
        self._socket.send(_message(_SUBSYSTEM | _GET_ELEMENTS, _ACK, self._sequence, body, family))
        found: bytes | None = None
        while True:
            for kind, flags, sequence, answer in messages(self._socket.recv(1 << 18)):
                if sequence != self._sequence:
                    continue
                if kind != 2:
                    for _, _, data in _elements(answer[4:]):
                        found = dict(attributes(data)).get(1, b"")
                    continue
                number = -struct.unpack_from("=i", answer)[0]
                if number and number != errno.ENOENT:
                    name_of = errno.errorcode.get(number, str(number))
                    raise NftFailed(f"an element of {name}: {name_of} {_words(answer, flags)}".rstrip(), errno=name_of)
                return found


def _uncounted(expressions: bytes) -> bytes:
    """A rule's *expressions* without what they have counted."""
    if b"counter\0" not in expressions:
        return expressions
    return b"".join(one for _, one in attributes(expressions) if dict(attributes(one)).get(1) != b"counter\0")


def _elements(body: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    for _, one in attributes(dict(attributes(body)).get(3, b"")):
        parts = dict(attributes(one))
        key = dict(attributes(parts.get(1, b""))).get(1, b"")
        end = dict(attributes(parts.get(10, b""))).get(1, b"")
        yield key, end, parts.get(2, b"")


def finished(batch: Batch) -> bytes:
    """The batch's bytes, the last message bearing the wish for an answer."""
    last = bytearray(batch.parts[-1])
    flags = struct.unpack_from("=H", last, 6)[0]
    struct.pack_into("=H", last, 6, flags | _ACK)
    begin = _message(_BEGIN, 0, 0)
    end = _message(_END, 0, len(batch.parts) + 1)
    return b"".join([begin, *batch.parts[:-1], last, end])


def _message(kind: int, flags: int, sequence: int, body: bytes = b"", family: int = INET) -> bytes:
    head = struct.pack("=IHHII", 20 + len(body), kind, flags | _REQUEST, sequence, 0)
    # struct nfgenmsg: what begins and ends a batch names the subsystem, everything else the family.
    return head + struct.pack("!BBH", *((family, 0, 0) if kind >= _SUBSYSTEM else (0, 0, 10))) + body


def _words(body: bytes, flags: int) -> str:
    """The kernel's own words in an error, if there are any."""
    if not flags & 0x200:
        return ""
    skip = 4 + (16 if flags & 0x100 else struct.unpack_from("=I", body, 4)[0])
    try:
        return dict(attributes(body[(skip + 3) & ~3 :])).get(1, b"").rstrip(b"\0").decode("utf-8", "replace")
    except ValueError:
        return ""


def _text(data: bytes | None) -> str:
    return (data or b"").rstrip(b"\0").decode("utf-8", "replace")


def destroys_elements(connection: NftSocket) -> bool:
    """Whether the kernel knows how to delete elements that may not be there: asked in a batch that changes nothing."""
    batch = Batch("casemate-probe")
    batch.new_table()
    batch.new_set(SetSpec("probe", ((7, 4),)))
    batch.elements(DESTROY_ELEMENTS, "probe", [element(bytes(4))])
    batch.delete_table()
    try:
        connection.commit(batch)
    except NftFailed:
        return False
    return True


def has_queue(connection: NftSocket, rules: Sequence[bytes]) -> int | None:
    """Which of *rules* (alternatives, each one rule's expressions) the kernel takes first; None: none of them."""
    for index, expressions in enumerate(rules):
        if takes_rule(connection, expressions):
            return index
    return None


def takes_rule(connection: NftSocket, expressions: bytes, needs: Callable[[Batch], None] = lambda _batch: None) -> bool:
    """Whether the kernel takes a rule, asked in a batch that changes nothing; *needs* adds what the rule names."""
    batch = Batch("casemate-probe")
    batch.new_table()
    needs(batch)
    batch.new_chain("probe")
    batch.new_rule("probe", expressions)
    batch.delete_table()
    try:
        connection.commit(batch)
    except NftFailed:
        return False
    return True


def rules(table: str, family: int = INET) -> dict[str, int]:
    """Chains of *table* with the number of their rules, by a socket of its own; nothing where it is not there."""
    connection = NftSocket()
    try:
        return connection.rules(table, family)
    finally:
        connection.close()


def policy_and_rules(table: str, family: int, chain: str) -> tuple[int, int]:
    """A base chain's policy (-1 where there is none) and the number of its rules."""
    connection = NftSocket()
    try:
        policy = next(
            (
                one.policy
                for one in connection.base_chains()
                if (FAMILIES[one.family], one.table, one.name) == (family, table, chain)
            ),
            -1,
        )
        return policy, connection.rules(table, family).get(chain, 0)
    finally:
        connection.close()


def tables() -> list[tuple[str, str]]:
    """(family, name) of every table of the families that we use; by a message, where nft(8) reads every ruleset."""
    connection = NftSocket()
    try:
        return connection.tables()
    finally:
        connection.close()


def delete_table(family: str, table: str) -> bool:
    """Delete a table with all in it; False when it is not there."""
    connection = NftSocket()
    try:
        return connection.delete_table(family, table)
    finally:
        connection.close()


def base_chains() -> list[BaseChain]:
    """Every base chain of the families that we use."""
    connection = NftSocket()
    try:
        return connection.base_chains()
    finally:
        connection.close()
