"""The log's form: every line comes back, whatever it is cut into; the tail is what a slow look says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from casemate.node import logformat
from casemate.node.logformat import Line, Splitter, parse_line, parse_stamp, tail_offset

STAMP = b"2026-01-31T12:00:00.123456789+00:00"
texts = st.binary(max_size=30).map(lambda data: data.replace(b"\n", b"?"))
lines = st.lists(st.tuples(st.sampled_from((b"stdout", b"stderr")), st.booleans(), texts), max_size=40)


def encoded(rows: list[tuple[bytes, bool, bytes]]) -> bytes:
    return b"".join(STAMP + b" " + s + (b" P " if p else b" F ") + text + b"\n" for s, p, text in rows)


@given(lines, st.integers(1, 50))
def test_lines_come_back_however_they_are_cut(rows: list[tuple[bytes, bool, bytes]], size: int) -> None:
    data, splitter = encoded(rows), Splitter()
    found: list[Line] = []
    for start in range(0, len(data), size):
        found += splitter.feed(data[start : start + size])
    assert [(line.stream, line.partial, line.text) for line in found] == [
        (1 if s == b"stdout" else 2, p, text if p else text + b"\n") for s, p, text in rows
    ]


@given(st.binary(max_size=2000), st.integers(1, 100))
def test_garbage_is_skipped(data: bytes, size: int) -> None:
    splitter = Splitter()
    for start in range(0, len(data), size):
        for line in splitter.feed(data[start : start + size]):
            assert line.stream in (1, 2)


def test_an_endless_line_is_bounded() -> None:
    splitter = Splitter()
    for _ in range(100):
        assert not list(splitter.feed(b"x" * 10_000))
        assert len(splitter._rest) <= logformat.MAX_LINE_BYTES
    rest = list(splitter.feed(b"\n" + STAMP + b" stdout F ok\n"))
    assert [line.text for line in rest] == [b"ok\n"]


def slow_tail(data: bytes, wanted: int) -> bytes:
    """All lines, grouped into whole ones, the last *wanted* groups and what is unfinished after them."""
    groups: list[bytes] = []
    current = b""
    for raw in data.split(b"\n")[:-1]:
        current += raw + b"\n"
        line = parse_line(raw)
        if line is not None and not line.partial:
            groups.append(current)
            current = b""
    return b"".join(groups[-wanted:] if wanted else []) + current


@given(lines, st.integers(0, 12), st.integers(5, 200))
def test_the_tail_is_the_slow_one(rows: list[tuple[bytes, bool, bytes]], wanted: int, block: int) -> None:
    data = encoded(rows)
    before, logformat.BLOCK_BYTES = logformat.BLOCK_BYTES, block
    try:
        offset, count = tail_offset(lambda length, at: data[at : at + length], len(data), wanted)
    finally:
        logformat.BLOCK_BYTES = before
    assert data[offset:] == slow_tail(data, wanted)
    assert count == min(wanted, sum(not p for _, p, _ in rows))


def test_stamps() -> None:
    assert parse_stamp(b"1970-01-01T00:00:01.500000000Z") == 1.5
    assert parse_stamp(b"1970-01-01T01:00:01.500000000+01:00") == 1.5
    assert parse_stamp(b"nonsense") == 0.0
