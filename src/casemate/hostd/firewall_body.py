"""The body of a change of the firewall: its records checked and turned into the kernel's elements.

Written by casemated, which is not trusted: counts, lengths, addresses, numbers and verdicts are looked at here. Bytes
beyond what the header counts, seals that lack, values outside their range: all refused before anything is touched.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from casemate.hostd import protocol_firewall as wire
from casemate.hostd.errors import FirewallBodyInvalid
from casemate.network.firewall import sets
from casemate.network.firewall.sets import Row

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
#: 24 bits: `policy.identity`.
_LAST_NUMBER = (1 << 24) - 1
_PROTOCOLS = (0, 1, 6, 17, 132)
_NO_VIEWER = bytes(16)


@dataclass(frozen=True, slots=True)
class Body:
    """The sections, as bytes of whole records."""

    sections: dict[str, bytes]

    @property
    def size(self) -> int:
        """Elements that it stands for."""
        counted = sum(len(data) // wire.RECORDS[name].size for name, data in self.sections.items())
        return counted + sum(
            len(self.sections[name]) // wire.BASE_RECORD.size for name in ("base_deletes", "base_adds")
        )

    def counts(self) -> Counter[str]:
        """By how much this changes the number of verdicts, bases and addresses."""
        found: Counter[str] = Counter()
        for name, data in self.sections.items():
            kind, _, what = name.partition("_")
            found[kind] += len(data) // wire.RECORDS[name].size * (1 if what == "adds" else -1)
        return found

    def bytes(self) -> bytes:
        return wire.body(**{name: [data] for name, data in self.sections.items()})

    def deletes(self) -> Iterator[Row]:
        yield from _addresses(self.sections["address_deletes"])
        yield from _verdicts(self.sections["verdict_deletes"])
        yield from _bases(self.sections["base_deletes"])

    def adds(self) -> Iterator[Row]:
        yield from _verdicts(self.sections["verdict_adds"])
        yield from _bases(self.sections["base_adds"])
        yield from _addresses(self.sections["address_adds"])


def parse(data: bytes) -> Body:
    """The body in *data*; raises :class:`FirewallBodyInvalid`. Records are checked when they are gone through."""
    if len(data) < wire.BODY_HEADER.size:
        raise FirewallBodyInvalid(f"{len(data)} bytes are no body; the header alone has {wire.BODY_HEADER.size}")
    magic, *counts = wire.BODY_HEADER.unpack_from(data)
    wanted = wire.BODY_HEADER.size + sum(
        count * wire.RECORDS[name].size for name, count in zip(wire.SECTIONS, counts, strict=True)
    )
    if magic != wire.BODY_MAGIC or len(data) != wanted:
        raise FirewallBodyInvalid(f"{len(data)} bytes that begin with {magic!r}; the header says {wanted}")
    sections: dict[str, bytes] = {}
    at = wire.BODY_HEADER.size
    for name, count in zip(wire.SECTIONS, counts, strict=True):
        end = at + count * wire.RECORDS[name].size
        sections[name] = data[at:end]
        at = end
    return Body(sections)


def read_sealed(number: int) -> bytes:
    """The content of a sealed memory file; raises :class:`FirewallBodyInvalid` for any other kind of descriptor."""
    try:
        seals = fcntl.fcntl(number, fcntl.F_GET_SEALS)
        size = os.fstat(number).st_size
        regular = stat.S_ISREG(os.fstat(number).st_mode)
    except OSError as error:
        raise FirewallBodyInvalid(f"the descriptor is no memory file: {error.strerror}") from error
    if not regular or seals & _SEALS != _SEALS:
        raise FirewallBodyInvalid("the memory file is not sealed: it could change while it is read")
    if size > wire.MAX_BODY_BYTES:
        raise FirewallBodyInvalid(f"a body of {size} bytes; {wire.MAX_BODY_BYTES} are allowed")
    return os.pread(number, size, 0)


def _verdicts(data: bytes) -> Iterator[Row]:
    for record in wire.VERDICT_RECORD.iter_unpack(data):
        table, source, destination, protocol, first, last, verdict = record
        if (
            table > 2
            or source > _LAST_NUMBER
            or destination > _LAST_NUMBER
            or protocol not in _PROTOCOLS
            or first > last
            or (table != 1 and first != last)
            or (protocol == sets.ICMP and last > sets.MAX_ICMP_TYPE)
            or verdict not in sets.CHAINS
        ):
            raise FirewallBodyInvalid(f"verdict record {record} has a value outside its range")
        yield sets.verdict_row(*record)


def _bases(data: bytes) -> Iterator[Row]:
    for record in wire.BASE_RECORD.iter_unpack(data):
        if max(record) > _LAST_NUMBER:
            raise FirewallBodyInvalid(f"base record {record} has a number above {_LAST_NUMBER}")
        yield from sets.base_rows(*record)


def _addresses(data: bytes) -> Iterator[Row]:
    for record in wire.ADDRESS_RECORD.iter_unpack(data):
        exact, version, first, last, viewer, number, lifetime_s = record
        size = 4 if version == 4 else 16
        if (
            exact > 1
            or version not in (4, 6)
            or first > last
            or (exact and first != last)
            or any(field[size:] != bytes(16 - size) for field in (first, last, viewer))
            or number > _LAST_NUMBER
            or (viewer != _NO_VIEWER and not exact)
            or lifetime_s > 31_536_000
        ):
            raise FirewallBodyInvalid(f"address record {record} has a value outside its range")
        yield sets.address_row(
            bool(exact),
            first[:size],
            last[:size],
            viewer=viewer[:size] if viewer != _NO_VIEWER else b"",
            number=number,
            lifetime_ms=lifetime_s * 1000,
        )
