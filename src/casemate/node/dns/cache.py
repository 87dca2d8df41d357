"""Answers kept for their lifetime, at most so many and so many bytes; the least lately used go first. Pure."""

from __future__ import annotations

from collections import OrderedDict

from casemate.node.dns.message import NOERROR, NXDOMAIN, Answer

MAX_ANSWERS = 10_000
MAX_BYTES = 8 << 20
#: Lifetimes beyond are cut: a wrong answer must not stay for a week, nor a "no such name" for hours (RFC 2308, 5).
MAX_LIFETIME_S, MAX_ABSENT_S = 86_400, 300
Key = tuple[str, int, bool]


class Cache:
    """By name, type, and whether signatures were asked for."""

    def __init__(self) -> None:
        self._held: OrderedDict[Key, tuple[Answer, float, float]] = OrderedDict()
        self._bytes = 0

    def get(self, key: Key, now: float) -> tuple[Answer, int] | None:
        """The answer and its age in seconds; None when there is none that still holds."""
        found = self._held.get(key)
        if found is None:
            return None
        answer, came, until = found
        if not came <= now < until:
            self._drop(key)
            return None
        self._held.move_to_end(key)
        return answer, int(now - came)

    def put(self, key: Key, answer: Answer, now: float) -> None:
        if answer.code not in (NOERROR, NXDOMAIN) or answer.is_cut:
            return
        has_answer = any(record.section == 1 for record in answer.records)
        lifetime_s = min(answer.lifetime_s(), MAX_LIFETIME_S if has_answer else MAX_ABSENT_S)
        if lifetime_s <= 0:
            return
        self._drop(key)
        self._held[key] = (answer, now, now + lifetime_s)
        self._bytes += len(answer.data)
        while len(self._held) > MAX_ANSWERS or self._bytes > MAX_BYTES:
            self._drop(next(iter(self._held)))

    def clear(self) -> None:
        self._held.clear()
        self._bytes = 0

    def _drop(self, key: Key) -> None:
        found = self._held.pop(key, None)
        if found is not None:
            self._bytes -= len(found[0].data)

    def __len__(self) -> int:
        return len(self._held)
