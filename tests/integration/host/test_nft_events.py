"""Who changed a table, as the kernel tells it: ours, somebody's, and what nobody could hear of."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.integration.leaks import Scope

from casemate.host import netns
from casemate.host.nft import Followed
from casemate.host.nft_netlink import INET, IPV4, NEW_ELEMENTS, Batch, NftSocket, SetSpec, element

pytestmark = pytest.mark.root
TABLE = "ours"


class Ruleset:
    """Two tables of a network namespace in which nobody else is, and one connection to change them by."""

    def __init__(self) -> None:
        self.connection = NftSocket()
        self.followed = Followed()
        self.followed.listen(TABLE, INET)
        for name, family in ((TABLE, INET), (TABLE, IPV4), ("theirs", INET)):
            batch = Batch(name, family)
            batch.new_table()
            batch.new_set(SetSpec("some", ((7, 4),)))
            self.connection.commit(batch)
        self.look()

    def look(self) -> bool | None:
        """As hostd does: whether our table was touched, and all is well from here on."""
        found = self.followed.touched()
        self.followed.at = self.followed.now()
        return found

    def put(self, table: str, *numbers: int, family: int = INET) -> None:
        batch = Batch(table, family)
        batch.elements(NEW_ELEMENTS, "some", [element(one.to_bytes(4, "big")) for one in numbers])
        self.connection.commit(batch)

    def close(self) -> None:
        self.followed.close()
        self.connection.close()


@contextmanager
def ruleset() -> Iterator[Ruleset]:
    one = Ruleset()
    try:
        yield one
    finally:
        one.close()


def _who_it_was() -> None:
    with ruleset() as one:
        assert one.look() is False
        one.put(TABLE, 1)
        assert one.look() is True
        assert one.look() is False
        # Another table, and one of another family with our name.
        one.put("theirs", 1)
        one.put(TABLE, 1, family=IPV4)
        assert one.look() is False
        one.put("theirs", 2)
        one.put(TABLE, 2)
        one.put("theirs", 3)
        assert one.look() is True


def _our_own() -> None:
    with ruleset() as one:
        with one.followed.own_change():
            one.put(TABLE, *range(1000))
        assert one.followed.is_now()
        assert one.look() is False
        # Between somebody's change and the look at it.
        one.put("theirs", 1)
        for number in (2000, 2001):
            with one.followed.own_change():
                one.put(TABLE, number)
        assert one.look() is False
        one.put(TABLE, 3000)
        with one.followed.own_change():
            one.put(TABLE, 3001)
        assert one.look() is True


def _unheard() -> None:
    with ruleset() as one:
        # Somebody's change within one of ours: nobody tells whose table that was.
        with one.followed.own_change():
            one.put(TABLE, 1)
            one.put("theirs", 1)
        assert not one.followed.is_now()
        one.put("theirs", 2)
        assert one.look() is None
        # A change of ours that failed is none, and the next is heard of.
        with pytest.raises(ZeroDivisionError), one.followed.own_change():
            raise ZeroDivisionError
        one.put(TABLE, 2)
        assert one.look() is True
        # More than the socket holds, none of it ours.
        events = one.followed._events
        assert events is not None
        events._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for start in range(0, 4000, 1000):
            one.put("theirs", *range(start + 10, start + 1010))
        assert one.look() is None
        one.put("theirs", 3)
        assert one.look() is False


@pytest.mark.parametrize("scene", [_who_it_was, _our_own, _unheard])
def test_who_touched_a_table_is_known_or_known_to_be_unknown(scope: Scope, scene: object) -> None:
    assert callable(scene)
    pin = scope.folder / "ns"
    asyncio.run(netns.create(pin, scene))
    netns.remove(pin)


def test_who_does_not_listen_does_not_know(scope: Scope) -> None:
    followed = Followed()
    assert followed.touched() is None
    followed.close()
