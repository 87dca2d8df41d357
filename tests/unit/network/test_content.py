"""What sets hold against what they should hold, by bytes; what is no element is passed over."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from casemate.network.firewall import sets
from casemate.network.firewall.content import Held, compare, cut, held
from casemate.network.firewall.sets import Row, address_row, base_rows, source_rows, verdict_row

ROWS = [
    address_row(True, bytes([10, 0, 0, 1]), bytes([10, 0, 0, 1]), viewer=b"", number=300),
    address_row(False, bytes(16), b"\xff" * 16, viewer=b"", number=301),
    verdict_row(0, 300, 301, 6, 80, 80, 0),
    verdict_row(1, 300, 301, 6, 80, 90, 4),
    source_rows(7, bytes(range(6)), bytes([10, 0, 0, 1]))[1],
    *base_rows(300, 1 << 23, 1 << 24),
]


def by_set(rows: list[Row]) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for name, element in rows:
        found.setdefault(name, []).append(element)
    return found


def test_rows_come_back_as_they_were() -> None:
    for row in ROWS:
        assert [one.row(row.name) for one in held([row.element])] == [row]
    joined = b"".join(element for _, element in ROWS[:1] + ROWS[5:6])
    assert list(cut(joined)) == [ROWS[0].element, ROWS[5].element]


def test_what_is_gone_put_and_changed_is_told_apart() -> None:
    changed = address_row(True, bytes([10, 0, 0, 1]), bytes([10, 0, 0, 1]), viewer=b"", number=7)
    extra = verdict_row(0, 1, 2, 17, 53, 53, 0)
    found = compare(by_set(ROWS), by_set([changed, extra, *ROWS[1:6]]))
    assert (found.size, found.adds(), sorted(found.deletes())) == (4, [ROWS[0], ROWS[6]], sorted([changed, extra]))
    assert found.describe() == [
        "set exact4: 1 elements were gone, 1 were not ours",
        "set ingress: 1 elements were gone",
        "set port: 1 were not ours",
    ]
    assert compare(by_set(ROWS), by_set(ROWS)).size == 0


@given(st.binary(max_size=64))
def test_any_bytes_end(data: bytes) -> None:
    pieces = list(cut(data))
    assert sum(map(len, pieces)) <= len(data)
    assert all(isinstance(one, Held) for one in held([*pieces, data]))


@given(st.booleans(), st.sampled_from([1, 6, 17, 132]), st.integers(0, 255), st.integers(1, 1 << 40))
def test_an_answer_by_its_mould_is_the_one_put_together(accept: bool, protocol: int, port: int, time_ms: int) -> None:
    ends = bytes([10, 1, 2, 3]), bytes([10, 4, 5, 6])
    row = sets.answer_row(*ends, protocol, port, accept=accept, lifetime_ms=time_ms)
    assert row == ("answers4", sets._answer(*ends, protocol, port, accept=accept, lifetime_ms=time_ms))
