"""Whether the rules of a small table of ours are as they were made: by the kernel's own words for them.

Who replaces a rule by another leaves every number as it was; who flushes a chain, lets a table sleep or has a chain
drop by policy is told as well. To look takes a dump of the host's rules (some 0.3 ms), and is needed only where the
ruleset's generation has moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from casemate.host.nft import Generations, NftFailed
from casemate.host.nft_netlink import INET, NftSocket

_FAMILY_WORDS = {INET: "inet"}


class _Seen(NamedTuple):
    """A table as the kernel has it: its rules by chain, whether it is at no hook, chains that drop by policy."""

    words: dict[str, tuple[int, ...]]
    is_dormant: bool = False
    dropping: tuple[str, ...] = ()


@dataclass(slots=True)
class OwnRules:
    """The rules of *table* of *family* (by number), in the network namespace of whoever asks first."""

    table: str
    family: int
    _socket: NftSocket | None = None
    _generations: Generations = field(default_factory=Generations)
    #: Of each chain; nothing while it is not known what the kernel made of ours.
    _words: dict[str, tuple[int, ...]] = field(default_factory=dict)
    #: Of the ruleset, when all was well.
    _at: int = -1

    @property
    def is_known(self) -> bool:
        return bool(self._words)

    def close(self) -> None:
        self._generations.close()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def forget(self) -> None:
        """The table goes."""
        self._words, self._at = {}, -1

    def make(self, run: Callable[[], object]) -> None:
        """Call *run*, one transaction that makes every rule of the table anew. Where somebody else's came in between,
        the kernel's words may not be ours, and are not known afterwards."""
        before = self._generations.now()
        self.forget()
        run()
        self._note(before + 1)

    def remake(self, run: Callable[[], object]) -> list[str]:
        """As :meth:`make`, where an earlier process made the rules; what of them was not as they are now, in words."""
        before = self._seen(handles=False)
        self.make(run)
        return list(_differences(self._listing(handles=False), before)) if self._words else []

    def adopt(self) -> None:
        """Take the rules that there are for ours: an earlier process made them, and this one could not."""
        self._note(self._generations.now())

    def _note(self, generation: int) -> None:
        found = self._listing()
        if self._generations.now() == generation:
            self._words, self._at = found, generation

    def _listing(self, *, handles: bool = True) -> dict[str, tuple[int, ...]]:
        if self._socket is None:
            self._socket = NftSocket()
        return self._socket.fingerprints(self.table, self.family, handles=handles)

    def lost(self) -> list[str]:
        """What is not as it was made, in words; nothing when all is, or nobody knows. 20 us while no rule of the
        host's changes."""
        now = self._generations.now()
        if not self._words or now == self._at:
            return []
        try:
            found = list(_differences(self._words, self._seen()))
        except NftFailed as error:
            # Others change rules faster than they can be read: it is looked at again soon.
            if error.facts.get("errno") == "EINTR":
                return []
            raise
        if not found:
            self._at = now
        return found

    def _seen(self, *, handles: bool = True) -> _Seen:
        found = self._listing(handles=handles)
        assert self._socket is not None
        if not found:
            return _Seen({})
        dropping = self._socket.dropping(self.table, self.family)
        return _Seen(found, self._socket.is_dormant(self.table, self.family), tuple(dropping))

    def describe(self, lost: list[str]) -> str:
        """What was done, and why: the event's line."""
        made = f"made nftables table {_FAMILY_WORDS.get(self.family, 'ip')} {self.table}"
        return f"{made} again: {', '.join(lost)[:300]}" if lost else made


def _differences(words: dict[str, tuple[int, ...]], seen: _Seen) -> Iterator[str]:
    """What of *seen* is not as in *words*, in words."""
    if not seen.words:
        yield "all of it was gone"
        return
    if seen.is_dormant:
        yield "it slept"
    for name, ours in words.items():
        theirs = seen.words.get(name, ())
        if name in seen.dropping:
            yield f"chain {name} dropped"
        elif len(theirs) != len(ours):
            yield f"rules of chain {name} were {'gone' if len(theirs) < len(ours) else 'not ours'}"
        elif theirs != ours:
            yield f"a rule of chain {name} was changed"
