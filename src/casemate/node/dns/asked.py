"""Under which name each pod was told of an address last: for people who are asked about a connection. Pure.

It is what the pod asked for and nothing more: whoever owns a name says where it leads, so no rule goes by it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

#: Of one pod, so that none crowds out another's; and pods. A referral comes soon after the answer that led to it.
MAX_OF_ONE, MAX_PODS = 32, 4_096


class Asked:
    """Names by the pod's address and the address that it was told."""

    def __init__(self) -> None:
        self._told: OrderedDict[str, OrderedDict[str, str]] = OrderedDict()

    def answered(self, viewer: str, name: str, addresses: Iterable[tuple[str, int]]) -> None:
        """The pod at *viewer* was told that *name* is at *addresses* (with lifetimes in seconds)."""
        told = self._told.setdefault(viewer, OrderedDict())
        self._told.move_to_end(viewer)
        for address, _ in addresses:
            told[address] = name
            told.move_to_end(address)
        while len(told) > MAX_OF_ONE:
            told.popitem(last=False)
        while len(self._told) > MAX_PODS:
            self._told.popitem(last=False)

    def name(self, viewer: str, address: str) -> str:
        """What *viewer* asked for when it was told *address*; empty where it was not."""
        told = self._told.get(viewer)
        return told.get(address, "") if told is not None else ""

    def viewer_gone(self, viewer: str) -> None:
        """The address may be another pod's soon."""
        self._told.pop(viewer, None)
