"""What pods may hold of the memory for parts of packets, reckoned."""

from __future__ import annotations

import pytest

from casemate.hostd.straining import divided_among, is_strained
from casemate.network.firewall import guard

MEMORY = 4 << 20
#: hostd looks every 0.25 s, and needs some time for it.
UNSEEN_S = 0.35


def held(share: guard.Share) -> float:
    """Parts of one pod that wait at the same time at most."""
    return share.burst + share.per_minute * guard.PARTS_KEPT_S / 60


@pytest.mark.parametrize("pods", [1, 2, 4, 8, 16, 32, 64, 128])
def test_shares_together_are_a_part_of_the_memory(pods: int) -> None:
    assert pods * held(guard.share(MEMORY, pods)) * guard.PART_BYTES <= MEMORY * 3 / 8


def test_until_it_is_seen_thirty_pods_do_not_fill_it() -> None:
    rate, burst = guard.PARTS_TOGETHER
    each_rate, each_burst = guard.PARTS_EACH
    parts = burst + rate * UNSEEN_S + 30 * (each_burst + each_rate * UNSEEN_S)
    assert parts * guard.PART_BYTES < MEMORY
    assert 4 * held(guard.share(MEMORY, 4)) + burst + rate * UNSEEN_S < MEMORY / guard.PART_BYTES


def test_bursts_that_are_given_anew_when_more_come_are_bounded() -> None:
    """One pod first, then two, four and so on, each time just after the rates were divided anew."""
    bursts = sum(pods * guard.share(MEMORY, pods).burst for pods in (1, 2, 4, 8, 16, 32))
    assert bursts * guard.PART_BYTES < MEMORY / 3


def test_shares_of_more_memory_and_the_least() -> None:
    assert guard.share(MEMORY, 1) == (960, 64)
    assert guard.share(100 * MEMORY, 8) == (960, 64)
    assert guard.share(MEMORY, 5000) == (1, 1)
    assert guard.share(1, 1) == (1, 1)


def test_among_how_many_it_is_divided() -> None:
    assert [divided_among(senders, 0) for senders in (0, 1, 2, 3, 4, 5, 9)] == [1, 1, 2, 4, 4, 8, 16]
    assert divided_among(2, 16) == 16
    assert [is_strained(held, 100, before) for held, before in ((25, False), (26, False), (13, True), (12, True))] == [
        False, True, True, False,
    ]  # fmt: skip
