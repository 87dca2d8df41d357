"""The body of a change of the firewall: what casemated sends is not believed; the record folds what it was told."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.hostd import firewall_body
from casemate.hostd import protocol_firewall as wire
from casemate.hostd.errors import FirewallBodyInvalid
from casemate.hostd.firewall_record import FirewallRecord, InForce
from casemate.node.firewall import sealed

VERDICT = (0, 300, 301, 6, 80, 80, 0)
ADDRESS = (1, 4, bytes([10, 0, 0, 1]) + bytes(12), bytes([10, 0, 0, 1]) + bytes(12), bytes(16), 300, 0)
BASE = (300, 1 << 23, (1 << 23) + 1)


def rows(data: bytes) -> list[str]:
    body = firewall_body.parse(data)
    return [row.name for row in (*body.deletes(), *body.adds())]


def verdict(*fields: int) -> bytes:
    return wire.body(verdict_adds=[wire.VERDICT_RECORD.pack(*fields)])


def address(**changed: object) -> bytes:
    names = ("exact", "version", "first", "last", "viewer", "number", "lifetime_s")
    fields = dict(zip(names, ADDRESS, strict=True)) | changed
    return wire.body(address_adds=[wire.ADDRESS_RECORD.pack(*fields.values())])


def test_each_section_becomes_elements() -> None:
    data = wire.body(
        address_deletes=[wire.ADDRESS_RECORD.pack(*ADDRESS)],
        verdict_adds=[wire.VERDICT_RECORD.pack(*VERDICT), wire.VERDICT_RECORD.pack(1, 300, 301, 17, 1, 9, 2)],
        base_adds=[wire.BASE_RECORD.pack(*BASE)],
        address_adds=[wire.ADDRESS_RECORD.pack(*ADDRESS)],
    )
    assert rows(data) == ["exact4", "port", "range", "egress", "ingress", "exact4"]
    assert firewall_body.parse(data).counts() == {"address": 0, "verdict": 2, "base": 1}


LOOPBACK6 = bytes(15) + b"\1"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x" * 27,
        wire.body()[:-1],
        wire.body() + b"x",
        b"CMF2" + wire.body()[4:],
        wire.BODY_HEADER.pack(wire.BODY_MAGIC, 1 << 31, 0, 0, 0, 0, 0),
        verdict(3, 300, 301, 6, 80, 80, 0),
        verdict(0, 1 << 24, 301, 6, 80, 80, 0),
        verdict(0, 300, 1 << 31, 6, 80, 80, 0),
        verdict(0, 300, 301, 41, 80, 80, 0),
        verdict(0, 300, 301, 6, 80, 81, 0),
        verdict(1, 300, 301, 6, 81, 80, 0),
        verdict(0, 300, 301, 1, 256, 256, 0),
        verdict(0, 300, 301, 6, 80, 80, 5),
        address(exact=2),
        address(version=5),
        address(version=0),
        address(first=bytes([10, 0, 0, 2]) + bytes(12)),
        address(first=LOOPBACK6, last=LOOPBACK6),
        address(last=bytes([10, 0, 0, 9]) + bytes(12)),
        address(number=1 << 24),
        address(exact=0, viewer=bytes([1]) + bytes(15)),
        address(viewer=LOOPBACK6),
        address(lifetime_s=1 << 31),
        wire.body(base_adds=[wire.BASE_RECORD.pack(300, 1 << 24, 0)]),
    ],
)
def test_what_is_out_of_its_range_is_refused(data: bytes) -> None:
    with pytest.raises(FirewallBodyInvalid):
        rows(data)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_body_or_refused(data: bytes) -> None:
    with_header = wire.BODY_HEADER.pack(wire.BODY_MAGIC, 0, len(data) // 15, 0, 0, 0, 0) + data
    for one in (data, with_header):
        try:
            rows(one)
        except FirewallBodyInvalid:
            continue


def test_only_a_sealed_memory_file_is_read(tmp_path: Path) -> None:
    number = sealed(b"content")
    assert firewall_body.read_sealed(number) == b"content"
    os.close(number)
    plain = tmp_path / "plain"
    plain.write_bytes(b"content")

    def unsealed() -> int:
        return os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)

    def file() -> int:
        return os.open(plain, os.O_RDONLY)

    def pipe() -> int:
        reading, writing = os.pipe()
        os.close(writing)
        return reading

    openers: tuple[Callable[[], int], ...] = (unsealed, file, pipe)
    for opener in openers:
        number = opener()
        with pytest.raises(FirewallBodyInvalid):
            firewall_body.read_sealed(number)
        os.close(number)


def packed(verdicts: dict[int, int]) -> list[bytes]:
    return [wire.VERDICT_RECORD.pack(0, 300, 301, 6, port, port, verdict) for port, verdict in verdicts.items()]


@given(st.lists(st.tuples(st.sets(st.integers(1, 8)), st.dictionaries(st.integers(1, 8), st.integers(0, 4)))))
def test_the_record_folds_changes_as_the_kernel_does(changes: list[tuple[set[int], dict[int, int]]]) -> None:
    folder = Path(os.environ.get("TMPDIR", "/tmp"))
    path = folder / f"casemate-record-{os.getpid()}"
    record = FirewallRecord(path)
    record.write_whole(firewall_body.parse(wire.body(verdict_adds=packed({1: 0, 9: 4}))), InForce(1, 1))
    model = {1: 0, 9: 4}
    for number, (gone, come) in enumerate(changes, 2):
        deletes = {port: model[port] for port in gone & model.keys()}
        adds = {port: verdict for port, verdict in come.items() if port not in model or port in deletes}
        body = wire.body(verdict_deletes=packed(deletes), verdict_adds=packed(adds))
        record.append(firewall_body.parse(body), InForce(number, 1))
        model = {port: verdict for port, verdict in model.items() if port not in deletes} | adds
    found = FirewallRecord(path).read()
    path.unlink()
    assert found is not None
    body, now = found
    assert now.generation == len(changes) + 1
    seen = {record[4]: record[6] for record in wire.VERDICT_RECORD.iter_unpack(body.sections["verdict_adds"])}
    assert seen == model


def test_an_entry_that_was_cut_short_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "record"
    record = FirewallRecord(path)
    assert record.read() is None
    record.write_whole(firewall_body.parse(wire.body(verdict_adds=packed({1: 0}))), InForce(1, 1))
    whole = path.stat().st_size
    record.append(firewall_body.parse(wire.body(verdict_adds=packed({2: 0}))), InForce(2, 2))
    for length in range(whole, path.stat().st_size):
        short = tmp_path / "short"
        short.write_bytes(path.read_bytes()[:length])
        found = FirewallRecord(short).read()
        assert found is not None
        assert found[1] == InForce(1, 1)
        assert short.stat().st_size == whole
    before = path.stat().st_size
    at = record.append(firewall_body.parse(wire.body(verdict_adds=packed({3: 0}))), InForce(3, 3))
    record.cut(at)
    assert path.stat().st_size == before
    found = record.read()
    assert found is not None
    assert found[1] == InForce(2, 2)
